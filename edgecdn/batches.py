"""Doing together what comes in while the last of the same is being done: one sync of a folder for many files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Batches", "to_its_end"]

_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _Part(Generic[_T]):
    """What one caller wants done, and what came of it."""

    items: Sequence[_T]
    done: bool = False
    error: Exception | None = None


class Batches(Generic[_T]):
    """Runs one batch at a time. On one event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._pending: dict[Hashable, list[_Part[_T]]] = {}

    async def do(self, key: Hashable, items: Sequence[_T], work: Callable[[Sequence[_T]], Awaitable[None]]) -> None:
        """Have `items` done; those of callers with an equal `key`, whose `work` does the same, go in one call.

        When a batch fails, its parts are done one by one, so that each caller gets the error of their own.
        """
        mine = _Part(items)
        self._pending.setdefault(key, []).append(mine)
        try:
            async with self._turn:
                if not mine.done:
                    await self._run(self._pending.pop(key), work)
        finally:
            waiting = self._pending.get(key, [])
            if mine in waiting:  # cancelled before its turn
                waiting.remove(mine)
                if not waiting:
                    del self._pending[key]
        if mine.error is not None:
            raise mine.error

    async def _run(self, parts: Sequence[_Part[_T]], work: Callable[[Sequence[_T]], Awaitable[None]]) -> None:
        try:
            await to_its_end(work([item for part in parts for item in part.items]))
        except Exception as error:  # noqa: BLE001 - told to whose it is
            if len(parts) == 1:
                parts[0].error = error
            else:
                await self._one_by_one(parts, work)
        finally:  # cancelled, it was done all the same
            for part in parts:
                part.done = True

    async def _one_by_one(self, parts: Sequence[_Part[_T]], work: Callable[[Sequence[_T]], Awaitable[None]]) -> None:
        for part in parts:
            try:
                await to_its_end(work(part.items))
            except Exception as error:  # noqa: BLE001 - as above
                part.error = error


async def to_its_end(work: Awaitable[_T]) -> _T:
    """Wait for work that others depend on, also when cancelled meanwhile, however often: it must be short."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result
