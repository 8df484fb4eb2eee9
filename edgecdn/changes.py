"""Waiting for the next change of something, without missing one. For one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["Changes"]


class Changes:
    """Counts changes; who waits is woken by the next one after the moment they asked."""

    def __init__(self) -> None:
        self._count = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def tell(self) -> None:
        """Something changed."""
        self._count += 1
        waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def next(self) -> Coroutine[Any, Any, None]:
        """To be awaited: ends at the first change after this call, however late it is awaited."""
        return self._wait(self._count)

    async def _wait(self, seen: int) -> None:
        if self._count != seen:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)
