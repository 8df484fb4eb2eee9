"""One blob that is taken together, as this machine takes part in it: what it has, and what it tells the others.

`Taking` does the work while a job has the file; a session lives longer, so that who is behind can still be served.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edgecdn.names import RepoId
from edgecdn.piecetree import HASH_BYTES, PieceTree, part_node, piece_bytes
from edgecdn_agent.ingest.deciding import Ask, Policy, Run, Wait, coordinator_of, next_run
from edgecdn_agent.ingest.wire import Have, LeaseAnswer, LeaseAsk, Told
from edgecdn_agent.ingest.world import Member, Presence, UnitMap, World
from edgecdn_agent.listeners import Listeners

__all__ = ["Blobs", "Session", "Stage"]

_MOST_COMPARED = 4096
"""Units of which readers' words are compared with the truth: 60 ms of work."""

_LATER_S = 0.2
"""When to ask again one that is not there yet."""


class Stage(StrEnum):
    """What becomes of it."""

    WAITING = "waiting"
    """Nobody else takes it yet: the sources bring it, and who comes is told to wait a moment."""
    TAKING = "taking"
    WHOLE = "whole"
    """All of it is here, perhaps not verified yet; members that are behind are served."""


@dataclass(frozen=True, slots=True)
class Blobs:
    """How many are taken together now: by us, and by us or anybody we know."""

    ours: Callable[[], int]
    lab: Callable[[], int]


class Session(Listeners[Told]):
    """`met` tells whether a machine that listens is one of our peers: its id and its address."""

    def __init__(
        self,
        world: World,
        repo: RepoId,
        path: Path,
        policy: Policy,
        blobs: Blobs,
        met: Callable[[str, str], bool],
        clock: Callable[[], float],
    ) -> None:
        super().__init__()
        self.world = world
        self.repo = repo
        self.path = path
        self.policy = policy
        self.clock = clock
        self.stage = Stage.WAITING
        self.rate = 0.0
        """What one stream of our line brings, bytes/s; 0 unknown."""
        self.reading: list[tuple[int, int]] = []
        """The runs we read from the line now."""
        self.layers: dict[int, bytes] = {}
        """The piece layers of units that are in the file: hashed once."""
        self.useless_until_s: dict[str, float] = {}
        self.changed = asyncio.Event()
        self.joined = asyncio.Event()
        """Somebody else takes it too."""
        self.ended = asyncio.Event()
        self.rests = 0
        """How often nothing came of anybody, so that the sources went on."""
        self.disputes = 0
        """How often its units were looked at again."""
        self._claims: dict[str, dict[int, bytes]] = {}
        self.on_listener: Callable[[str], None] | None = None
        """Told of peers that listen to us."""
        self.blobs = blobs
        self._met = met
        self._fd = -1

    @property
    def cut(self) -> UnitMap:
        """How it is cut."""
        return self.world.cut

    def wake(self) -> None:
        """Something is different."""
        self.changed.set()

    # What the LAN server asks (`edgecdn_agent.ingest.routes.Shared`)

    def first(self) -> Told:
        """All there is to say."""
        world = self.world
        return Told(
            size=world.cut.size,
            preparing=self.stage is Stage.WAITING,
            have=[Have(unit, world.nodes[unit], world.readers.get(unit) == world.me) for unit in sorted(world.mine)],
            leases=list(self.reading),
            rate=self.rate,
            done=world.is_complete,
            blobs=self.blobs.ours(),
        )

    def heard_from(self, member: str, host: str, port: int) -> None:
        """Somebody listens: it takes part too, if it is one of our peers."""
        del port  # peers are known with theirs
        if self._met(member, host):
            self.joined.set()
            if self.on_listener is not None:
                self.on_listener(member)

    def ask(self, member: str, host: str, ask: LeaseAsk) -> LeaseAnswer:
        """A member wants something to read from the line."""
        world, now_s = self.world, self.clock()
        known = world.members.get(member)
        first = coordinator_of(world, self.useless())
        if self.stage is not Stage.TAKING or known is None or not self._is_member(known, host):
            return LeaseAnswer(wait_s=_LATER_S)
        if first != world.me:
            return LeaseAnswer(coordinator=first)
        known.rate, known.heard_s = ask.rate, now_s
        return self.grant(Ask(member, ask.backlog, ask.rate, ask.reading, ask.from_holder))

    def grant(self, ask: Ask) -> LeaseAnswer:
        """As coordinator."""
        now_s = self.clock()
        found = next_run(self.world, ask, self.policy, now_s, blobs=self.blobs.lab())
        if isinstance(found, Wait):
            return LeaseAnswer(wait_s=found.seconds)
        assert isinstance(found, Run)
        self.world.lease(ask.member, found.start, found.stop, now_s)
        return LeaseAnswer(run=(found.start, found.stop))

    def useless(self) -> frozenset[str]:
        """Members that would grant, and do not."""
        now_s = self.clock()
        return frozenset(member for member, until_s in self.useless_until_s.items() if until_s > now_s)

    def give_back(self, member: str, host: str, start: int, stop: int) -> None:
        """A member cannot read what it was granted."""
        known = self.world.members.get(member)
        if known is not None and self._is_member(known, host):
            self.free(member, start, stop)

    def free(self, member: str, start: int, stop: int) -> None:
        """What a member was to read of these units others may read."""
        for lease in list(self.world.leases):
            if lease.member == member and start < lease.stop and lease.start < stop:
                self.world.end(lease)
        self.wake()

    def _is_member(self, member: Member, host: str) -> bool:
        return member.presence is Presence.HERE and self._met(member.id, host)

    def open(self, unit: int) -> int | None:
        """A descriptor of its own, to read a unit that is here."""
        if self._fd < 0 or unit not in self.world.mine:
            return None
        return os.dup(self._fd)

    # What `Taking` does

    def serve_from(self, fd: int) -> None:
        """The file, which keeps its bytes when it gets its name."""
        self._close()
        self._fd = fd

    def begin_anew(self) -> None:
        """What was known of others is forgotten: nobody listened to them for a while."""
        old = self.world
        self.world = World(old.digest, old.cut, old.me, self.clock())

    def rest(self) -> None:
        """The sources go on, until somebody comes."""
        self.stage = Stage.WAITING
        self.rests += 1
        self.joined.clear()
        self.tell(Told(preparing=True))

    def claimed(self, member: str, unit: int, node: bytes) -> None:
        """A member said itself that it read a unit from the line, and what it is."""
        self._claims.setdefault(member, {}).setdefault(unit, node)

    def liars(self, tree: PieceTree) -> list[str]:
        """Who said to have read something else from the line than the verified blob has, whose `tree` this is."""
        cut, pieces, true = self.world.cut, self.world.cut.unit // piece_bytes(tree.size), dict[int, bytes]()
        for unit in list({unit for claims in self._claims.values() for unit in claims})[:_MOST_COMPARED]:
            layer = tree.layer[HASH_BYTES * unit * pieces : HASH_BYTES * (unit + 1) * pieces]
            true[unit] = part_node(tree.size, layer, cut.unit)
        return [
            member
            for member, claims in self._claims.items()
            if any(true.get(unit, node) != node for unit, node in claims.items())
        ]

    @property
    def is_listened_to(self) -> bool:
        """Whether anybody wants to know of it."""
        return bool(self._callbacks)

    def got(self, unit: int, node: bytes, *, read: bool) -> None:
        """A unit is in the file now."""
        self.world.got(unit, node, read=read, now_s=self.clock())
        if self.world.is_complete:
            self.stage = Stage.WHOLE
        self.tell(Told(have=[Have(unit, node, read)], done=self.world.is_complete or None))
        self.wake()

    def lost(self, units: Iterable[int]) -> None:
        """They were wrong."""
        gone = sorted(units)
        for unit in gone:
            self.world.reject(unit)
            self.layers.pop(unit, None)
        self.stage = Stage.TAKING
        self.tell(Told(lost=gone, done=False))

    def began(self, units: Iterable[tuple[int, bytes]]) -> None:
        """It is taken together from now on; these units are here already."""
        here = list(units)
        self.stage, self.world.began_s = Stage.TAKING, self.clock()
        for unit, node in here:
            self.world.got(unit, node, read=False, now_s=self.clock())
        if self.world.is_complete:
            self.stage = Stage.WHOLE
        self.tell(Told(preparing=False, have=[Have(unit, node) for unit, node in here], done=self.world.is_complete))
        self.wake()

    def reads(self, runs: Iterable[tuple[int, int]]) -> None:
        """What we read from the line changed."""
        self.reading = list(runs)
        self.tell(Told(leases=list(self.reading), rate=self.rate, blobs=self.blobs.ours()))

    def end(self) -> None:
        """Nothing is served any more, and who listens is told so."""
        self._close()
        self.ended.set()
        self.tell(Told())

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
