"""Bandwidth limits: each sender books its slot on a timeline and sleeps until then."""

from __future__ import annotations

import asyncio
from contextlib import suppress

SLICES_PER_S = 20  # how finely a limited answer is cut
SMALLEST_SLICE_BYTES = 512
LARGEST_SLICE_BYTES = 4 << 20
CATCH_UP_S = 0.1  # lost time a sender may make good, so that late wake-ups do not add up


class Pacer:
    """A line of a given rate, shared by all who hold it."""

    def __init__(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._free_at: float | None = None

    @property
    def slice_bytes(self) -> int:
        """How much to send at once."""
        wanted = int(self._rate / SLICES_PER_S)
        return max(SMALLEST_SLICE_BYTES, min(LARGEST_SLICE_BYTES, wanted))

    async def take(self, amount: int, released: asyncio.Event) -> None:
        """Wait until the line has carried the bytes, or is `released` from its limit."""
        now = asyncio.get_running_loop().time()
        free_at = now if self._free_at is None else max(now - CATCH_UP_S, self._free_at)
        self._free_at = free_at + amount / self._rate
        with suppress(TimeoutError):
            async with asyncio.timeout(self._free_at - now):
                await released.wait()
