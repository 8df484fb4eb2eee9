"""Taking part with members that come and go, promise and do not keep: nothing of it ends a fetch, or holds it up."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import cast

import pytest

from edgecdn.digest import Digest, DigestKind
from edgecdn.events import Kind
from edgecdn.lan_wire import Asker
from edgecdn.spans import Span
from edgecdn.transfer.carrier import Cargo, Giver
from edgecdn_agent.ingest.book import Book
from edgecdn_agent.ingest.carrier import LabCarrier
from edgecdn_agent.ingest.deciding import Ask, Policy, Run, Wait, next_run, overdue
from edgecdn_agent.ingest.link import IngestClient
from edgecdn_agent.ingest.reading import Reading
from edgecdn_agent.ingest.session import Session
from edgecdn_agent.ingest.taking import Taking
from edgecdn_agent.ingest.units import Units
from edgecdn_agent.ingest.wire import LeaseAnswer, LeaseAsk, Told
from edgecdn_agent.ingest.world import Presence, UnitMap, World, rank_of
from edgecdn_agent.lab.peers import Peer, Peers
from edgecdn_agent.swarm.carrier import SwarmCarrier
from tests.unit.made import REPO, lfs_file, manifest_of

MIB = 1 << 20
OTHER, THIRD = "b" * 32, "c" * 32
PEER = Peer(OTHER, "bench-2", "1", "10.0.0.2", 8378, 0, ("10.0.0.2",), 0.0, 0.0)


class _Peers:
    def __init__(self, me: str) -> None:
        self.me = Asker(me, 1)
        self.there = [PEER]

    def all(self) -> list[Peer]:
        return self.there

    def get(self, peer_id: str) -> Peer | None:
        return PEER if peer_id == OTHER else None


class _Link:
    """A member that answers as it is told to; without an answer, never."""

    def __init__(self) -> None:
        self.answers: list[LeaseAnswer] = []
        self.asked = 0
        self.streams = 0
        self.says: Told | None = None

    async def unit(self, *_: object) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def ask(self, _place: Peer, _digest: Digest, _ask: LeaseAsk) -> LeaseAnswer:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def give_back(self, *_: object) -> None:
        """Thank you."""

    async def stream(self, *_: object) -> AsyncGenerator[Told, None]:
        self.streams += 1
        if self.says is None:
            await asyncio.Event().wait()
        assert self.says is not None
        yield self.says


class _Line:
    def __init__(self) -> None:
        self.reads = 0

    def giver(self) -> Giver | None:
        return Giver("hub", Kind.ORIGIN)

    async def read(self, _giver: Giver, span: Span) -> AsyncGenerator[bytes, None]:
        self.reads += 1
        yield bytes(len(span))


@dataclass
class _Made:
    """A session of four units, of which we lack all; `first`: whether we rank before the other member."""

    folder: Path
    first: bool = False
    now_s: float = 100.0
    link: _Link = field(default_factory=_Link)
    line: _Line = field(default_factory=_Line)
    here: list[Span] = field(default_factory=list)
    reads: int = 0
    told: list[str] = field(default_factory=list)

    async def begin(self) -> Session:
        self.data = Random(3).randbytes(4 * MIB)
        digest = Digest(DigestKind.SHA256, hashlib.sha256(self.data).hexdigest())
        path = self.folder / "partial"
        path.write_bytes(self.data)
        ids = (f"{number:032x}" for number in range(1000))
        me = next(one for one in ids if (rank_of(digest, one) < rank_of(digest, OTHER)) is self.first)
        self.peers = _Peers(me)
        self.book = Book(cast("Peers", self.peers), lambda _: True, Policy(), lambda: self.now_s)
        session = await self.book.begin(REPO, digest, len(self.data), path)
        assert session is not None
        self.session = session
        entry = lfs_file("m.safetensors", self.data)

        def read(view: memoryview, start: int) -> int:
            self.reads += 1
            view[:] = self.data[start : start + len(view)]
            return len(view)

        async def nothing(*_: object) -> None:
            """Taken."""

        def have() -> Sequence[Span]:
            return self.here

        self.cargo = Cargo(
            manifest_of(entry), entry, path, have, read, nothing, nothing, nothing, self.line, lambda: True,
            self.told.append, lambda _tree: None,
        )  # fmt: skip
        return self.session

    @property
    def client(self) -> IngestClient:
        return cast("IngestClient", self.link)

    def taking(self) -> Taking:
        return Taking(self.session, self.cargo, cast("Peers", self.peers), self.client, lambda: self.now_s)

    def carrier(self) -> LabCarrier:
        swarm = cast("SwarmCarrier", _NoSwarm())
        return LabCarrier(swarm, self.book, self.client, cast("Peers", self.peers), lambda _: True)


class _NoSwarm:
    name = "peers (swarm)"

    def takes(self, _entry: object) -> bool:
        return False


async def test_a_member_that_leaves_before_its_unit_is_asked_for_ends_nothing(tmp_path: Path) -> None:
    made = _Made(tmp_path)
    session = await made.begin()
    world, taking = session.world, made.taking()
    world.join(OTHER, 100.0)
    for unit in range(2):
        world.has(OTHER, unit, b"x" * 32, read=True, now_s=100.0)
    async with asyncio.TaskGroup() as group:
        taking._begin_pulls(group, 100.0)
        assert world.fetching == {0, 1}
        world.leave(OTHER, Presence.GONE, 100.0)
        await asyncio.sleep(0)
        for pull in taking._pulls:
            pull.cancel()
    assert (world.fetching, world.members[OTHER].pulls) == (set(), 0)


async def test_nobody_waits_for_a_unit_that_does_not_come_once_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _Made(tmp_path)
    session = await made.begin()
    taking = made.taking()
    monkeypatch.setattr("edgecdn_agent.ingest.listening.Listening.start", lambda *_: None)
    monkeypatch.setattr("edgecdn_agent.ingest.reading.Reading.begin", lambda *_: None)
    session.world.join(OTHER, 100.0)
    session.world.has(OTHER, 1, b"x" * 32, read=True, now_s=100.0)
    running = asyncio.create_task(taking.run())
    while not session.world.fetching:
        await asyncio.sleep(0.01)
    made.now_s += 5.0
    while not made.told:
        await asyncio.sleep(0.01)
    made.now_s += 16.0
    async with asyncio.timeout(10):
        assert await running is False
    assert made.told == ["Nothing of m.safetensors comes over the line, and the lab has no more of it yet."]
    assert (session.world.fetching, session.world.members[OTHER].pulls) == (set(), 0)


async def test_a_failure_of_ours_costs_the_fetch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _Made(tmp_path)
    session = await made.begin()
    session.joined.set()

    async def fails(_taking: Taking) -> bool:
        raise KeyError(7)

    monkeypatch.setattr("edgecdn_agent.ingest.carrier.Taking.run", fails)
    assert await made.carrier().carry(made.cargo) is False
    assert made.book.get(session.world.digest) is None


async def test_where_nothing_came_of_others_the_sources_get_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often somebody listens anew, and the longer the more often it was in vain."""
    monkeypatch.setattr("edgecdn_agent.ingest.carrier._RESTS_S", 0.2)
    made = _Made(tmp_path)
    session = await made.begin()
    carrier, clock = made.carrier(), asyncio.get_running_loop().time
    for least_s in (0.2, 0.4):
        session.rest()
        session.heard_from(OTHER, "10.0.0.2", 8378)
        began_s = clock()
        await carrier.called_for(made.cargo)
        assert clock() - began_s >= least_s


async def test_who_listens_and_is_no_peer_does_not_end_the_sources_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecdn_agent.ingest.carrier._RESTS_S", 0.05)
    made = _Made(tmp_path)
    session = await made.begin()
    made.peers.there.clear()
    session.subscribe(lambda _: None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await made.carrier().called_for(made.cargo)


async def test_a_peer_that_answers_late_is_waited_for_once(tmp_path: Path) -> None:
    made = _Made(tmp_path)
    session = await made.begin()
    carrier = made.carrier()
    for _ in range(3):
        assert not await carrier._others_take(session.world.digest)
    assert made.link.streams == 1
    made.peers.there.append(Peer(THIRD, "bench-3", "1", "10.0.0.3", 8378, 0, ("10.0.0.3",), 0.0, 0.0))
    made.link.says = Told(size=4 * MIB, done=False)
    assert await carrier._others_take(session.world.digest)


async def test_what_is_here_is_hashed_while_the_sources_go_on_and_once(tmp_path: Path) -> None:
    made = _Made(tmp_path)
    session = await made.begin()
    session.joined.set()
    made.here = [Span(0, MIB), Span(2 * MIB, 3 * MIB)]
    await made.carrier().called_for(made.cargo)
    assert (sorted(session.layers), made.reads) == ([0, 2], 2)
    made.here = [Span(0, 3 * MIB)]
    await Units(session, made.cargo, lambda: 100.0).prepare()
    assert (session.world.mine, made.reads) == ({0, 1, 2}, 3)
    session.lost([1])
    assert sorted(session.layers) == [0, 2]


async def test_what_we_say_a_unit_is_is_what_we_have(tmp_path: Path) -> None:
    """It came as one member had said; meanwhile that one left, and another says something else."""
    made = _Made(tmp_path)
    world = (await made.begin()).world
    for member, node in ((OTHER, b"x" * 32), (THIRD, b"y" * 32)):
        world.join(member, 100.0)
        world.has(member, 1, node, read=True, now_s=100.0)
    world.leave(OTHER, Presence.GONE, 100.0)
    assert world.nodes[1] == b"y" * 32
    made.session.got(1, b"x" * 32, read=False)
    assert made.session.first().have[0].node == b"x" * 32


async def test_a_file_that_is_opened_after_its_job_was_cancelled_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, opened = _Made(tmp_path), list[int]()
    session = await made.begin()
    made.book.end(session.world.digest)
    opens, began, late = os.open, threading.Event(), threading.Event()

    def slow(path: Path, flags: int) -> int:
        began.set()
        late.wait(10)
        opened.append(opens(path, flags))
        return opened[0]

    monkeypatch.setattr("edgecdn_agent.ingest.book.os.open", slow)
    other = tmp_path / "other"
    other.write_bytes(b"")
    beginning = asyncio.create_task(made.book.begin(REPO, session.world.digest, 4 * MIB, other))
    await asyncio.to_thread(began.wait, 10)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    late.set()
    while not opened:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened[0])


# Coordinators and members that promise and do not keep


async def _asks(made: _Made, answer: LeaseAnswer) -> Reading:
    """We ask the other, who ranks first, and get this answer."""
    session = await made.begin()
    made.link.answers = [answer]
    session.began([])
    session.world.join(OTHER, 100.0).is_preparing = False
    units = Units(session, made.cargo, lambda: made.now_s)
    return Reading(session, made.line, units, cast("Peers", made.peers), made.client, lambda: made.now_s)


async def test_a_coordinator_that_grants_nothing_is_done_without(tmp_path: Path) -> None:
    made = _Made(tmp_path)
    reading = await _asks(made, LeaseAnswer(wait_s=0.5))
    giver = made.line.giver()
    assert giver is not None
    for _ in range(12):
        assert (await reading._ask(giver)).run is None
        made.now_s += 0.5
    asked = made.link.asked
    assert (await reading._ask(giver)).run == (0, 1), "we are next"
    assert made.link.asked == asked
    made.now_s += 61.0
    await reading._ask(giver)
    assert made.link.asked == asked + 1


async def test_a_coordinator_is_waited_for_while_somebody_reads(tmp_path: Path) -> None:
    made = _Made(tmp_path)
    reading = await _asks(made, LeaseAnswer(wait_s=0.5))
    giver = made.line.giver()
    assert giver is not None
    made.session.world.told_leases(OTHER, [(0, 2)], 100.0)
    for _ in range(20):
        assert (await reading._ask(giver)).run is None
        made.now_s += 0.5
    assert made.link.asked == 20


@pytest.mark.parametrize("answer", [LeaseAnswer(run=(0, 1)), LeaseAnswer(run=(3, 900)), LeaseAnswer(wait_s=60.0)])
async def test_an_answer_of_no_use_is_neither_followed_nor_asked_for_at_once(
    tmp_path: Path, answer: LeaseAnswer
) -> None:
    made = _Made(tmp_path)
    reading = await _asks(made, answer)
    made.session.got(0, b"x" * 32, read=False)
    async with asyncio.TaskGroup() as group:
        reading.begin(group, made.now_s)
        reading.begin(group, made.now_s)
    assert (made.link.asked, made.line.reads) == (1, 0)
    assert made.now_s + 0.2 < reading._next_ask_s <= made.now_s + 10.0


def _world(*members: str) -> World:
    world = World(Digest(DigestKind.SHA256, "1" * 64), UnitMap(400 * MIB), "0" * 32, 0.0)
    for member in members:
        world.join(member, 0.0).is_preparing = False
    return world


def test_who_says_to_read_and_does_not_keeps_units_from_others_for_a_while_only() -> None:
    world, policy, now_s, waited_s = _world(OTHER, THIRD), Policy(), 10.0, 0.0
    for turn in range(100):
        world.over(OTHER, world.told_leases(OTHER, [(0, 400 - turn)], now_s))  # each one new
        for lease in overdue(world, policy, now_s):
            world.take_away(lease)
        if isinstance(next_run(world, Ask(THIRD, rate=1e6), policy, now_s), Run):
            now_s += 1.0
        else:
            waited_s, now_s = waited_s + 0.5, now_s + 0.5
        world.members[THIRD].rate = 1e6
    assert waited_s < 45.0
    assert not any(lease.member == OTHER for lease in world.leases)
    assert isinstance(next_run(world, Ask(OTHER), policy, now_s), Wait)
    world.has(OTHER, 7, b"x" * 32, read=True, now_s=now_s)
    assert isinstance(next_run(world, Ask(OTHER), policy, now_s), Run)


def test_who_comes_and_goes_and_prepares_keeps_all_waiting_once_only() -> None:
    world, policy, granted = _world(THIRD), Policy(), 0
    for second in range(10, 30):
        world.join(OTHER, float(second))
        granted += isinstance(next_run(world, Ask(THIRD, rate=1e6), policy, second + 0.5), Run)
        world.leave(OTHER, Presence.GONE, second + 0.9)
    assert granted >= 15


def test_a_rate_that_nothing_has_takes_the_line_from_nobody() -> None:
    world, policy = _world(OTHER, THIRD), Policy()
    world.members[OTHER].rate, world.members[THIRD].rate = 1e12, 1e6
    world.lease(world.me, 0, 4, 10.0)
    assert isinstance(next_run(world, Ask(THIRD, rate=1e6), policy, 10.5), Run)
    run = next_run(world, Ask(OTHER, rate=1e12), policy, 10.5)
    assert isinstance(run, Run)
    assert run.stop - run.start <= 32


def test_who_reads_from_a_holder_is_granted_run_after_run() -> None:
    """What it read is not from the line itself, and is told in one line with the end of its run."""
    world, policy = _world(OTHER, THIRD), Policy()
    for unit in range(20):
        now_s = 10.0 + unit
        assert isinstance(next_run(world, Ask(OTHER, from_holder=True), policy, now_s), Run)
        world.told_leases(OTHER, [(unit, unit + 1)], now_s)
        over = world.told_leases(OTHER, [], now_s)
        world.has(OTHER, unit, b"x" * 32, read=False, now_s=now_s)
        world.over(OTHER, over)
