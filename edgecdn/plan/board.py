"""The board: which source fetches which bytes next. Pure state and decisions; no I/O, no clock.

Rules, in order:
1. A byte range is leased to one request at a time, so no byte is fetched twice and progress adds up.
2. Sources in order of cost: a dearer kind is asked for a file only while the cheaper kinds that offer it,
   each asked for at least `GRACE_S`, together bring less than `ENOUGH_RATE` (10 s mean), or nothing for `GRACE_S`.
3. Lowest missing bytes first, so that verification can follow; up to two large files at once, so that
   two cores can verify.
4. Of a file that somebody reads as it comes, each request is so small that it ends soon
   (`edgecdn.plan.quick`): what can be read ends where the slowest of the first requests is.
5. With nothing free, an idle connection shares the tail of a slow one (`edgecdn.plan.split`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from itertools import islice
from random import Random

from edgecdn.events import Kind
from edgecdn.manifest import FileEntry
from edgecdn.plan.backoff import backoff_s
from edgecdn.plan.growth import Window
from edgecdn.plan.quick import quick_stop
from edgecdn.plan.split import choose_split
from edgecdn.plan.state import Blob, Lease, SourceState
from edgecdn.spans import SEGMENT_BYTES, UNIT_BYTES, Span, give_back

__all__ = ["ENOUGH_RATE", "GRACE_S", "Board", "cost_of"]

ENOUGH_RATE = 512_000
"""Bytes per second from cheaper sources above which no dearer one is asked (design, section 5)."""

GRACE_S = 5.0
"""How long a cheaper source may bring nothing before a dearer one joins, seconds."""

_SIDE_BY_SIDE = 2
_MOST_OFFENCES = 3
"""Wrong answers after which a source is dropped for the job."""

_FORGIVEN_BYTES = 64 << 20
"""So many good bytes after a wrong answer make up for it: a long job meets a few by accident."""

_COST = {Kind.CACHE: 0, Kind.LAN: 1, Kind.MIRROR: 2, Kind.ORIGIN: 2}


def cost_of(kind: Kind) -> int:
    """How dear a source's bytes are, for comparing."""
    return _COST[kind]


class Board:
    """The state of one transfer. Times are seconds of one monotonic clock."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self.sources: dict[str, SourceState] = {}
        self.blobs: set[Blob] = set()
        self._free_bytes = 0

    def add_source(self, name: str, kind: Kind, connections: int) -> SourceState:
        """Let a source take part."""
        source = SourceState(name, kind, Window(connections))
        self.sources[name] = source
        return source

    def add_blob(self, entry: FileEntry, missing: Iterable[Span], offered_by: Collection[str]) -> Blob:
        """Have the `missing` bytes of a file fetched from any of `offered_by`."""
        blob = Blob(entry, sorted(missing))
        self._free_bytes += sum(map(len, blob.free))
        self.blobs.add(blob)
        for name in offered_by:
            self.offer(self.sources[name], blob)
        return blob

    def offer(self, source: SourceState, blob: Blob) -> None:
        """A source turned out to have a file."""
        source.offered.add(blob)
        source.queue.append(blob)

    def hurry(self, blob: Blob, now: float) -> None:
        """Somebody reads a file as it comes: every source is asked for it before the others, a little at a time.

        Requests under way are shortened: at their ends is what the reader needs last.
        """
        for source in self.sources.values():
            if blob in source.offered:
                source.queue.appendleft(blob)
        if blob.hurried:
            return
        blob.hurried = True
        for lease in blob.leases:
            stop = quick_stop(lease.position, lease.source, now)
            if stop < lease.stop and not lease.whole and not lease.revoked:
                rest, lease.stop = Span(stop, lease.stop), stop
                self._give_back(blob, rest)

    def remove(self, blob: Blob) -> None:
        """A file is done, or given up."""
        self._free_bytes -= sum(map(len, blob.free))
        blob.free.clear()
        self.blobs.discard(blob)
        for source in self.sources.values():
            source.offered.discard(blob)
            source.whole_only.discard(blob)

    def hold(self, blob: Blob) -> None:
        """Have nobody asked for a file until `restart`; requests under way are to be ended."""
        self._free_bytes -= sum(map(len, blob.free))
        blob.free.clear()
        blob.held = True
        for lease in blob.leases:
            lease.revoked = True

    def wind_down(self, blob: Blob) -> None:
        """Have nobody asked for a file any more; requests under way end with the unit they are in."""
        self._free_bytes -= sum(map(len, blob.free))
        blob.free.clear()
        blob.held = True
        for lease in blob.leases:
            unit_end = (lease.position // UNIT_BYTES + 1) * UNIT_BYTES
            lease.stop = min(lease.stop, unit_end) if lease.position > lease.start else lease.position
            lease.revoked = lease.remaining <= 0

    def restart(self, blob: Blob, missing: Iterable[Span], only: SourceState | None = None) -> None:
        """Fetch bytes of a file anew, from one source alone when `only` is given."""
        blob.held = False
        for span in missing:
            self._give_back(blob, span)
        if only is not None:
            for source in self.sources.values():
                if source is not only:
                    source.offered.discard(blob)

    def begin_anew(self, blob: Blob) -> None:
        """Give idle sources of a file their time again: nobody asked them while a carrier had it."""
        for source in self.sources.values():
            if blob in source.offered and not source.leases:
                source.first_asked_at = None

    def grant(self, now: float) -> Lease | None:
        """The next request to make; None when every connection is busy or nothing is left to ask."""
        usable = [s for s in self.sources.values() if s.usable(now)]
        usable.sort(key=lambda s: (_COST[s.kind], -s.connection_rate(now)))
        for source in usable:
            blob = self._next_blob(source, now)
            if blob is not None:
                return self._lease(source, blob, now)
        for source in usable:
            lease = self._split(source, now)
            if lease is not None:
                return lease
        return None

    def received(self, lease: Lease, count: int, now: float) -> None:
        """`count` more bytes of a request have come in."""
        lease.position += count
        lease.last_byte_at = now
        self.gave(lease.source, count, now)
        givers, name = lease.blob.givers, lease.source.name
        givers[name] = givers.get(name, 0) + count

    def gave(self, source: SourceState, count: int, now: float) -> None:
        """`count` more bytes came from a source."""
        source.meter.add(count, now)
        source.recent.add(count, now)
        source.steady.add(count, now)
        source.last_byte_at = now
        source.failures = 0
        source.ever_gave = True
        source.good_bytes += count
        if source.good_bytes > _FORGIVEN_BYTES:
            source.offences = 0

    def end(self, lease: Lease, written_to: int) -> None:
        """A request is over; what it did not bring (beyond `written_to`) is free again."""
        lease.source.leases.discard(lease)
        lease.blob.leases.discard(lease)
        if lease.blob in self.blobs and written_to < lease.stop:
            self._give_back(lease.blob, Span(written_to, lease.stop))

    def broken(self, source: SourceState, now: float) -> None:
        """It failed; back off unless bytes came since the last failure."""
        if now >= source.blocked_until:
            source.failures += 1
        if source.last_byte_at < now - 1.0 or source.failures > 1:
            source.blocked_until = now + backoff_s(source.failures, self._chance.random())

    def busy(self, source: SourceState, told_s: float | None, now: float) -> None:
        """It asked for a pause of `told_s` seconds (None: did not say how long)."""
        if now >= source.blocked_until:
            source.failures += 1
            source.window.shrink(now)
        wait = backoff_s(source.failures, self._chance.random(), told_s)
        source.blocked_until = max(source.blocked_until, now + wait)

    def misbehaved(self, source: SourceState, reason: str, now: float) -> bool:
        """It answered something else than asked; True when that was once too often."""
        if now >= source.blocked_until:  # requests that ran side by side met the same trouble: it counts once
            source.offences += 1
            source.good_bytes = 0
        source.blocked_until = max(source.blocked_until, now + backoff_s(source.offences, self._chance.random()))
        if source.offences >= _MOST_OFFENCES:
            self.drop(source, reason)
        return source.dropped is not None

    def exclude(self, source: SourceState, blob: Blob) -> None:
        """It does not have this file."""
        source.offered.discard(blob)

    def whole_only(self, source: SourceState, blob: Blob) -> None:
        """It gives this file only from its first byte on."""
        source.whole_only.add(blob)

    def drop(self, source: SourceState, reason: str) -> None:
        """Use it no more in this job."""
        source.dropped = source.dropped or reason
        source.offered.clear()
        source.queue.clear()

    def orphans(self) -> list[Blob]:
        """Files with bytes missing that no source offers any more."""
        return [b for b in self.blobs if b.free and not any(b in s.offered for s in self.sources.values())]

    def review(self, now: float) -> None:
        """Let every source's number of connections follow what it brings."""
        for source in self.sources.values():
            saturated = len(source.leases) >= source.window.size and self._free_bytes > 0
            source.window.review(now, source.recent.rate(now), saturated=saturated)

    def next_try_at(self, now: float) -> float | None:
        """When the first source that waits may be asked again; None when none waits."""
        waits = [
            s.blocked_until for s in self.sources.values() if s.dropped is None and s.blocked_until > now and s.offered
        ]
        return min(waits, default=None)

    def _next_blob(self, source: SourceState, now: float) -> Blob | None:
        """The next file for a source. The queue is short: the engine opens a few dozen files at a time."""
        source.queue = deque(b for b in dict.fromkeys(source.queue) if b.free and b in source.offered)
        candidates = islice((b for b in source.queue if self._may_take(source, b, now)), _SIDE_BY_SIDE)
        return min(candidates, key=lambda b: len(b.leases), default=None)

    def _may_take(self, source: SourceState, blob: Blob, now: float) -> bool:
        if blob in source.whole_only and any(lease.source is source for lease in blob.leases):
            return False
        cheaper = [
            s
            for s in self.sources.values()
            if _COST[s.kind] < _COST[source.kind] and s.dropped is None and blob in s.offered and now >= s.blocked_until
        ]
        if not cheaper:
            return True
        enough = sum(s.steady.rate(now) for s in cheaper) >= ENOUGH_RATE
        return all(
            s.first_asked_at is not None
            and now - (max(s.first_asked_at, s.last_byte_at) if enough else s.first_asked_at) > GRACE_S
            for s in cheaper
        )

    def _lease(self, source: SourceState, blob: Blob, now: float) -> Lease:
        first = blob.free[0]
        whole = blob in source.whole_only
        length = len(first) if whole else min(len(first), self._segment_bytes())
        if blob.hurried and not whole:
            length = min(length, quick_stop(first.start, source, now) - first.start)
        if source.first_asked_at is None:
            source.first_asked_at = now
            source.window.start(now)
        blob.free[0:1] = [Span(first.start + length, first.stop)] if length < len(first) else []
        self._free_bytes -= length
        return self._register(Lease(blob, source, first.start, first.start + length, now, whole=whole))

    def _split(self, source: SourceState, now: float) -> Lease | None:
        running = (lease for blob in self.blobs for lease in blob.leases)
        found = choose_split(source, (v for v in running if self._may_take(source, v.blob, now)), now)
        if found is None:
            return None
        victim, span = found
        victim.stop = span.start
        victim.revoked = victim.remaining <= 0
        return self._register(Lease(victim.blob, source, span.start, span.stop, now))

    def _register(self, lease: Lease) -> Lease:
        lease.source.leases.add(lease)
        lease.blob.leases.add(lease)
        return lease

    def _give_back(self, blob: Blob, span: Span) -> None:
        if blob.held:
            return
        give_back(blob.free, span)
        self._free_bytes += len(span)
        for source in self.sources.values():
            if blob in source.offered and (not source.queue or source.queue[0] is not blob):
                source.queue.appendleft(blob)

    def _segment_bytes(self) -> int:
        """Requests shrink at the end of the job, so that all connections end together."""
        slots = sum(s.window.size for s in self.sources.values() if s.dropped is None) or 1
        fair = self._free_bytes // (2 * slots)
        return max(2 * UNIT_BYTES, min(SEGMENT_BYTES, -(-fair // UNIT_BYTES) * UNIT_BYTES))
