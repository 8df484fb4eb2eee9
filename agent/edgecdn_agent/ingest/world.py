"""What one machine knows of a blob that several take together. Plain data and its changes; no decisions, no I/O.

A blob is cut into units (`UnitMap`), the smallest thing that is asked of a peer. Members are the machines that
take it, each known by its own word alone. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from edgecdn.digest import Digest
from edgecdn.piecetree import piece_bytes
from edgecdn.spans import Span

__all__ = ["Lease", "Member", "Presence", "UnitMap", "World", "rank_of"]

_UNIT_BYTES = 1 << 20
"""Large enough that asking costs nothing, small enough that it spreads while the rest still comes."""

_MOST_TAKEN_AWAY = 4
"""So many leases in a row taken away from a member that read nothing, and it is granted none, and none of it counts."""

_ON_ITS_WAY_S = 2.0
"""How long what we granted may be on its way to the one who asked."""


@dataclass(frozen=True, slots=True)
class UnitMap:
    """How a blob of `size` bytes is cut: units of 1 MiB, or of one piece where pieces are larger; the last is short."""

    size: int

    @property
    def unit(self) -> int:
        """The length of all units but the last, bytes."""
        return max(_UNIT_BYTES, piece_bytes(self.size))

    @property
    def count(self) -> int:
        """How many there are."""
        return -(-self.size // self.unit)

    def span(self, index: int) -> Span:
        """The bytes of a unit."""
        return Span(index * self.unit, min((index + 1) * self.unit, self.size))

    def touched(self, span: Span) -> range:
        """The units that a span has bytes of."""
        return range(span.start // self.unit, -(-span.stop // self.unit))


def rank_of(digest: Digest, member: str) -> bytes:
    """A member's rank for a blob, the least one first: rendezvous hashing, so that blobs have other coordinators."""
    return hashlib.sha256(f"{digest}/{member}".encode()).digest()


class Presence(StrEnum):
    """How a member is."""

    HERE = "here"
    SILENT = "silent"
    """It says nothing any more, and nobody says it ended: it may be alive behind a broken switch."""
    GONE = "gone"
    """It left, or its machine says that nobody listens there."""
    BARRED = "barred"
    """It gave something else than it said, or tells nonsense: nothing of it is used."""


@dataclass(slots=True, eq=False)
class Member:
    """Another machine that takes the blob. `rate`: what its own line brings, bytes/s, 0 unknown."""

    id: str
    rank: bytes
    heard_s: float
    presence: Presence = Presence.HERE
    is_preparing: bool = True
    """It has not said yet what it has; nothing is granted until it did, or some time went by."""
    is_done: bool = False
    """It has all of it."""
    met_s: float = 0.0
    left_s: float = 0.0
    pulls: int = 0
    """Units we are asking of it at this moment."""
    pace: float = 0.0
    """What the last units from it came with, bytes/s, 0 unknown."""
    failures: int = 0
    """In a row."""
    blocked_until_s: float = 0.0
    rate: float = 0.0
    taken_away: int = 0
    """Its leases that were overdue, or ended without a unit, since it last read one."""
    blobs: int = 1
    """How many it takes together with others."""
    units: set[int] = field(default_factory=set)
    """What it says to have."""

    @property
    def reads(self) -> bool:
        """Whether something can be expected of its line."""
        return self.taken_away < _MOST_TAKEN_AWAY

    def gave(self, bytes_s: float) -> None:
        """A unit came from it, so fast."""
        self.pace = bytes_s if not self.pace else 0.5 * (self.pace + bytes_s)

    def hear(
        self, now_s: float, *, preparing: bool | None, done: bool | None, rate: float | None, blobs: int | None
    ) -> None:
        """What it says of itself; None: as it was."""
        self.heard_s = now_s
        self.is_preparing = self.is_preparing if preparing is None else preparing
        self.is_done = self.is_done if done is None else done
        self.rate = self.rate if rate is None else rate
        self.blobs = self.blobs if blobs is None else blobs


@dataclass(slots=True, eq=False)
class Lease:
    """A run of units that one member reads from the line, in order. Those before `position` came by `moved_s`."""

    member: str
    start: int
    stop: int
    granted_s: float
    moved_s: float
    position: int
    is_ours: bool = False
    """We granted it: its member may not have heard yet."""


@dataclass(slots=True)
class World:
    """The state. Whoever holds it tells it what happens; `deciding` looks at it and changes nothing.

    `mine`: units that are here. `fetching`: units on their way here from a member.
    `nodes`: what each unit is said to be, by who said it first; `readers`: who said that it read it from the line.
    `leases`: those we know of: as coordinator all that we granted and all that members announced.
    """

    digest: Digest
    cut: UnitMap
    me: str
    began_s: float
    members: dict[str, Member] = field(default_factory=dict)
    mine: set[int] = field(default_factory=set)
    fetching: set[int] = field(default_factory=set)
    nodes: dict[int, bytes] = field(default_factory=dict)
    readers: dict[int, str] = field(default_factory=dict)
    holders: dict[int, set[str]] = field(default_factory=dict)
    """By unit, who says to have it: members that are here only."""
    offered: set[int] = field(default_factory=set, init=False)
    """Units that are held by others, and not here: what there is to take."""
    leases: list[Lease] = field(default_factory=list)
    tellers: dict[int, str] = field(default_factory=dict)
    """By unit, who said first what it is."""
    rejected: dict[int, set[bytes]] = field(default_factory=dict)
    """By unit, what it turned out not to be."""
    front: int = field(default=0, init=False)
    """All units before it are here."""
    my_rank: bytes = field(default=b"", init=False)
    _others: dict[int, dict[str, bytes]] = field(default_factory=dict, init=False)
    """By unit, who says that it is something else than `nodes` does."""
    _taken_away: set[tuple[str, int]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.my_rank = rank_of(self.digest, self.me)

    # Members

    def join(self, member: str, now_s: float) -> Member:
        """It takes part, or does so again."""
        known = self.members.get(member)
        if known is None:
            known = self.members[member] = Member(member, rank_of(self.digest, member), now_s, met_s=now_s)
        elif known.presence in (Presence.GONE, Presence.SILENT):
            if not known.is_preparing:  # else it had its time: who comes and goes must not keep all waiting
                known.met_s = now_s
            known.presence, known.heard_s = Presence.HERE, now_s
            known.is_preparing, known.failures, known.blocked_until_s = True, 0, 0.0
        return known

    def here(self) -> list[Member]:
        """Those that can be counted on."""
        return [member for member in self.members.values() if member.presence is Presence.HERE]

    def leave(self, member: str, how: Presence, now_s: float) -> None:
        """It takes no part any more: what it said to have is had of others, what it was to read is free."""
        known = self.members[member]
        known.presence, known.left_s = how, now_s
        for said in self._others.values():
            said.pop(member, None)
        for unit in list(known.units):
            self.has_lost(member, unit)
        if how is not Presence.SILENT:
            self.leases = [lease for lease in self.leases if lease.member != member]

    # Units

    def has(self, member: str, unit: int, node: bytes, *, read: bool, now_s: float) -> None:
        """A member says to have a unit, and what it is; `read`: from the line, by itself."""
        known = self.members[member]
        known.heard_s = now_s
        if known.presence is not Presence.HERE or not 0 <= unit < self.cut.count:
            return
        if node in self.rejected.get(unit, ()):
            return
        if self.nodes.setdefault(unit, node) != node:
            self._others.setdefault(unit, {})[member] = node
            return
        self.tellers.setdefault(unit, member)
        if read:
            self.readers.setdefault(unit, member)
            if unit not in known.units:
                known.taken_away = 0
        self._moved(member, unit, now_s)
        known.units.add(unit)
        self.holders.setdefault(unit, set()).add(member)
        if unit not in self.mine:
            self.offered.add(unit)

    def got(self, unit: int, node: bytes, *, read: bool, now_s: float) -> None:
        """A unit is here now, checked against its node; `read`: we had it from the line."""
        self.mine.add(unit)
        self.fetching.discard(unit)
        self.offered.discard(unit)
        self.nodes[unit] = node  # our own eyes, whatever others say by now
        if read:
            self.readers[unit] = self.me
        self._moved(self.me, unit, now_s)
        while self.front in self.mine:
            self.front += 1

    def has_lost(self, member: str, unit: int) -> None:
        """A member has a unit no more."""
        self._others.get(unit, {}).pop(member, None)
        self.members[member].units.discard(unit)
        held = self.holders.get(unit)
        if held is not None:
            held.discard(member)
            if not held:
                self._nobody_has(unit)

    def reject(self, unit: int) -> None:
        """A unit is not what it was said to be: nothing that anybody has of it counts, until it is another one."""
        node = self.nodes.get(unit)
        if node is not None:
            self.rejected.setdefault(unit, set()).add(node)
        for member in self.holders.get(unit, ()):
            self.members[member].units.discard(unit)
        self.mine.discard(unit)
        self.front = min(self.front, unit)
        self._nobody_has(unit)

    def _nobody_has(self, unit: int) -> None:
        """Of those who had it as it was told first: what others tell of it counts now, if anybody does."""
        self.holders.pop(unit, None)
        self.offered.discard(unit)
        if unit in self.mine:
            return
        for known in (self.nodes, self.tellers, self.readers):
            known.pop(unit, None)
        others = self._others.pop(unit, {})
        told = Counter(node for node in others.values() if node not in self.rejected.get(unit, ()))
        if not told:
            return
        node = self.nodes[unit] = max(told, key=told.__getitem__)
        same = [member for member, said in others.items() if said == node]
        self.holders[unit], self.tellers[unit] = set(same), same[0]
        for member in same:
            self.members[member].units.add(unit)
        self.offered.add(unit)
        rest = {member: said for member, said in others.items() if said != node}
        if rest:
            self._others[unit] = rest

    @property
    def is_complete(self) -> bool:
        """Whether all units are here."""
        return len(self.mine) == self.cut.count

    # Leases

    def lease(self, member: str, start: int, stop: int, now_s: float) -> Lease:
        """A run is to be read from the line by one member, as we grant it."""
        self._taken_away.discard((member, stop))
        made = Lease(member, start, stop, now_s, now_s, start, is_ours=True)
        self.leases.append(made)
        return made

    def told_leases(self, member: str, runs: Iterable[tuple[int, int]], now_s: float) -> list[Lease]:
        """What a member says it is reading now, whoever granted it. One we granted just now it may not know yet.

        Returns those that it does not name any more: see `over`.
        """
        mine = {lease.stop: lease for lease in self.leases if lease.member == member}
        known = self.members.get(member)
        if known is None or known.presence is Presence.BARRED or not known.reads:
            runs = ()
        told = {
            stop: mine.pop(stop) if stop in mine else Lease(member, start, stop, now_s, now_s, start)
            for start, stop in runs
            if 0 <= start < stop <= self.cut.count and (member, stop) not in self._taken_away
        }
        fresh = [lease for lease in mine.values() if lease.is_ours and now_s - lease.granted_s < _ON_ITS_WAY_S]
        self.leases = [lease for lease in self.leases if lease.member != member] + [*told.values(), *fresh]
        return [lease for lease in mine.values() if lease not in fresh]

    def over(self, member: str, leases: Iterable[Lease]) -> None:
        """Leases of a member have ended, and what came of them is told: it reads in order, so at least the first."""
        known = self.members[member]
        for lease in leases:
            came = lease.position > lease.start or lease.start in known.units
            known.taken_away = 0 if came else known.taken_away + 1

    def take_away(self, lease: Lease) -> None:
        """It is overdue: what is left of it is free, whatever its member says of it from now on."""
        self.end(lease)
        self._taken_away.add((lease.member, lease.stop))
        if lease.member in self.members:
            self.members[lease.member].taken_away += 1

    def end(self, lease: Lease) -> None:
        """It is read, given back, or taken away."""
        if lease in self.leases:
            self.leases.remove(lease)

    def _moved(self, member: str, unit: int, now_s: float) -> None:
        for lease in [lease for lease in self.leases if lease.member == member]:
            if lease.start <= unit < lease.stop:
                lease.position, lease.moved_s = max(lease.position, unit + 1), now_s
                if member in self.members:
                    self.members[member].taken_away = 0
                if lease.position >= lease.stop:
                    self.leases.remove(lease)
