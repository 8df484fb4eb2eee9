"""A few threads for short blocking work that may hang: a hung one is given up and replaced.

Neither `asyncio.to_thread` (its threads are joined at exit, and a hung one takes a place for ever) nor
a thread for each call: starting one waits until it runs, which on a busy machine takes the event
loop many milliseconds (measured: 300 in the worst case with 24 peers at a time).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["Workers", "open_by"]

_T = TypeVar("_T")


@dataclass(slots=True)
class _Work:
    call: Callable[[], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    given_up: bool = False

    def do(self) -> None:
        """In the thread; the outcome goes back to the loop, if it still runs."""
        try:
            outcome: tuple[Callable[[Any], None], Any] = (self.future.set_result, self.call())
        except BaseException as error:  # noqa: BLE001 - carried over to the side that waits
            outcome = (self.future.set_exception, error)
        try:
            self.loop.call_soon_threadsafe(self._settle, *outcome)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _settle(self, set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not self.future.done():
            set_outcome(outcome)


class Workers:
    """`count` threads, started when first needed. One event loop; close it at the end."""

    def __init__(self, count: int, name: str) -> None:
        self._name = name
        self._free = asyncio.Semaphore(count)
        self._count = count
        self._missing = count
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()

    async def run(self, call: Callable[[], _T], limit_s: float) -> _T:
        """Run `call` when a thread is free, and wait `limit_s` for it.

        Raises TimeoutError. A call that is given up, for its time or because the caller was cancelled, ends
        by itself and its thread with it; another takes its place.
        """
        async with self._free:
            if self._missing:
                self._missing -= 1
                threading.Thread(target=self._work, daemon=True, name=self._name).start()
            loop = asyncio.get_running_loop()
            work = _Work(call, loop.create_future(), loop)
            self._queue.put(work)
            try:
                async with asyncio.timeout(limit_s):
                    result: _T = await work.future
                    return result
            finally:
                if work.future.cancelled():
                    work.given_up = True
                    self._missing += 1

    def close(self) -> None:
        """End the threads that are free, now or after their call."""
        for _ in range(self._count - self._missing):
            self._queue.put(None)
        self._missing = self._count

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work.do()
            if work.given_up:
                return


async def open_by(workers: Workers, opening: Callable[[], int], limit_s: float) -> int:
    """The descriptor that `opening` returns, in a thread; one that comes too late is closed there.

    Raises what `opening` raises, and TimeoutError.
    """
    opened: list[int] = []
    late: list[bool] = []

    def run() -> None:
        opened.append(opening())
        if late:
            os.close(opened.pop())

    try:
        await workers.run(run, limit_s)
    except BaseException:
        late.append(True)
        with suppress(IndexError):  # else the thread has closed it, or will
            os.close(opened.pop())
        raise
    return opened.pop()
