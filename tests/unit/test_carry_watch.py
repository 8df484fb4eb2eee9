"""When a swarm is given up: the bounds of `Watch`, on a clock of its own."""

from __future__ import annotations

from edgecdn_agent.swarm.watch import Watch

MIB = 1 << 20
START = 1000.0


def test_a_swarm_that_is_never_reached_is_given_two_seconds() -> None:
    watch = Watch(START)
    watch.connections(0, START + 1)
    assert watch.verdict(START + 2, alternatives=True) is None
    assert watch.never_connected
    assert watch.verdict(START + 2.1, alternatives=True) == "no peer's swarm port answers"


def test_bytes_that_come_show_that_somebody_is_connected() -> None:
    watch = Watch(START)
    watch.arrived(0, START)
    watch.arrived(MIB, START + 1.9)
    assert not watch.never_connected
    assert watch.verdict(START + 3, alternatives=True) is None


def test_what_an_earlier_run_left_is_no_sign_of_life() -> None:
    watch = Watch(START)
    watch.arrived(40 * MIB, START)
    assert watch.never_connected
    assert watch.verdict(START + 2.1, alternatives=True) == "no peer's swarm port answers"


def test_peers_that_went_away_may_come_back_within_a_second() -> None:
    watch = Watch(START)
    watch.connections(2, START + 0.1)
    watch.connections(0, START + 3)
    watch.connections(0, START + 3.9)
    assert watch.verdict(START + 4, alternatives=True) is None
    watch.connections(1, START + 4)
    assert watch.verdict(START + 4.5, alternatives=True) is None
    watch.connections(0, START + 4.6)
    assert watch.verdict(START + 4.8, alternatives=True) is None
    assert (
        watch.verdict(START + 5.7, alternatives=True) == "nothing came for 5 s"
        or watch.verdict(START + 5.7, alternatives=True) == "every peer went away"
    )


def test_five_seconds_without_a_byte_are_too_long() -> None:
    watch = Watch(START)
    watch.connections(1, START + 0.1)
    watch.arrived(0, START)
    watch.arrived(MIB, START + 1)
    watch.arrived(MIB, START + 5.9)
    assert watch.verdict(START + 6, alternatives=True) is None
    assert watch.verdict(START + 6.1, alternatives=True) == "nothing came for 5 s"


def test_less_than_the_least_rate_for_ten_seconds_is_too_slow() -> None:
    watch = Watch(START)
    watch.connections(1, START + 0.1)
    for second in range(13):
        watch.arrived(second * 400_000, START + second)
        said = watch.verdict(START + second, alternatives=True)
        assert said == (None if second <= 10 else "less than 512 kB/s came")


def test_a_slow_start_is_forgiven_when_it_gets_fast() -> None:
    watch = Watch(START)
    watch.connections(1, START + 0.1)
    total = 0
    for second in range(40):
        total += 100_000 if second < 5 else 5_000_000
        watch.arrived(total, START + second)
        assert watch.verdict(START + second, alternatives=True) is None


def test_a_swarm_that_gets_slow_after_an_hour_is_noticed_within_ten_seconds() -> None:
    watch = Watch(START)
    watch.connections(1, START + 0.1)
    for second in range(3600):
        watch.arrived(second * 10_000_000, START + second)
    for second in range(3600, 3612):
        watch.arrived(3600 * 10_000_000 + (second - 3600) * 1000, START + second)
    assert watch.verdict(START + 3611, alternatives=True) == "less than 512 kB/s came"


def test_alone_it_is_waited_for_a_minute_since_the_last_byte() -> None:
    watch = Watch(START)
    assert watch.verdict(START + 59, alternatives=False) is None
    watch.arrived(0, START)
    watch.arrived(1, START + 50)
    watch.connections(0, START + 51)
    assert watch.verdict(START + 109, alternatives=False) is None
    assert watch.verdict(START + 111, alternatives=False) == "nothing came for a minute"


def test_what_is_remembered_does_not_grow() -> None:
    watch = Watch(START)
    for tick in range(100_000):
        watch.arrived(tick * MIB, START + tick * 0.01)
    assert len(watch._seen) < 100
