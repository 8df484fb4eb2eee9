"""Blocking calls that may never return: a thread for each, which nobody has to wait for.

Not `asyncio.to_thread`: its threads are joined at exit, so a call that hangs (a hub without a time
limit, a dead network mount) would hang that too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["in_own_thread"]

_T = TypeVar("_T")


async def in_own_thread(call: Callable[[], _T], limit_s: float) -> _T:
    """Run `call` in a daemon thread; raises TimeoutError after `limit_s` and leaves a late one to end by itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], object] = (future.set_result, call())
        except BaseException as error:  # noqa: BLE001 - carried over to the side that waits
            outcome = (future.set_exception, error)
        try:
            loop.call_soon_threadsafe(settle, *outcome)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    threading.Thread(target=run, daemon=True, name="edgecdn-blocking").start()
    async with asyncio.timeout(limit_s):
        return await future
