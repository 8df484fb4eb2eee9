"""Ctrl-C, once: the work is cancelled and cleans up; pressing it again does not break the clean-up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_cancellable"]

_T = TypeVar("_T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_cancellable(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` to its end; raises KeyboardInterrupt once it was cancelled by SIGINT or SIGTERM and has cleaned up.

    Both signals are ignored from then on: all that is left is to say so and exit.
    """

    async def watched() -> _T:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def stop() -> None:
            if not task.cancelling():
                task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, stop)
        return await work

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt from None
