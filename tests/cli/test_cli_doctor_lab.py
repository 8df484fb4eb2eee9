"""`doctor` on the lab, and `doctor --speed`: real agents as processes, and peers with something wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from edgecdn.cli.main import run
from edgecdn.control import PeerInfo
from edgecdn.upkeep.diagnosis import State
from edgecdn.upkeep.lab_checks import _judged
from edgecdn.upkeep.multicast import Heard
from tests.agent.agents import Agent, eventually, lab
from tests.agent.speaking_peer import speaking
from tests.faults.machine import ROOT
from tests.hub import HubProcess

LIMIT_S = 30.0


async def edgecdn(agent: Agent, *arguments: str, **settings: str) -> tuple[int, str, str]:
    """A command on an agent's machine: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edgecdn", *arguments,
        cwd=ROOT, env=agent.variables(**settings), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(LIMIT_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def doctor(agent: Agent, **settings: str) -> dict[str, list[dict[str, Any]]]:
    """Its findings by what was checked. Nothing of the lab makes it fail: a fetch works without one."""
    code, out, err = await edgecdn(agent, "doctor", "--json", **settings)
    assert code == 0, err
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(out):
        assert row["state"] == "ok" or row["remedy"]
        found.setdefault(row["check"], []).append(row)
    return found


def words(found: dict[str, list[dict[str, Any]]], check: str) -> str:
    """State and words of what was found."""
    return "; ".join(f"{row['state']}: {row['detail']}" for row in found[check])


async def test_two_that_reach_each_other(tmp_path: Path, hub: HubProcess) -> None:
    async with lab(tmp_path, hub.url) as made:
        one, two = await made.agent("one"), await made.agent("two")
        await asyncio.gather(one.knows(1), two.knows(1))

        async def told() -> bool:
            return two.lan in (await one.hello()).peers and one.lan in (await two.hello()).peers

        await eventually(told, what="both tell of each other")
        for agent in (one, two):
            found = await doctor(agent)
            assert words(found, "agent") == f"ok: runs (process {agent.pid})"
            assert words(found, "port lan") == f"ok: {agent.lan}"
            assert words(found, "port swarm") == f"ok: {agent.listener('swarm')}"
            assert words(found, "multicast").startswith("ok: discovery.mdns is off")
            assert re.fullmatch(r"ok: 1 of 1 answer: \S+ \([0-9.]+ ms\)", words(found, "peers"))
            assert not [check for check in found if check.startswith("peer ")]
        code, out, _ = await edgecdn(one, "peers", "--json")
        assert code == 0
        assert [set(peer) for peer in json.loads(out)] == [{"id", "name", "addresses", "version", "last_seen_s"}]


async def test_without_an_agent_and_alone(tmp_path: Path, hub: HubProcess) -> None:
    async with lab(tmp_path, hub.url) as made:
        alone = made.machine("alone")
        assert "edgecdn agent start" in words(await doctor(alone), "agent")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            await made.start(alone, lan_listen=f"127.0.0.1:{port}")
            found = await doctor(alone, lan_listen=f"127.0.0.1:{port}", swarm_listen="off")
        assert words(found, "port lan").startswith(f"warn: {alone.lan}; 127.0.0.1:{port} is set")
        assert words(found, "port swarm") == f"warn: {alone.listener('swarm')}; it is set to off"
        assert words(found, "peers") == "warn: none is known"


async def test_a_peer_with_a_closed_swarm_port_a_wrong_clock_and_no_way_back(tmp_path: Path, hub: HubProcess) -> None:
    with socket.socket() as closed:  # bound, so nobody else's; not listening
        closed.bind(("127.0.0.1", 0))
        fields = {"swarm_port": closed.getsockname()[1], "time": time.time() + 7200}
        async with lab(tmp_path, hub.url) as made, speaking(fields=fields) as peer:
            agent = made.machine("one", discovery_peers=peer.address)
            await made.start(agent)
            await agent.knows(1)
            found = await doctor(agent)
    assert words(found, "peers").startswith("ok: 1 of 1 answer")
    swarm, way_back, clock = (row["detail"] for row in found["peer bench-2"])
    assert re.match(r"its swarm port \(127.0.0.1:\d+\) takes no connection", swarm)
    assert "does not know this machine" in way_back
    assert clock == "its clock is 120 min ahead of this one"


async def test_a_peer_that_does_not_answer(tmp_path: Path, hub: HubProcess) -> None:
    async with lab(tmp_path, hub.url) as made:
        one, two = await made.agent("one"), await made.agent("two")
        await one.knows(1)
        os.kill(two.pid, signal.SIGSTOP)
        try:
            found = await doctor(one)
        finally:
            os.kill(two.pid, signal.SIGCONT)
        [(check, rows)] = [(check, rows) for check, rows in found.items() if check.startswith("peer ")]
        assert check.startswith("peer ")
        assert rows[0]["detail"] == f"its LAN port ({two.lan}) does not answer: no answer within 3 s"
        assert f"ufw allow {two.lan.partition(':')[2]}/tcp" in rows[0]["remedy"]


async def test_multicast_on_loopback(tmp_path: Path, hub: HubProcess) -> None:
    settings = {"discovery_mdns": "on", "lan_allow": "127.0.0.0/8"}
    async with lab(tmp_path, hub.url, **settings) as made:
        one = await made.agent("one")
        await made.agent("two")
        await one.knows(1)
        assert re.match(r"ok: \d+ other agents? answered at 127.0.0.1", words(await doctor(one), "multicast lo"))


def test_a_silence_is_suspicious_only_where_a_peer_is_known() -> None:
    heard = Heard("eth0", IPv4Interface("10.1.0.4/24"), {"a" * 32})
    near = PeerInfo("b" * 32, "bench", ("10.1.0.9",), "1", 0.0, "10.1.0.9", 8378)
    far = PeerInfo("c" * 32, "other", ("10.2.0.9",), "1", 0.0, "10.2.0.9", 8378)
    assert _judged(heard, "a" * 32, [far]).state is State.OK
    silent = _judged(heard, "a" * 32, [far, near])
    assert (silent.state, silent.detail) == (State.WARN, "no answer, though bench is there")
    assert _judged(heard, "", [near]).detail == "1 other agent answered at 10.1.0.4"
    heard.fault = "Network is unreachable"
    assert _judged(heard, "", []).state is State.WARN


async def test_speed(tmp_path: Path, hub: HubProcess) -> None:
    async with lab(tmp_path, hub.url) as made:
        one, two = await made.agent("one"), await made.agent("two", limits_upload="8MB/s")
        await one.knows(1)
        name = (await one.get("/edgecdn/v1/peers"))[0]["name"]
        code, out, err = await edgecdn(one, "doctor", "--speed", name)
        assert code == 0, err
        assert re.fullmatch(r"1 connection: [0-9.]+ MB/s .*\n4 connections: [0-9.]+ MB/s .*\n", out)
        assert "measure there" in err
        code, out, err = await edgecdn(two, "doctor", "--speed", two.lan, "--json")  # by address, and within its limit
        assert code == 0, err
        found = json.loads(out)
        assert (found["address"], set(found["rates"])) == (two.lan, {"1", "4"})
        assert 2e6 < found["best"] < 16e6
        assert (await edgecdn(one, "doctor", "--speed", "nobody"))[0] == 2
        assert (await edgecdn(one, "doctor", "--speed", "127.0.0.1:9"))[0] == 6
        await one.stop_agent()
        assert (await edgecdn(one, "doctor", "--speed", name))[0] == 8


@pytest.mark.parametrize("text", ["", "x", "10.0.0.1"])
def test_speed_of_what_is_no_peer(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECDN_HOME", str(tmp_path))
    assert run(["doctor", "--speed", text]) == 8
