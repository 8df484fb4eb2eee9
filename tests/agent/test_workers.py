"""Threads that hang are replaced, and no thread is left after the end."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

import pytest

from edgecdn_agent.lan.workers import Workers


def alive(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


async def test_results_and_errors_come_back() -> None:
    workers = Workers(2, "t-results")
    assert await asyncio.gather(*(workers.run(partial(pow, n, 2), 5) for n in range(50))) == [n * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        await workers.run(lambda: 1 // 0, 5)
    assert alive("t-results") <= 2
    workers.close()
    workers.close()
    async with asyncio.timeout(20):
        while alive("t-results"):
            await asyncio.sleep(0.01)


async def test_hung_threads_are_replaced() -> None:
    workers, release = Workers(2, "t-hung"), threading.Event()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await workers.run(lambda: release.wait(30), 0.02)
    given_up = asyncio.ensure_future(workers.run(lambda: release.wait(30), 5))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await workers.run(time.monotonic, 5) > 0
    workers.close()
    release.set()
    async with asyncio.timeout(20):
        while alive("t-hung"):
            await asyncio.sleep(0.01)
