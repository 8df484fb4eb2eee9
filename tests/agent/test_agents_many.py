"""Rows 22, 65 and 66, and many at once: real agents with wrong clocks, few descriptors, other protocols, taken ports."""

from __future__ import annotations

import asyncio
import resource
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from edgecdn.lan_wire import PROTOCOL, PROTOCOL_HEADER
from tests.agent.agents import Agent, eventually, lab
from tests.agent.speaking_peer import speaking, until
from tests.faults.machine import contents, files_in
from tests.hub import Generated, TestHub, make_repo

MIB = 1 << 20
TEN_YEARS_S = 10 * 365 * 86400.0
_CONNECTS_S = 1.0
NOBODY = "http://127.0.0.1:9"


async def test_22_ports_that_are_taken_are_not_announced(tmp_path: Path) -> None:
    """Neighbours are told where an agent really is, by every way there is."""
    with _taken_ports() as (lan, swarm):
        async with lab(tmp_path, NOBODY) as made:
            one = await made.agent("one", lan_listen=f"127.0.0.1:{lan}", swarm_listen=f"127.0.0.1:{swarm}")
            hello = await one.hello()
            assert hello.lan_port == int(one.lan.rpartition(":")[2]) != lan
            assert hello.swarm_port == int(one.listener("swarm").rpartition(":")[2]) != swarm
            other = await made.agent("other")
            third = made.machine("third")
            await third.start_agent(peers=(other.lan,))  # is told of the first by the second
            for agent in made.agents:
                await agent.knows(2)


@contextmanager
def _taken_ports() -> Iterator[tuple[int, int]]:
    """Two ports somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        yield one.getsockname()[1], two.getsockname()[1]


@pytest.mark.parametrize("off_s", [-TEN_YEARS_S, TEN_YEARS_S, -100 * TEN_YEARS_S])
async def test_65_a_peer_whose_clock_is_far_off(tmp_path: Path, off_s: float) -> None:
    """Nothing that agents do with each other hangs on what time it is."""
    clock = max(0.0, time.time() + off_s)
    async with speaking(name="elsewhen", fields={"time": clock}) as peer, lab(tmp_path, NOBODY) as made:
        agent = made.machine("here")
        await agent.start_agent(peers=(peer.address,))
        await agent.knows(1)
        (told,) = await agent.get("/edgecdn/v1/peers")
        assert told["name"] == "elsewhen"
        assert told["last_seen_s"] < 5
        assert "Traceback" not in agent.log


async def test_65_what_was_remembered_under_another_clock_is_asked_again(tmp_path: Path) -> None:
    repo = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(65, 8 * MIB)})
    digest = repo.commits[repo.main].files["m.safetensors"].sha256
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        holder = await made.agent("holder")
        await holder.fetch_here("org/name")
        await holder.gives(digest)
        await holder.stop_agent()
        with sqlite3.connect(holder.home / "catalog.sqlite") as db:
            db.execute("UPDATE sharing SET checked_at = ?", (time.time() + TEN_YEARS_S,))
        db.close()
        await made.start(holder)
        await holder.gives(digest)
        taker = await made.agent("taker")
        await taker.knows(1)
        fetched = await taker.fetch_here("org/name")
        assert files_in(fetched.path) == contents(repo)
        assert fetched.bytes_by_source["lan"] == 8 * MIB + 2


@pytest.mark.parametrize("listener", ["lan", "local"])
async def test_66_a_thousand_connections_and_few_descriptors(tmp_path: Path, listener: str) -> None:
    with _own_descriptors(4096):
        async with lab(tmp_path, NOBODY) as made:
            agent, other = await made.agent("one"), await made.agent("other")
            await other.knows(1)
            resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (256, 256))
            host, _, port = agent.listener(listener).rpartition(":")
            # Once, for what is made at the first rush; then the rush that is measured
            await _rush(host, int(port))
            await _answers(agent)
            before = psutil.Process(agent.pid).memory_info().rss
            for _ in range(2):
                await _rush(host, int(port))
            await _answers(agent)
            grown = psutil.Process(agent.pid).memory_info().rss - before
            assert grown < 0.05 * before + MIB
            assert await agent.knows(1, 15) >= 0, "and the others are peers still, or again"
            assert agent.running
            assert agent.log.count("Traceback") == agent.log.count("socket.accept() out of system resource")


async def test_66_an_agent_takes_the_descriptors_it_may_have(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with lab(tmp_path, NOBODY) as made:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        try:
            agent = await made.agent("one")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        wanted = min(8192, hard) if hard != resource.RLIM_INFINITY else 8192
        assert resource.prlimit(agent.pid, resource.RLIMIT_NOFILE) == (max(1024, wanted), hard)


async def _rush(host: str, port: int) -> None:
    """A thousand connections, each of which begins a request and never ends it; then all are gone."""

    async def one() -> asyncio.StreamWriter | None:
        try:
            async with asyncio.timeout(_CONNECTS_S):
                _, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET /edgecdn/v1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\n")
                return writer
        except (OSError, TimeoutError):
            return None

    writers = await asyncio.gather(*(one() for _ in range(1000)))
    for writer in writers:
        if writer is not None:
            writer.transport.abort()


async def _answers(agent: Agent) -> None:
    async def both() -> bool:
        try:
            status, _ = await agent.ask("GET", "/hello")
            return status == 200 and bool(await agent.get("/healthz"))
        except (TimeoutError, aiohttp.ClientError):
            return False

    await eventually(both, 20, "it answers again")


@contextmanager
def _own_descriptors(count: int) -> Iterator[None]:
    """So many for the process of the tests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(count, hard)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_an_agent_of_the_next_protocol_that_still_speaks_ours(tmp_path: Path) -> None:
    fields = {"protocol": PROTOCOL + 1, "oldest": PROTOCOL, "colour": "of a field nobody knows"}
    async with speaking(name="newer", fields=fields) as newer, lab(tmp_path, NOBODY) as made:
        agent = made.machine("ours")
        await agent.start_agent(peers=(newer.address,))
        await agent.knows(1)


async def test_an_agent_that_speaks_no_protocol_of_ours_is_told_so_and_left_alone(tmp_path: Path) -> None:
    fields = {"protocol": PROTOCOL + 2, "oldest": PROTOCOL + 1}
    async with speaking(name="much-newer", fields=fields) as newer, lab(tmp_path, NOBODY) as made:
        agent = made.machine("ours")
        await agent.start_agent(peers=(newer.address,))
        await until(lambda: "an agent of another protocol" in agent.log)
        assert f"speaks protocols {PROTOCOL + 1} to {PROTOCOL + 2}" in agent.log
        assert await agent.get("/edgecdn/v1/peers") == []
        url = f"http://{agent.lan}/edgecdn/v1/hello"
        async with aiohttp.ClientSession() as session:
            for version, code in ((PROTOCOL, 200), (PROTOCOL + 1, 426)):
                async with session.get(url, headers={PROTOCOL_HEADER: str(version)}) as answer:
                    assert answer.status == code
                    assert answer.headers[PROTOCOL_HEADER] == str(PROTOCOL)


async def test_a_dozen_agents_all_see_all_and_share_one_copy(tmp_path: Path) -> None:
    size = 8 * MIB
    repo = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(12, size)})
    digest = repo.commits[repo.main].files["m.safetensors"].sha256
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        first = await made.agent("first")
        await first.fetch_here("org/name")
        others = [made.machine(f"agent{n}") for n in range(11)]
        await asyncio.gather(*(agent.start_agent(peers=(first.lan,)) for agent in others))
        await asyncio.gather(*(agent.knows(11, 20) for agent in made.agents))
        await first.gives(digest)
        hub.stats.reset()
        async with asyncio.timeout(30):
            fetched = await asyncio.gather(*(agent.fetch_here("org/name") for agent in others))
        for one in fetched:
            assert files_in(one.path) == contents(repo)
        assert hub.stats.total <= 0.1 * size
