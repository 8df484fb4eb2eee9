"""The network of the lab does what the tests on it rely on."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.links import Rate
from tests.lab.namespaces import our_namespaces, run_ip, sweep
from tests.lab.network import Network, Node
from tests.lab.probes import heard, mbit_between, tell_group

MDNS = ("224.0.0.251", 5353)
MIB = 1 << 20
BACK_S = 5.0
"""A carrier that is back is believed by the kernel up to a second later, and a SYN sent again after one more."""


@pytest.mark.parametrize(("mbit", "size"), [(10, 2 * MIB), (100, 16 * MIB)])
def test_the_rate_is_what_was_asked_in_both_directions(network: Network, mbit: float, size: int) -> None:
    slow, fast = network.node("slow", mbit), network.node("fast")
    assert mbit_between(slow, fast, size) == pytest.approx(mbit, rel=0.15)
    assert mbit_between(fast, slow, size) == pytest.approx(mbit, rel=0.15)


def test_up_and_down_are_their_own_and_change_while_it_runs(network: Network) -> None:
    line, fast = network.node("line", Rate(up=10, down=50)), network.node("fast")
    assert mbit_between(line, fast, 2 * MIB) == pytest.approx(10, rel=0.15)
    assert mbit_between(fast, line, 8 * MIB) == pytest.approx(50, rel=0.15)
    line.link.set_rate(Rate.both(20))
    assert mbit_between(fast, line, 4 * MIB) == pytest.approx(20, rel=0.15)
    line.link.set_rate(Rate())
    assert mbit_between(fast, line, 16 * MIB) > 200


def test_multicast_reaches_every_machine_and_a_moved_one(network: Network) -> None:
    nodes = [network.node(name) for name in "abc"]
    waiting = [heard(node, MDNS) for node in nodes[1:]]
    tell_group(nodes[0], MDNS, b"who is there")
    assert [wait(2) for wait in waiting] == [b"who is there"] * 2
    nodes[0].move("10.77.9.9")
    wait = heard(nodes[0], MDNS)
    tell_group(nodes[1], MDNS, b"again")
    assert wait(2) == b"again"


def test_a_blackhole_is_silent(network: Network) -> None:
    asker, holder = network.node("asker"), network.node("holder")
    with _listening(holder) as listener:
        assert _connects(asker, holder, BACK_S) == "yes"
        holder.blackhole(asker)
        assert _connects(asker, holder) == "silence"
        holder.unblackhole(asker)
        assert _connects(asker, holder, BACK_S) == "yes"
        listener.close()
        assert _connects(asker, holder) == "refused"


def test_cables_and_switches(network: Network) -> None:
    one, two = network.node("one"), network.node("two")
    with _listening(two) as listener:
        two.link.detach()
        assert _connects(one, two) == "silence"
        network.bridge("br1")
        two.link.attach("br1")
        one.link.attach("br1")
        assert _connects(one, two, BACK_S) == "yes"
        two.link.pull()
        assert "NO-CARRIER" in two.space.ip("link", "show", "eth0")
        two.link.plug()
        assert _connects(one, two, BACK_S) == "yes"
        listener.close()


def test_an_interface_that_was_off_is_itself_again(network: Network) -> None:
    one, two = network.node("one"), network.node("two")
    with _listening(two) as listener:
        two.interface(up=False)
        assert _connects(one, two) == "silence"
        two.interface(up=True)
        assert _connects(one, two, BACK_S) == "yes"
        wait = heard(one, MDNS)
        tell_group(two, MDNS, b"back")
        assert wait(2) == b"back"
        listener.close()


def test_a_small_mtu_still_carries(network: Network) -> None:
    one, two = network.node("one"), network.node("two")
    two.link.set_mtu(600)
    assert "mtu 600" in two.space.ip("link", "show", "eth0")
    assert mbit_between(one, two, MIB) > 1


def test_nothing_is_reachable_from_outside_or_reaches_out(network: Network) -> None:
    node = network.node("alone")
    assert "default" not in node.space.ip("route")
    own = run_ip("-o", "link")
    assert "port1" not in own
    assert "br0" not in own


def test_names_are_removed_when_a_test_fails_with_processes_running() -> None:
    with pytest.raises(ZeroDivisionError), Network() as network:
        node = network.node("busy")
        child = subprocess.Popen(node.space.command(sys.executable, "-c", "import time; time.sleep(60)"))
        _until(lambda: child.pid in node.space.pids())
        names = {node.space.name, node.space.name.replace("busy", "switch")}
        assert names <= set(our_namespaces())
        raise ZeroDivisionError
    assert child.wait(5) == -9
    assert not names & set(our_namespaces())


def test_what_a_killed_run_left_is_swept() -> None:
    killed = (
        "import os, signal, subprocess, sys; from tests.lab.network import Network\n"
        "node = Network().__enter__().node('left')\n"
        "child = subprocess.Popen(node.space.command('sleep', '60'), stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.Popen([sys.executable, "-c", killed], stdout=subprocess.PIPE, text=True)
    said, _ = run.communicate(timeout=20)
    sweep()
    _until(lambda: not our_namespaces(run.pid))  # tests of another process may sweep it at the same moment
    _until(lambda: not _alive(int(said)))


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _listening(node: Node) -> socket.socket:  # a `with` closes it also where the test fails
    made = node.space.socket()
    made.bind(("0.0.0.0", 7000))
    made.listen()
    return made


def _connects(asker: Node, holder: Node, limit_s: float = 0.8) -> str:
    with asker.space.socket() as made:
        made.settimeout(limit_s)
        try:
            made.connect((holder.address, 7000))
        except TimeoutError:
            return "silence"
        except ConnectionRefusedError:
            return "refused"
    return "yes"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
