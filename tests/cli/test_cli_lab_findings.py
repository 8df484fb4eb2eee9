"""What a person is told: a fetch that goes on, one that is stopped, peers that do not answer, a home on a full disk."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgecdn.agent_link import AgentAddress, AgentLink, find_agent
from edgecdn.cache.safedir import disk_errors
from edgecdn.cli.fetch import _from_peers_alone
from edgecdn.control import JobInfo
from edgecdn.errors import HomeFull, HomeReadOnly, NoSpace, ReadOnlyStore, Unreachable
from edgecdn.events import Kind
from edgecdn.settings_values import Listen
from edgecdn.upkeep import diagnosis
from edgecdn.upkeep.diagnosis import Check, State
from edgecdn.upkeep.named_peers import check_named
from tests.agent.agent_process import agent_process
from tests.agent.speaking_peer import speaking
from tests.hub.process import ROOT

LIMIT_S = 10.0


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    for name in [n for n in os.environ if n.startswith(("EDGECDN_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGECDN_HOME", str(tmp_path / "home"))
    with agent_process(tmp_path / "home") as (process, _):
        yield process


@contextmanager
def began(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command in the background; killed in the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "edgecdn", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, err


async def jobs(address: AgentAddress) -> tuple[JobInfo, ...]:
    async with AgentLink(address) as link:
        return await link.jobs()


def waited_for(home: Path, askers: int) -> None:
    """Until so many wait for the fetch."""

    async def look() -> None:
        address = find_agent(home)
        assert address is not None
        async with asyncio.timeout(LIMIT_S):
            while [j.askers for j in await jobs(address) if j.state == "running"] != [askers]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    asyncio.run(look())


def test_ctrl_c_says_that_the_agent_goes_on(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    home = tmp_path / "home"
    with began("fetch", "slow-1", "--keep", "--quiet") as kept:
        waited_for(home, 1)
        kept.send_signal(signal.SIGINT)
        code, err = ended(kept)
    assert code == 130
    assert "agent goes on with the fetch" in err
    assert "edgecdn top" in err
    assert "Stopped" not in err
    waited_for(home, 0)
    with began("fetch", "slow-1", "--quiet") as stays, began("fetch", "slow-1") as leaves:
        waited_for(home, 2)
        assert leaves.stderr is not None
        leaves.stderr.readline()  # it has heard of its job, which is what it leaves
        leaves.send_signal(signal.SIGINT)
        code, err = ended(leaves)
        assert (code, "1 other waits for it" in err) == (130, True)
        with began("cancel", "slow-1") as refused:
            code, err = ended(refused)
        assert code == 2
        assert "1 command still waits for it" in err
        stays.send_signal(signal.SIGINT)
        code, err = ended(stays)
    assert code == 130
    assert "Stopped." in err


def test_a_kept_fetch_can_be_cancelled(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with began("fetch", "slow-1", "--keep", "--quiet") as kept:
        waited_for(tmp_path / "home", 1)
        kept.send_signal(signal.SIGINT)
        ended(kept)
    with began("cancel", "slow-1") as cancel:
        code, err = ended(cancel)
    assert code == 0
    assert "slow-1 is stopped" in err
    with began("cancel", "slow-1") as again:
        code, err = ended(again)
    assert code == 2
    assert "no fetch 'slow-1' under way" in err


def test_an_agent_that_is_stopped_says_so(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with began("fetch", "slow-1", "--quiet") as waiting:
        waited_for(tmp_path / "home", 1)
        agent.send_signal(signal.SIGTERM)
        code, err = ended(waiting)
    assert code == 8
    assert "it was stopped during the fetch" in err
    assert "goes on when the agent is back" in err


async def test_each_named_peer_gets_a_line() -> None:
    async with speaking() as peer:
        with socket.socket() as closed, socket.create_server(("127.0.0.1", 0)) as silent:
            closed.bind(("127.0.0.1", 0))
            host, _, port = peer.address.rpartition(":")
            named = [
                Listen(host, int(port)),
                Listen("127.0.0.1", closed.getsockname()[1]),
                Listen("127.0.0.1", silent.getsockname()[1]),
                Listen("nobody.invalid", 8378),
            ]
            found = await asyncio.to_thread(lambda: list(check_named(named)))
    assert [one.state for one in found] == [State.OK, State.WARN, State.WARN, State.WARN]
    words = ["answers in", "no agent listens", "no answer within", "is not known here"]
    assert [word in one.detail for word, one in zip(words, found, strict=True)] == [True] * 4, found


async def test_a_named_peer_that_is_something_else() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-x\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        (found,) = await asyncio.to_thread(lambda: list(check_named([Listen("127.0.0.1", port)])))
    assert "not as an agent's LAN port" in found.detail


@pytest.mark.parametrize(
    ("number", "ours", "other"), [(errno.EROFS, HomeReadOnly, ReadOnlyStore), (errno.ENOSPC, HomeFull, NoSpace)]
)
def test_a_home_that_cannot_be_written_is_called_so(
    number: int, ours: type[Exception], other: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECDN_HOME", str(tmp_path))
    for path in (tmp_path, tmp_path / "config.toml", tmp_path / "partials" / "x" / "job.lock"):
        with pytest.raises(ours) as caught, disk_errors(path):
            raise OSError(number, "said")
        assert f"home, {tmp_path}" in str(caught.value)
        assert "EDGECDN_HOME=DIR" in caught.value.remedy  # type: ignore[attr-defined]
        assert "cache.dir" not in caught.value.remedy  # type: ignore[attr-defined]
    with pytest.raises(other) as caught, disk_errors(tmp_path / "hub" / "models--a--b"):
        raise OSError(number, "said")
    assert type(caught.value) is other


def test_a_full_disk_is_no_broken_catalog() -> None:
    assert diagnosis.catalog("not readable", rebuilt=False).state is State.FAIL
    told = diagnosis.catalog("not readable", rebuilt=False, home_fault="the disk of the home is full")
    assert told == Check("catalog", State.WARN, "cannot be looked at: the disk of the home is full", told.remedy)
    assert "move" not in told.remedy
    space = diagnosis.space("home", Path("/h"), 0, 10**9)
    assert "EDGECDN_HOME" in space.remedy
    assert "cache.dir" not in space.remedy


def test_peers_alone_that_have_nothing_are_not_the_network() -> None:
    error = Unreachable("model.safetensors: nobody offers it")
    told = _from_peers_alone(frozenset({Kind.CACHE, Kind.LAN}), error)
    assert "no peer gives it" in told.message
    assert "--from" in told.remedy
    assert _from_peers_alone(frozenset(Kind), error) is error
    hubs = Unreachable("https://huggingface.co does not answer")
    assert _from_peers_alone(frozenset({Kind.CACHE, Kind.LAN}), hubs) is hubs
