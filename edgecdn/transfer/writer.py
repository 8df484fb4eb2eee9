"""Writing one request's bytes behind its receiving: one unit is written while the next comes in.

Of a file that somebody reads as it comes, what is there is written after a moment, also where that is no whole unit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgecdn.transfer.incoming import Incoming

__all__ = ["LeaseWriter"]

_SOON_S = 0.2
"""How long bytes of a hurried file are collected, seconds. On a fast line, whole units come within it."""


class LeaseWriter:
    """Collects pieces from `start` on and writes them unit by unit, in order.

    `written` is up to where everything is in the file. `landed` is called with each count of bytes. After the
    last piece comes `flush`.
    """

    def __init__(self, incoming: Incoming, start: int, source: str, landed: Callable[[int], None]) -> None:
        self.written = start
        self._incoming = incoming
        self._source = source
        self._landed = landed
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._under_way: asyncio.Future[int] | None = None
        self._soon: asyncio.TimerHandle | None = None

    async def add(self, piece: bytes) -> None:
        """Take a piece; waits only while what came before it is still being written."""
        self._pieces.append(piece)
        self._bytes += len(piece)
        if self._bytes >= self._incoming.part.unit:
            await self._settle()
            self._begin()
        elif self._soon is None:
            self._start_timer()

    async def flush(self) -> None:
        """Write all that was taken. Runs to its end also when cancelled meanwhile; then raises CancelledError."""
        try:
            await self._settle()
        finally:
            if self._pieces and self._under_way is None:
                self._begin()
                await self._settle()

    def _write_soon(self) -> None:
        self._soon = None
        under_way = self._under_way
        if not self._pieces:
            return
        if not self._incoming.hurried or (under_way is not None and not under_way.done()):
            self._start_timer()  # it may be hurried yet, when nothing comes any more
        elif under_way is None or under_way.exception() is None:  # else: `_settle` raises it
            if under_way is not None:
                self._book(under_way)
            self._begin()

    def _begin(self) -> None:
        pieces, count, start = self._pieces, self._bytes, self.written
        self._pieces, self._bytes = [], 0

        async def write() -> int:
            await self._incoming.write(start, pieces, self._source)
            return count

        # Not a task group's: it must outlive the cancelling of its request; `_settle` always waits for it.
        self._under_way = asyncio.ensure_future(write())

    async def _settle(self) -> None:
        """Wait for the write under way and count it, also when cancelled meanwhile, however often.

        A thread that writes cannot be stopped: what it writes and is not counted would be fetched twice.
        """
        self._stop_timer()
        cancelled = False
        while self._under_way is not None:
            try:
                await asyncio.wait([self._under_way])
            except asyncio.CancelledError:
                cancelled = True
                continue
            self._book(self._under_way)
        if cancelled:
            raise asyncio.CancelledError

    def _book(self, written: asyncio.Future[int]) -> None:
        """Count what was written; raises what its writing raised."""
        self._under_way = None
        if written.exception() is not None:
            self._pieces.clear()  # what follows a hole must not move into it
        count = written.result()
        self.written += count
        self._landed(count)

    def _start_timer(self) -> None:
        self._soon = asyncio.get_running_loop().call_later(_SOON_S, self._write_soon)

    def _stop_timer(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
