"""What a machine says of a blob that is taken together, whom it believes, and how long it serves it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import cast

import pytest

from edgecdn.digest import Digest, DigestKind
from edgecdn.events import Kind
from edgecdn.lan_wire import Asker
from edgecdn.names import RepoId, RepoType
from edgecdn.piecetree import PieceTree, part_layer, part_node
from edgecdn.sources.faults import Broken
from edgecdn.spans import Span
from edgecdn.transfer.carrier import Cargo, Giver
from edgecdn_agent.ingest.book import Book
from edgecdn_agent.ingest.deciding import Policy
from edgecdn_agent.ingest.disputes import false_givers, given_by, samples
from edgecdn_agent.ingest.session import Session, Stage
from edgecdn_agent.ingest.wire import Have, LeaseAsk, Told
from edgecdn_agent.ingest.world import Presence, UnitMap, World, rank_of
from edgecdn_agent.lab.peers import Peer, Peers
from tests.unit.made import lfs_file, manifest_of

MIB = 1 << 20
REPO = RepoId(RepoType.MODEL, "org/name")
OTHER = "b" * 32
PEER = Peer(OTHER, "bench-2", "1", "10.0.0.2", 8378, 0, ("10.0.0.2", "10.0.1.2"), 0.0, 0.0)


def _me(digest: Digest, *, first: bool) -> str:
    """An agent's id that ranks before OTHER for a blob, or after it."""
    ids = (f"{number:032x}" for number in range(1000))
    return next(one for one in ids if (rank_of(digest, one) < rank_of(digest, OTHER)) is first)


class _Peers:
    def __init__(self, me: str) -> None:
        self.me = Asker(me, 1)

    def get(self, peer_id: str) -> Peer | None:
        return PEER if peer_id == OTHER else None


@dataclass
class _Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class _Made:
    """A session of a blob of four units and a half."""

    folder: Path
    first: bool = True
    shared: bool = True
    clock: _Clock = field(default_factory=_Clock)
    told: list[Told] = field(default_factory=list)

    async def begin(self) -> Session:
        data = Random(3).randbytes(4 * MIB + MIB // 2)
        self.data = data
        self.digest = Digest(DigestKind.SHA256, hashlib.sha256(data).hexdigest())
        self.path = self.folder / "partial"
        self.path.write_bytes(data)
        peers = cast("Peers", _Peers(_me(self.digest, first=self.first)))
        self.book = Book(peers, lambda _: self.shared, Policy(), self.clock)
        session = await self.book.begin(REPO, self.digest, len(data), self.path)
        assert session is not None
        session.subscribe(self.told.append)
        return session

    def node(self, unit: int) -> bytes:
        return hashlib.sha256(bytes([unit])).digest()


async def test_before_it_is_taken_together_it_says_to_wait(tmp_path: Path) -> None:
    session = await _Made(tmp_path).begin()
    first = session.first()
    assert (first.size, first.preparing, list(first.have), first.done) == (4 * MIB + MIB // 2, True, [], False)
    assert session.open(0) is None
    assert session.ask(OTHER, "10.0.0.2", LeaseAsk()).wait_s is not None


async def test_what_is_here_is_told_and_given(tmp_path: Path) -> None:
    made = _Made(tmp_path)
    session = await made.begin()
    session.began([(1, made.node(1))])
    session.got(2, made.node(2), read=True)
    assert [list(told.have) for told in made.told] == [[Have(1, made.node(1))], [Have(2, made.node(2), True)]]
    assert list(session.first().have) == [Have(1, made.node(1)), Have(2, made.node(2), True)]
    fd = session.open(1)
    assert fd is not None
    made.path.rename(tmp_path / "published")
    assert os.pread(fd, MIB, MIB) == made.data[MIB : 2 * MIB], "the file keeps its bytes when it gets its name"
    os.close(fd)
    assert session.open(0) is None
    for unit in (0, 3, 4):
        session.got(unit, made.node(unit), read=False)
    assert session.stage is Stage.WHOLE
    assert made.told[-1].done


async def test_only_the_first_in_rank_grants(tmp_path: Path) -> None:
    for is_first in (True, False):
        folder = tmp_path / str(is_first)
        folder.mkdir()
        made = _Made(folder, first=is_first)
        session = await made.begin()
        session.began([])
        assert session.ask(OTHER, "10.0.0.2", LeaseAsk()).run is None, "nobody we listen to"
        member = session.world.join(OTHER, made.clock.now_s)
        member.is_preparing = False
        made.clock.now_s += 5
        answer = session.ask(OTHER, "10.0.0.2", LeaseAsk())
        if is_first:
            assert answer.run is not None
            assert session.world.leases
            session.give_back(OTHER, "10.0.0.66", *answer.run)
            assert session.world.leases, "not its address"
            session.give_back(OTHER, "10.0.0.2", *answer.run)
            assert not session.world.leases
        else:
            assert answer.coordinator == OTHER


async def test_a_listener_counts_only_where_its_address_is_that_of_a_peer(tmp_path: Path) -> None:
    session = await _Made(tmp_path).begin()
    heard: list[str] = []
    session.on_listener = heard.append
    session.heard_from(OTHER, "10.0.0.66", 8378)
    session.heard_from("c" * 32, "10.0.0.2", 8378)
    assert not session.joined.is_set()
    session.heard_from(OTHER, "10.0.1.2", 8378)
    assert session.joined.is_set()
    assert heard == [OTHER]


async def test_what_may_be_shared_no_more_is_not_there(tmp_path: Path) -> None:
    made = _Made(tmp_path)
    session = await made.begin()
    assert made.book.get(made.digest) is session
    made.shared = False
    assert made.book.get(made.digest) is None


async def test_the_same_file_goes_on_and_another_waits_for_its_end(tmp_path: Path) -> None:
    made = _Made(tmp_path)
    session = await made.begin()
    session.began([])
    session.world.join(OTHER, 1.0)
    assert await made.book.begin(REPO, made.digest, len(made.data), made.path) is session
    assert not session.world.members, "nobody listened to them for a while"
    other = tmp_path / "other"
    other.write_bytes(made.data)
    assert await made.book.begin(REPO, made.digest, len(made.data), other) is None, "one repo's job at a time"
    made.book.leave(made.digest, other)
    assert made.book.of(made.digest, made.path) is session
    made.book.leave(made.digest, made.path)
    assert session.ended.is_set()
    assert session.open(0) is None
    assert await made.book.begin(REPO, made.digest, len(made.data), other) is not session


async def test_it_is_served_until_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecdn_agent.ingest.book._LOOKS_S", 0.01)
    made = _Made(tmp_path)
    session = await made.begin()
    session.began([(unit, made.node(unit)) for unit in range(5)])
    running = asyncio.create_task(made.book.run())
    made.book.keep(made.digest)
    made.clock.now_s += 30
    leave = session.subscribe(lambda _: None)
    await asyncio.sleep(0.05)
    assert made.book.get(made.digest) is session
    made.clock.now_s += 31
    async with asyncio.timeout(10):
        await session.ended.wait()
    assert made.book.get(made.digest) is None
    leave()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_who_announced_something_else_than_it_read_is_a_liar_and_a_relay_is_none(tmp_path: Path) -> None:
    made = _Made(tmp_path)
    session = await made.begin()
    size = len(made.data)
    layers = [part_layer(size, made.data[at : at + MIB]) for at in range(0, size, MIB)]
    true = [part_node(size, layer, MIB) for layer in layers]
    session.began([])
    session.claimed(OTHER, 1, b"x" * 32)
    session.claimed("c" * 32, 2, true[2])
    session.claimed("c" * 32, 4, true[4])
    session.world.join("d" * 32, 1.0)
    session.world.has("d" * 32, 1, b"x" * 32, read=False, now_s=1.0)
    assert session.liars(PieceTree(size, b"".join(layers))) == [OTHER]


# Whom to suspect


def _world(readers: dict[int, str], units: int = 40) -> World:
    digest = Digest(DigestKind.SHA256, "1" * 64)
    world = World(digest, UnitMap(units * MIB - 5), "a" * 32, 0.0)
    world.readers.update(readers)
    return world


def test_some_blocks_of_each_reader_but_ourselves_are_looked_at() -> None:
    world = _world({unit: ("a", "b", "c")[unit % 3] * 32 for unit in range(40)})
    chosen = samples(world, Random(1))
    assert {reader for reader, _ in chosen} == {"b" * 32, "c" * 32}
    for reader, span in chosen:
        assert world.readers[span.start // MIB] == reader
        assert 0 < len(span) <= 16 << 10
        assert span.stop <= world.cut.size
    crowd = _world({unit: f"{unit:032x}" for unit in range(1000)}, 1000)
    assert len(samples(crowd, Random(1))) == 64


class _Line:
    """The blob as the hub has it; fails from the `fails`-th read on."""

    def __init__(self, data: bytes, fails: int = 1 << 30) -> None:
        self.data, self.reads, self.fails = data, 0, fails

    def giver(self) -> Giver | None:
        return Giver("hub", Kind.ORIGIN)

    async def read(self, giver: Giver, span: Span) -> AsyncGenerator[bytes, None]:
        self.reads += 1
        if self.reads > self.fails:
            raise Broken(f"{giver.name} is gone")
        yield self.data[span.start : span.stop]


def _cargo(here: bytes, line: _Line) -> Cargo:
    entry = lfs_file("m.safetensors", line.data)

    def read(view: memoryview, start: int) -> int:
        view[:] = here[start : start + len(view)]
        return len(view)

    async def never(*_: object) -> None:
        raise AssertionError("nothing is written")

    def have() -> Sequence[Span]:
        return [Span(0, entry.size)]

    return Cargo(
        manifest_of(entry), entry, Path("unused"), have, read, never, never, never, line, lambda: True,
        lambda _text: None, lambda _tree: None,
    )  # fmt: skip


async def test_a_reader_whose_blocks_are_not_the_lines_is_found() -> None:
    readers = {unit: ("b", "c")[unit % 2] * 32 for unit in range(6)}
    world = _world(readers, 6)
    data = Random(5).randbytes(world.cut.size)
    here = bytearray(data)
    for unit in (1, 3, 5):
        span = world.cut.span(unit)
        here[span.start : span.stop] = bytes(byte ^ 255 for byte in data[span.start : span.stop])
    line = _Line(data)
    found = await false_givers(world, _cargo(bytes(here), line), Random(2))
    assert found == {"c" * 32}
    assert given_by(world, found) == [1, 3, 5]
    assert line.reads <= 8
    assert not await false_givers(world, _cargo(data, line), Random(2))
    assert not await false_givers(world, _cargo(bytes(here), _Line(data, fails=0)), Random(2)), "nothing to go by"


def test_what_was_rejected_is_not_believed_again_until_it_is_another() -> None:
    world = _world({})
    world.join(OTHER, 1.0)
    world.has(OTHER, 3, b"x" * 32, read=True, now_s=1.0)
    world.got(3, b"x" * 32, read=False, now_s=1.0)
    world.reject(3)
    assert 3 not in world.mine
    assert not world.holders.get(3)
    world.has(OTHER, 3, b"x" * 32, read=False, now_s=2.0)
    assert not world.holders.get(3)
    world.has(OTHER, 3, b"y" * 32, read=False, now_s=2.0)
    assert world.nodes[3] == b"y" * 32
    world.leave(OTHER, Presence.BARRED, 3.0)
    assert not world.holders


def test_what_a_barred_one_said_gives_way_to_what_others_say() -> None:
    world = _world({})
    for member in (OTHER, "c" * 32, "d" * 32):
        world.join(member, 1.0)
    world.has(OTHER, 3, b"x" * 32, read=True, now_s=1.0)
    for member in ("c" * 32, "d" * 32):
        world.has(member, 3, b"y" * 32, read=False, now_s=1.0)
    assert world.holders == {3: {OTHER}}
    world.leave(OTHER, Presence.BARRED, 2.0)
    assert world.holders == {3: {"c" * 32, "d" * 32}}
    assert (world.nodes[3], world.tellers[3], 3 in world.offered) == (b"y" * 32, "c" * 32, True)
    for member in ("c" * 32, "d" * 32):
        world.leave(member, Presence.GONE, 3.0)
    assert not world.holders
    assert not world.offered
    world.join(OTHER, 4.0)
    world.join("c" * 32, 4.0)
    world.has("c" * 32, 3, b"z" * 32, read=True, now_s=4.0)
    assert world.nodes[3] == b"z" * 32


def test_a_lease_that_was_taken_away_is_not_told_back() -> None:
    world = _world({})
    world.join(OTHER, 1.0)
    lease = world.lease(OTHER, 0, 4, 1.0)
    world.told_leases(OTHER, [(0, 4)], 1.1)
    assert world.leases == [lease]
    world.take_away(lease)
    world.told_leases(OTHER, [(0, 4), (4, 8), (30, 400), (9, 9)], 5.0)
    assert [(one.start, one.stop) for one in world.leases] == [(4, 8)]
