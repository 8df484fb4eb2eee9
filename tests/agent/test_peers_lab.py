"""Whole agents as far as finding each other goes: LAN server, registry and discovery, on loopback."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edgecdn.lan_wire import OLDEST, PROTOCOL, Asker, Hello
from edgecdn.settings_values import Listen
from edgecdn_agent.lab.candidates import Timing
from edgecdn_agent.lab.discovery import Announcement, Discovery
from edgecdn_agent.lab.peers import PeerChanged, PeerJoined, Peers
from edgecdn_agent.lab.reach import Reach
from edgecdn_agent.lan.guard import Limits
from edgecdn_agent.lan.parts import LanParts
from edgecdn_agent.lan.server import LanServer
from edgecdn_agent.listeners import Listeners
from tests.agent.lan_lab import FolderShelf
from tests.agent.speaking_peer import SpeakingPeer, until
from tests.agent.test_discovery import LO
from tests.agent.test_peers import registry


@dataclass
class Agent:
    """One agent of the lab."""

    id: str
    port: int
    peers: Peers
    changes: Listeners[None]

    def knows(self, *others: Agent) -> bool:
        return {p.id for p in self.peers.all()} == {other.id for other in others}


@asynccontextmanager
async def agent(
    folder: Path, named: tuple[int, ...] = (), limits: Limits | None = None, *, mdns: bool = False
) -> AsyncIterator[Agent]:
    """An agent with its own id and port; `named`: ports of agents it is told of."""
    agent_id, changes, reach = f"{random.getrandbits(128):032x}", Listeners[None](), Reach((), [LO])
    known: list[Peers] = []

    def hello() -> Hello:
        told = known[0].told() if known else []
        return Hello(PROTOCOL, OLDEST, agent_id, "bench", "1.0", max(port, 1), 0, time.time(), told)

    def on_change(callback: Any) -> Any:
        return changes.subscribe(lambda _: callback())

    port = 0
    parts = LanParts(
        shelf=FolderShelf(folder),
        hello=hello,
        allows=reach.allows,
        told_peers=lambda: known[0].told() if known else [],
        suggest=lambda host, at: known[0].suggest(host, at, by=host) if known else None,
        changes=[on_change],
    )
    server = LanServer(parts, limits)
    async with AsyncExitStack() as stack:
        port = (await server.start(Listen("127.0.0.1", 0))).port
        stack.push_async_callback(server.close)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        targets = [Listen("127.0.0.1", other) for other in named]
        known.append(Peers(session, Asker(agent_id, port), reach, targets, "bench"))
        works = [known[0].run()]
        if mdns:
            me = Announcement(agent_id, "bench", "1.0", "127.0.0.1", port, 0)
            works.append(Discovery(me, known[0].suggest, reach.allows, [LO]).run())
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            yield Agent(agent_id, port, known[0], changes)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def test_one_names_the_other_and_both_know(tmp_path: Path) -> None:
    async with agent(tmp_path) as one, agent(tmp_path, (one.port,)) as two:
        assert await until(lambda: one.knows(two) and two.knows(one)) <= 3
        told: list[Any] = []
        two.peers.subscribe(told.append)
        one.changes.tell(None)
        assert await until(lambda: PeerChanged in map(type, told)) <= 3


async def test_agents_that_know_one_come_to_know_all(tmp_path: Path) -> None:
    async with agent(tmp_path) as one, agent(tmp_path, (one.port,)) as two, agent(tmp_path, (one.port,)) as three:
        await until(lambda: one.knows(two, three) and two.knows(one, three) and three.knows(one, two))


async def test_agents_that_nobody_told_anything(tmp_path: Path) -> None:
    async with agent(tmp_path, mdns=True) as one:
        await asyncio.sleep(0.7)  # its announcements are over
        async with agent(tmp_path, mdns=True) as two:
            assert await until(lambda: one.knows(two) and two.knows(one)) <= 3
        assert await until(lambda: not one.peers.all()) <= 5


async def test_a_link_outlives_the_limits_of_requests(tmp_path: Path) -> None:
    limits = Limits(idle_s=0.2, stall_s=0.2, beat_s=0.05)
    async with agent(tmp_path, limits=limits) as one, agent(tmp_path, (one.port,)) as two:
        await until(lambda: two.knows(one))
        told: list[Any] = []
        two.peers.subscribe(told.append)
        await asyncio.sleep(1.0)
        assert told == []


@pytest.mark.slow
async def test_twenty_agents(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(agent(tmp_path))
        agents = [first]
        for _ in range(19):
            agents.append(await stack.enter_async_context(agent(tmp_path, (first.port,))))
        took_s = await until(lambda: all(len(a.peers.all()) == 19 for a in agents), 30)
        assert took_s <= 10


@contextmanager
def process() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A peer in a process of its own, that beats as agents do."""
    running = subprocess.Popen([sys.executable, "-c", _PEER], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert running.stdout is not None
        yield running, int(running.stdout.readline())
    finally:
        running.kill()
        running.wait()
        assert running.stdout is not None
        running.stdout.close()


_PEER = f"""
import asyncio
from {SpeakingPeer.__module__} import SpeakingPeer
async def main():
    peer = SpeakingPeer(beat_s=5.0)
    await peer.start()
    print(peer.port, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "limit_s"), [(signal.SIGKILL, 5), (signal.SIGSTOP, 15)])
async def test_a_process_that_is_killed_or_stopped_is_gone(sent: signal.Signals, limit_s: float) -> None:
    with process() as (other, port):
        async with registry(Timing()) as peers:
            peers.suggest("127.0.0.1", port)
            assert await until(peers.all) <= 3
            os.kill(other.pid, sent)
            assert await until(lambda: not peers.all(), 20) <= limit_s
            if sent is signal.SIGSTOP:
                os.kill(other.pid, signal.SIGCONT)
                await until(lambda: peers.kinds().count(PeerJoined) == 2)
