"""Work that a cancellation must not cut short: threads cannot be stopped, and files must be let go first."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["to_its_end"]


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` also when cancelled meanwhile, however often; then raise CancelledError. Its own waits are bounded."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
