"""Pace: at most so many bytes a second, shared by all who ask. A token bucket for one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["Pace"]

_BURST_S = 0.1
"""What may go out at once after a pause, in seconds of the rate: short, so that the line stays usable for others."""

_SMALLEST_BURST_BYTES = 4 << 10
_LARGEST_SLICE_BYTES = 256 << 10
"""Most that is taken at once: large enough that asking costs nothing beside sending."""

_LOOK_AGAIN_S = 1.0
_SHORTEST_WAIT_S = 0.001
"""Below it, rounding could make a wait that no clock notices."""


class Pace:
    """A rate in bytes per second; None: no limit. Who asks first is served first.

    `clock` must go with the loop's own time; simulated loops pass theirs.
    """

    def __init__(self, rate_bytes_s: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rate = self._checked(rate_bytes_s)
        self._tokens = float(self._burst())
        self._refilled_s = clock()
        self._turn = asyncio.Lock()
        self._rate_changed = asyncio.Event()

    @property
    def rate_bytes_s(self) -> int | None:
        """The rate now; None: no limit."""
        return self._rate

    @property
    def slice_bytes(self) -> int:
        """How much to ask for at a time, so that a low rate still lets every one have some each tenth of a second."""
        if self._rate is None:
            return _LARGEST_SLICE_BYTES
        return min(_LARGEST_SLICE_BYTES, self._burst())

    def set_rate(self, rate_bytes_s: int | None) -> None:
        """From now on; who waits goes on at the new rate."""
        self._refill()
        self._rate = self._checked(rate_bytes_s)
        self._tokens = min(self._tokens, float(self._burst()))
        self._rate_changed.set()
        self._rate_changed = asyncio.Event()

    async def take(self, count: int) -> None:
        """Return when `count` bytes may go. More than a burst is waited for in parts."""
        if self._rate is None:
            return
        async with self._turn:
            left = float(count)
            while self._rate is not None:
                self._refill()
                used = min(left, self._tokens)
                self._tokens -= used
                left -= used
                if left <= 0:
                    return
                await self._wait(min(left, self._burst()) / self._rate)

    async def _wait(self, seconds: float) -> None:
        """Let the bucket fill; ends early when the rate is changed."""
        try:
            async with asyncio.timeout(min(max(seconds, _SHORTEST_WAIT_S), _LOOK_AGAIN_S)):
                await self._rate_changed.wait()
        except TimeoutError:
            return

    def _refill(self) -> None:
        now = self._clock()
        if self._rate is not None:
            self._tokens = min(self._burst(), self._tokens + (now - self._refilled_s) * self._rate)
        self._refilled_s = now

    def _burst(self) -> int:
        return max(_SMALLEST_BURST_BYTES, int((self._rate or 0) * _BURST_S))

    @staticmethod
    def _checked(rate_bytes_s: int | None) -> int | None:
        if rate_bytes_s is not None and rate_bytes_s <= 0:
            raise ValueError("a rate is more than nothing")
        return rate_bytes_s
