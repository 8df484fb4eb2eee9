"""Measuring rates from (time, bytes) samples. Pure; the caller brings the clock."""

from __future__ import annotations

from collections import deque

__all__ = ["RateMeter"]

_BUCKET_S = 0.1


class RateMeter:
    """Bytes per second over a sliding window of `window_s` seconds."""

    def __init__(self, window_s: float = 2.0) -> None:
        self._window_s = window_s
        self._buckets: deque[tuple[float, int]] = deque()
        self._sum = 0
        self._since: float | None = None

    def add(self, count: int, now: float) -> None:
        """Record `count` bytes at `now` (seconds, monotonic)."""
        if self._since is None:
            self._since = now
        if self._buckets and now - self._buckets[-1][0] < _BUCKET_S:
            at, before = self._buckets[-1]
            self._buckets[-1] = (at, before + count)
        else:
            self._buckets.append((now, count))
        self._sum += count

    def rate(self, now: float) -> float:
        """Bytes per second up to `now`; 0 before the first sample."""
        while self._buckets and self._buckets[0][0] < now - self._window_s:
            self._sum -= self._buckets.popleft()[1]
        if self._since is None or not self._buckets:
            return 0.0
        return self._sum / min(self._window_s, max(now - self._since, _BUCKET_S))
