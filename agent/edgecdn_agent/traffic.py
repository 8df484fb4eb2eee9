"""Counts of bytes in and out, and their rates: who gives how much to whom. Pure but for its clock."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

from edgecdn.control import PeerTraffic, Totals
from edgecdn.events import Kind

__all__ = ["RateMeter", "Traffic"]

_WINDOW_S = 5.0
"""Rates are means over so long (seconds): steady to look at, and a stop is seen soon."""

_BUCKET_S = 0.25

_MOST_PARTIES = 1000
_OTHERS = "others"
"""What all those are called together who come when so many are told apart."""


class RateMeter:
    """Bytes per second over the last five seconds (since the first byte, when that is less)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: deque[tuple[float, int]] = deque()
        self._began: float | None = None

    def add(self, count: int) -> None:
        """Count bytes that moved now."""
        now = self._clock()
        if self._began is None or not self._buckets:
            self._began = now
        if self._buckets and now - self._buckets[-1][0] < _BUCKET_S:
            at, before = self._buckets.pop()
            self._buckets.append((at, before + count))
        else:
            self._buckets.append((now, count))
        self._forget(now)

    def rate(self) -> float:
        """The mean of the window; 0 when nothing moves."""
        now = self._clock()
        self._forget(now)
        if not self._buckets or self._began is None:
            return 0.0
        seconds = min(_WINDOW_S, max(now - self._began, 1.0))
        return max(0.0, sum(count for _, count in self._buckets) / seconds)

    def _forget(self, now: float) -> None:
        while self._buckets and now - self._buckets[0][0] > _WINDOW_S:
            self._buckets.popleft()


class _Way:
    """One direction, of one party or of all."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.total = 0
        self.meter = RateMeter(clock)

    def add(self, count: int) -> None:
        self.total += count
        self.meter.add(count)


class Traffic:
    """What came in by kind of source, what went out to peers. Called on the loop, or from one thread at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.in_by_kind: Counter[Kind] = Counter()
        self._all = {"in": _Way(clock), "out": _Way(clock)}
        self._parties: dict[str, dict[str, _Way]] = {}

    def received(self, kind: Kind, source: str, count: int) -> None:
        """Bytes of a source that were written; they count though they may turn out to be wrong."""
        self.in_by_kind[kind] += count
        self._all["in"].add(count)
        if kind is Kind.LAN:
            self._party(source)["in"].add(count)

    def sent(self, peer: str, count: int) -> None:
        """Bytes given to a peer; `peer` is its name, as its source is called: `peer NAME`."""
        self._all["out"].add(count)
        self._party(peer)["out"].add(count)

    @property
    def out_lan(self) -> int:
        """Bytes given to peers since the start."""
        return self._all["out"].total

    def totals(self) -> Totals:
        """As `edgecdn status` tells them."""
        return Totals({kind.value: self.in_by_kind[kind] for kind in Kind}, self.out_lan)

    def rates(self) -> tuple[float, float]:
        """Bytes per second in and out, of all."""
        return self._all["in"].meter.rate(), self._all["out"].meter.rate()

    def parties(self) -> tuple[PeerTraffic, ...]:
        """Every peer that bytes were moved with."""
        return tuple(
            PeerTraffic(name, ways["in"].meter.rate(), ways["out"].meter.rate(), ways["in"].total, ways["out"].total)
            for name, ways in sorted(self._parties.items())
        )

    def _party(self, name: str) -> dict[str, _Way]:
        if name not in self._parties and len(self._parties) >= _MOST_PARTIES:
            name = _OTHERS
        if name not in self._parties:
            self._parties[name] = {"in": _Way(self._clock), "out": _Way(self._clock)}
        return self._parties[name]
