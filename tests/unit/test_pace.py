"""Pace: the rate holds, waiters take turns, changes reach who waits. On a simulated clock: no real sleeping."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

import pytest

from edgecdn.pace import Pace


class _Jumping(selectors.SelectSelector):
    """Instead of waiting, it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits for somebody else"
            self.now_s += timeout
        return ready


class _SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now_s


def simulate(main: Coroutine[Any, Any, float]) -> float:
    loop = _SimulatedLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def _now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("rate", [1000, 1_000_000, 117_000_000])
@pytest.mark.parametrize("takers", [1, 7])
def test_the_rate_holds(rate: int, takers: int) -> None:
    async def main() -> float:
        pace = Pace(rate, _now)
        total = rate * 10

        async def take() -> None:
            left = total // takers
            while left > 0:
                count = min(left, pace.slice_bytes)
                await pace.take(count)
                left -= count

        await asyncio.gather(*(take() for _ in range(takers)))
        return _now()

    burst_s = max(0.1, 4096 / rate)
    assert simulate(main()) == pytest.approx(10 - burst_s, abs=0.2)


def test_no_limit_takes_no_time() -> None:
    async def main() -> float:
        pace = Pace(None, _now)
        await pace.take(1 << 40)
        return _now()

    assert simulate(main()) == 0


def test_a_pause_saves_up_no_more_than_a_burst() -> None:
    async def main() -> float:
        pace = Pace(1_000_000, _now)
        await asyncio.sleep(3600)
        before = _now()
        await pace.take(1_100_000)
        return _now() - before

    assert simulate(main()) == pytest.approx(1.0, abs=0.01)


def test_who_waits_goes_on_at_the_new_rate() -> None:
    async def main() -> float:
        pace = Pace(1000, _now)
        async with asyncio.TaskGroup() as group:
            group.create_task(pace.take(1_000_000))  # a quarter of an hour
            await asyncio.sleep(1)
            pace.set_rate(None)
        return _now()

    assert simulate(main()) == pytest.approx(1.0, abs=0.01)


def test_the_first_to_ask_is_the_first_to_get() -> None:
    async def main() -> float:
        pace, order = Pace(10_000, _now), []

        async def take(number: int) -> None:
            await pace.take(10_000)
            order.append(number)

        await asyncio.gather(*(take(number) for number in range(5)))
        assert order == [0, 1, 2, 3, 4]
        return _now()

    simulate(main())


def test_one_who_gives_up_holds_up_nobody() -> None:
    async def main() -> float:
        pace = Pace(1000, _now)
        waiting = asyncio.ensure_future(pace.take(1_000_000))
        await asyncio.sleep(0.5)
        waiting.cancel()
        await pace.take(1000)
        return _now()

    assert simulate(main()) <= 2


def test_a_low_rate_is_given_in_small_slices() -> None:
    assert Pace(1000).slice_bytes == 4096
    assert Pace(1_000_000).slice_bytes == 100_000
    assert Pace(1 << 40).slice_bytes == Pace(None).slice_bytes == 256 << 10


def test_no_rate_is_zero() -> None:
    for bad in (0, -1):
        with pytest.raises(ValueError, match="more than nothing"):
            Pace(bad)
