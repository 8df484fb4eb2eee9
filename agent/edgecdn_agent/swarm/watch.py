"""When a swarm is too slow, too silent or not there at all. A pure decision; no I/O, no clock.

The same bounds as the planner's (design, section 5): below 512 kB/s in the mean of 10 s, or 5 s without a byte,
others join.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Watch"]

_NO_CONNECTION_S = 2.0
"""A switch needs milliseconds; longer is a firewall, or an agent that is gone."""

_LOST_S = 1.0
"""Peers that were connected and are no more died, or refuse us; they are given a moment to come back."""

_SAMPLE_S = 0.2
_SILENCE_S = 5.0
_WINDOW_S = 10.0
_LEAST_BYTES_S = 512_000
_ALONE_S = 60.0
"""With nobody else to ask, patience is longer."""


class Watch:
    """Watches one download that began at `now` (seconds of one monotonic clock)."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._seen: deque[tuple[float, int]] = deque()
        self._last_byte_at = now
        self._connected_at: float | None = None
        self._lost_at: float | None = None

    @property
    def never_connected(self) -> bool:
        """Whether no peer's swarm was ever reached."""
        return self._connected_at is None

    def connections(self, count: int, now: float) -> None:
        """So many peers are connected now."""
        if count:
            self._connected_at, self._lost_at = now, None
        elif self._connected_at is not None and self._lost_at is None:
            self._lost_at = now

    def arrived(self, total_bytes: int, now: float) -> None:
        """So many bytes are there in all."""
        if self._seen and total_bytes > self._seen[-1][1]:
            self._last_byte_at = now
            self._connected_at = self._connected_at or now
        if not self._seen or now - self._seen[-1][0] >= _SAMPLE_S:
            self._seen.append((now, total_bytes))
        while self._seen[0][0] < now - _WINDOW_S and len(self._seen) > 1:
            self._seen.popleft()

    def verdict(self, now: float, *, alternatives: bool) -> str | None:
        """Why to give up now; None to go on."""
        if not alternatives:
            return "nothing came for a minute" if now - self._last_byte_at > _ALONE_S else None
        if self.never_connected and now - self._began > _NO_CONNECTION_S:
            return "no peer's swarm port answers"
        if self._lost_at is not None and now - self._lost_at > _LOST_S:
            return "every peer went away"
        if now - self._last_byte_at > _SILENCE_S:
            return "nothing came for 5 s"
        if self._seen and now - self._began > _WINDOW_S:
            (since, before), (_, after) = self._seen[0], self._seen[-1]
            if (after - before) / max(now - since, 1.0) < _LEAST_BYTES_S:
                return "less than 512 kB/s came"
        return None
