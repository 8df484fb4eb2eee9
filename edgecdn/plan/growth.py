"""How many connections a source gets: double while that pays, else step back. Pure; no clock of its own."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Window"]

_FIRST = 8
"""Connections to begin with: what the usual client opens, so no hub minds; measured, 4 cost a capped line 2 s."""

_PROBE_S = 0.6
"""How long a size is tried before it is judged, seconds: a few round trips to a far hub."""

_REST_S = 15.0
"""After a size that brought nothing, how long until a larger one is tried again."""

_WORTH = 0.3
"""Share of the ideal gain that makes more connections worth it: doubling must bring at least 1.3 times."""


@dataclass(slots=True)
class Window:
    """The number of connections allowed now, and the experiment under way."""

    limit: int
    size: int = 0
    _before: tuple[int, float] | None = None
    _judge_at: float = 0.0

    def __post_init__(self) -> None:
        self.size = min(_FIRST, self.limit)

    def start(self, now: float) -> None:
        """The first connection was opened."""
        self._judge_at = now + _PROBE_S

    def review(self, now: float, rate: float, *, saturated: bool) -> None:
        """Judge the current size by `rate` (bytes/s); `saturated`: all connections busy and more work waits."""
        if now < self._judge_at or rate <= 0:
            return
        if self._before is not None:
            size, old_rate = self._before
            ideal = self.size / size
            self._before = None
            if rate < old_rate * (1 + _WORTH * (ideal - 1)):
                self.size = size
                self._judge_at = now + _REST_S
                return
        if saturated and self.size < self.limit:
            self._before = (self.size, rate)
            self.size = min(self.size * 2, self.limit)
            self._judge_at = now + _PROBE_S

    def shrink(self, now: float) -> None:
        """The source asked for less: halve, and do not grow beyond that for a while."""
        self.size = max(1, self.size // 2)
        self._before = None
        self._judge_at = now + _REST_S
