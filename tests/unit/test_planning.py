"""The small pure parts of planning: windows, rates, back-off, spans."""

from __future__ import annotations

import pytest

from edgecdn.plan.backoff import backoff_s
from edgecdn.plan.growth import Window
from edgecdn.plan.rates import RateMeter
from edgecdn.spans import Span, give_back, invert


class TestWindow:
    """Doubling while it pays."""

    def _reviewed(self, window: Window, now: float, rate: float, *, saturated: bool = True) -> int:
        window.review(now, rate, saturated=saturated)
        return window.size

    def test_never_beyond_its_limit(self) -> None:
        assert Window(1).size == 1
        window = Window(12)
        window.start(0.0)
        sizes = [self._reviewed(window, n * 5.0, 1e6 * 4**n) for n in range(1, 6)]
        assert sizes[-1] == 12
        assert sizes == sorted(sizes)

    def test_does_not_judge_before_it_was_tried(self) -> None:
        window = Window(64)
        first = window.size
        window.start(10.0)
        assert self._reviewed(window, 10.1, 1e9) == first
        assert self._reviewed(window, 12.0, 1e6) == 2 * first
        assert self._reviewed(window, 12.1, 1e9) == 2 * first

    def test_steps_back_and_rests_when_more_brings_nothing(self) -> None:
        window = Window(64)
        first = window.size
        window.start(0.0)
        assert self._reviewed(window, 2.0, 1e6) == 2 * first
        assert self._reviewed(window, 4.0, 1.1e6) == first
        assert self._reviewed(window, 10.0, 1e6) == first  # at rest
        assert self._reviewed(window, 30.0, 1e6) == 2 * first  # tried anew

    @pytest.mark.parametrize(("rate", "saturated"), [(0.0, True), (1e6, False)])
    def test_does_not_grow_without_bytes_or_without_need(self, rate: float, saturated: bool) -> None:
        window = Window(64)
        first = window.size
        window.start(0.0)
        assert self._reviewed(window, 5.0, rate, saturated=saturated) == first

    def test_shrinks_to_one_and_stays_for_a_while(self) -> None:
        window = Window(64)
        window.start(0.0)
        for _ in range(8):
            window.shrink(1.0)
        assert window.size == 1
        assert self._reviewed(window, 5.0, 1e9) == 1
        assert self._reviewed(window, 60.0, 1e9) == 2


class TestRateMeter:
    """Bytes per second of late."""

    def test_a_steady_rate(self) -> None:
        meter = RateMeter(2.0)
        assert meter.rate(0.0) == 0.0
        for n in range(100):
            meter.add(1000, n / 10)
        assert meter.rate(9.9) == pytest.approx(10_000, rel=0.06)

    def test_it_forgets_and_remembers_no_more_than_its_window(self) -> None:
        meter = RateMeter(2.0)
        meter.add(10**9, 0.0)
        meter.add(1000, 3.0)
        assert meter.rate(3.0) == pytest.approx(500)
        assert meter.rate(5.1) == 0.0

    def test_the_first_moments_count_as_what_they_are(self) -> None:
        meter = RateMeter(10.0)
        meter.add(500, 100.0)
        meter.add(500, 101.0)
        assert meter.rate(101.0) == pytest.approx(1000)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_backoff_doubles_up_to_its_most(chance: float) -> None:
    waits = [backoff_s(n, chance) for n in range(1, 12)]
    assert waits == sorted(waits)
    assert waits[1] == pytest.approx(2 * waits[0])
    assert 0.25 <= waits[0] <= 0.5
    assert 15 <= waits[-1] <= 30


def test_backoff_spreads_machines() -> None:
    """FAULTS 21: jittered."""
    assert len({backoff_s(3, n / 10) for n in range(11)}) == 11
    assert len({backoff_s(3, n / 10, 20.0) for n in range(11)}) == 11


@pytest.mark.parametrize("told", [0.0, 0.5, 7.0, 600.0])
@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_what_was_told_is_never_shortened(told: float, chance: float) -> None:
    wait = backoff_s(9, chance, told)
    assert told <= wait <= max(told * 1.1, 0.05)
    assert wait > 0


@pytest.mark.parametrize(
    ("have", "size", "missing"),
    [
        ([], 0, []),
        ([], 5, [(0, 5)]),
        ([(0, 5)], 5, []),
        ([(2, 3)], 5, [(0, 2), (3, 5)]),
        ([(0, 2), (2, 4)], 5, [(4, 5)]),
        ([(0, 3), (1, 2)], 5, [(3, 5)]),
    ],
)
def test_invert(have: list[tuple[int, int]], size: int, missing: list[tuple[int, int]]) -> None:
    assert invert([Span(*span) for span in have], size) == [Span(*span) for span in missing]


@pytest.mark.parametrize(
    ("spans", "back", "joined"),
    [
        ([], (3, 5), [(3, 5)]),
        ([], (3, 3), []),
        ([(0, 3)], (3, 5), [(0, 5)]),
        ([(5, 9)], (3, 5), [(3, 9)]),
        ([(0, 3), (5, 9)], (3, 5), [(0, 9)]),
        ([(0, 3), (7, 9)], (4, 5), [(0, 3), (4, 5), (7, 9)]),
    ],
)
def test_give_back(spans: list[tuple[int, int]], back: tuple[int, int], joined: list[tuple[int, int]]) -> None:
    found = [Span(*span) for span in spans]
    give_back(found, Span(*back))
    assert found == [Span(*span) for span in joined]
