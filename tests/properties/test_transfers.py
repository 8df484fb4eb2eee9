"""The board under random sources with random faults, in made-up time; and disputes with random liars."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from edgecdn.events import Kind
from edgecdn.plan.board import Board
from edgecdn.plan.state import Blob, Lease
from edgecdn.spans import Span
from edgecdn.transfer.dispute import judge
from tests.unit.made import MIB, sized

STEP_S = 0.25
LONGEST_S = 4000.0
FAULTS = ("reset", "busy", "stall", "misbehaved", "missing", "denied", "whole")


@dataclass
class World:
    """Sources that follow dice: `faults` more things go wrong, then all that is left works."""

    chance: Random
    faults: int
    board: Board
    got: dict[Blob, list[Span]] = field(default_factory=dict)
    running: set[Lease] = field(default_factory=set)
    stalled: set[Lease] = field(default_factory=set)
    speeds: dict[str, float] = field(default_factory=dict)
    now: float = 100.0

    def step(self) -> None:
        """One quarter of a second."""
        self.now += STEP_S
        for lease in [x for x in self.running if x.revoked or x.source.dropped]:
            if not lease.source.dropped:
                self.board.broken(lease.source, self.now)
            self._end(lease)
        while (granted := self.board.grant(self.now)) is not None:
            self._check(granted)
            self.running.add(granted)
        for lease in sorted(self.running, key=lambda x: (str(x.blob.entry.path), x.start)):
            self._serve(lease)
        self.board.review(self.now)

    def _check(self, new: Lease) -> None:
        assert new.remaining > 0
        assert new.blob in new.source.offered
        assert len(new.source.leases) <= new.source.window.size
        for other in self.running:
            if other.blob is new.blob:
                assert new.stop <= other.position or new.start >= other.stop, "a byte is leased twice"
        for before in self.got[new.blob]:
            assert new.stop <= before.start or new.start >= before.stop, "a byte is asked for again"

    def _serve(self, lease: Lease) -> None:
        if lease in self.stalled:
            if lease.idle_s(self.now) > 20.0:
                self.board.broken(lease.source, self.now)
                self._end(lease)
            return
        if self.faults and self.chance.random() < 0.1:
            self.faults -= 1
            self._fail(lease, self.chance.choice(FAULTS))
            return
        count = min(lease.remaining, int(self.speeds[lease.source.name] * STEP_S * self.chance.uniform(0.2, 1.8)))
        if count > 0:
            self.got[lease.blob].append(Span(lease.position, lease.position + count))
            self.board.received(lease, count, self.now)
        if lease.remaining <= 0:
            self._end(lease)

    def _fail(self, lease: Lease, fault: str) -> None:
        board, source = self.board, lease.source
        match fault:
            case "stall":
                self.stalled.add(lease)
                return
            case "busy":
                board.busy(source, self.chance.choice([None, 0.0, 3.0, 40.0]), self.now)
            case "misbehaved":
                board.misbehaved(source, "odd", self.now)
            case "missing":
                board.exclude(source, lease.blob)
            case "denied":
                board.drop(source, "denied")
            case "whole":
                board.whole_only(source, lease.blob)
            case _:
                board.broken(source, self.now)
        self._end(lease)

    def _end(self, lease: Lease) -> None:
        self.running.discard(lease)
        self.stalled.discard(lease)
        self.board.end(lease, lease.position)
        if lease.blob.complete:
            self.board.remove(lease.blob)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 30), st.integers(0, 2**32))
def test_every_byte_comes_once_or_its_file_is_an_orphan(members: int, files: int, faults: int, seed: int) -> None:
    chance = Random(seed)
    world = World(chance, faults, Board(Random(seed)))
    for number in range(members):
        world.board.add_source(f"s{number}", chance.choice(list(Kind)), chance.randint(1, 9))
        world.speeds[f"s{number}"] = 10 ** chance.uniform(5, 7)
    for number in range(files):
        size = chance.choice([1, 1000, MIB, chance.randrange(1, 40 * MIB)])
        names = [name for name in world.board.sources if chance.random() < 0.8]
        world.got[world.board.add_blob(sized(f"f{number}", size), [Span(0, size)], names)] = []
    blobs = list(world.board.blobs)
    while world.board.blobs - set(world.board.orphans()) and world.now < LONGEST_S:
        world.step()
    orphans = set(world.board.orphans())
    assert world.board.blobs == orphans, "neither whole nor an orphan: nobody would ever fetch it"
    for blob in blobs:
        spans = sorted(world.got[blob])
        assert all(a.stop <= b.start for a, b in zip(spans, spans[1:], strict=False)), "a byte came twice"
        assert blob in orphans or sum(map(len, spans)) == blob.entry.size
        assert sum(blob.givers.values()) == sum(map(len, spans))


EARLIER = "an earlier run"
UNITS = 5
SIZE = UNITS * MIB - 7


@given(
    honest=st.integers(1, 3),
    liars=st.lists(st.sets(st.integers(0, UNITS - 1), min_size=1), max_size=4),
    rotten=st.sets(st.integers(0, UNITS - 1)),
    seed=st.integers(0, 2**32),
)
def test_disputes_end_with_the_truth_and_blame_only_liars(
    honest: int, liars: list[set[int]], rotten: set[int], seed: int
) -> None:
    """`liars`: the units each gives wrong; `rotten`: those that an earlier run left wrong."""
    chance = Random(seed)
    lies = {f"liar{n}": units for n, units in enumerate(liars)} | {f"honest{n}": set() for n in range(honest)}
    wrong_by = {**lies, EARLIER: rotten}
    candidates = list(lies)
    chance.shuffle(candidates)
    givers = {u: set(chance.sample([*candidates, EARLIER], chance.randint(1, 2))) for u in range(UNITS)}
    wrong = {u for u, names in givers.items() if any(u in wrong_by[name] for name in names)}
    stood: list[str] = []
    standing: str | None = None
    rounds = 0
    while wrong:
        rounds += 1
        assert rounds <= len(liars) + 1, "more than one extra copy for each liar"
        verdict = judge(SIZE, givers, standing, candidates)
        if verdict.liar is not None:
            assert lies[verdict.liar], f"{verdict.liar} is honest"
            candidates = [name for name in candidates if name != verdict.liar]
        assert verdict.truth is not None, "somebody honest is left"
        assert verdict.truth not in stood
        assert verdict.again
        standing = verdict.truth
        stood.append(standing)
        candidates = [name for name in candidates if name != standing]
        for span in verdict.again:
            for unit in range(span.start // MIB, -(-span.stop // MIB)):
                givers[unit] = {standing}
        assert all(names == {standing} for names in givers.values())
        wrong = {u for u in range(UNITS) if any(u in wrong_by[name] for name in givers[u])}
