"""A blob that several take together: how long it takes and what comes over the line, in simulated labs."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from edgecdn.digest import Digest, DigestKind
from edgecdn_agent.ingest.deciding import (
    Ask,
    Policy,
    Pull,
    Run,
    Wait,
    coordinator_of,
    next_pull,
    next_run,
    overdue,
    streams_of,
)
from edgecdn_agent.ingest.world import Presence, UnitMap, World
from tests.agent.ingest_links import Link
from tests.agent.ingest_sim import MBIT, UNIT, Lab, Machine

NODE = bytes(32)


def a_lab(  # noqa: PLR0913
    line: float = 50, *, count: int = 8, units: int = 300, own: float = 0, seed: int = 1, holder: bool = False
) -> Lab:
    """Machines on a LAN of 100 Mbit/s that share a line."""
    lab = Lab(Link(line * MBIT), units, is_holder=holder, seed=seed)
    for _ in range(count):
        lab.machine(own=own)
    return lab


def seconds(units: int, mbit: float) -> float:
    """How long so many units take at that rate."""
    return units * UNIT / (mbit * MBIT)


@pytest.mark.parametrize(
    ("line", "units", "holder", "factor"),
    [
        pytest.param(50, 300, False, 1.05, id="half as fast as the LAN"),
        pytest.param(100, 300, False, 1.20, id="as fast as the LAN"),
        pytest.param(100, 200, True, 1.15, id="one holder"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_blob_comes_once_and_in_about_the_least_time(
    line: float, units: int, holder: bool, factor: float, seed: int
) -> None:
    outcome = a_lab(line, units=units, holder=holder, seed=seed).run()
    assert outcome.makespan <= factor * seconds(units, min(line, 100))
    assert outcome.copies == 1.0


def test_machines_that_are_held_back_each_add_up() -> None:
    outcome = a_lab(10_000, own=10).run()
    assert outcome.makespan <= seconds(300, 10) / 5
    assert outcome.copies == 1.0


@pytest.mark.parametrize("silently", [False, True])
def test_the_coordinator_dies(silently: bool) -> None:
    lab = a_lab()
    lab.clock.after(0.4 * seconds(300, 50), lambda: lab.coordinator().die(silently=silently))
    outcome = lab.run()
    assert outcome.makespan <= 1.10 * seconds(300, 50)
    assert outcome.copies <= 1.02


def test_one_joins_at_half_time() -> None:
    lab = a_lab()
    late = lab.machine(join_s=seconds(150, 50))
    done = lab.run().done
    assert max(when for name, when in done.items() if name != late.id) <= 1.08 * seconds(300, 50)
    assert done[late.id] - late.join_s <= 1.10 * seconds(300, 100)


def _break_the_switch(lab: Lab) -> None:
    names = sorted(lab.machines)
    lab.cut(set(names[:4]), set(names[4:]))
    lab.clock.after(15, lab.heal)


def _kill_all_but_one(lab: Lab) -> None:
    for machine in list(lab.machines.values())[1:]:
        machine.die()


def _stall_one(lab: Lab) -> None:
    lab.machines["m003"].stall_hub(30)


def _stall_the_coordinator(lab: Lab) -> None:
    lab.coordinator().stall_hub(1e10)


def _fill_a_disk(lab: Lab) -> None:
    lab.machines["m002"].disk_full_at = 120


@pytest.mark.parametrize(
    "fault", [_break_the_switch, _kill_all_but_one, _stall_one, _stall_the_coordinator, _fill_a_disk]
)
def test_others_end_in_spite_of(fault: Callable[[Lab], None]) -> None:
    lab = a_lab()
    lab.clock.after(17, fault, lab)
    outcome = lab.run()
    assert outcome.makespan <= 1.15 * seconds(300, 50)
    assert outcome.copies <= 1.2


def test_halves_that_never_find_each_other_again_each_end() -> None:
    lab = a_lab()
    names = sorted(lab.machines)
    lab.clock.after(15, lab.cut, set(names[:4]), set(names[4:]))
    outcome = lab.run()
    assert outcome.makespan <= 1.1 * seconds(300, 50) * outcome.copies
    assert outcome.copies <= 2


@pytest.mark.parametrize(
    ("add", "factor"),
    [
        pytest.param(lambda lab: lab.machine(10, up=10), 1.05, id="a slow link"),
        pytest.param(lambda lab: lab.machine(own=0.5), 1.10, id="a slow part of the line"),
        pytest.param(lambda lab: lab.machine(up=5), 1.60, id="it gives slowly"),
    ],
)
def test_a_slow_one_does_not_hold_up_the_others(add: Callable[[Lab], Machine], factor: float) -> None:
    lab = a_lab(count=7)
    slow = add(lab)
    outcome = lab.run()
    assert outcome.all_ended
    assert max(when for name, when in outcome.done.items() if name != slow.id) <= factor * seconds(300, 50)
    assert outcome.copies <= 1.02


def _uneven(seed: int, counts: list[int]) -> tuple[Lab, float]:
    """Machines with other parts of the line each, and the least time that it can take."""
    chance = random.Random(seed)
    count = chance.choice(counts)
    units = 300 if count <= 8 else 120
    lan, shared = chance.choice([100, 300, 1000]), chance.choice([20, 50, 100, 200, 10_000])
    owns = [chance.choice([5, 10, 20, 50, 100, 1000]) for _ in range(count)]
    lab = Lab(Link(shared * MBIT), units, seed=seed)
    for own in owns:
        lab.machine(lan, own)
    line = min(shared, sum(min(own, lan) for own in sorted(owns)[-Policy().hub_connections :]))
    return lab, seconds(units, min(line, lan))


WORST = 34
"""Of 60 tried: sixteen machines and lines of 5 to 100 Mbit/s, of which nobody knows which are the fast ones."""


@pytest.mark.parametrize("seed", [*range(1, 9), WORST])
def test_uneven_lines(seed: int) -> None:
    lab, least_s = _uneven(seed, [2, 3, 4, 5, 6, 8, 10, 16])
    outcome = lab.run()
    assert outcome.makespan <= 1.15 * least_s + 4.0
    assert outcome.copies <= 1.05


def test_two_hundred() -> None:
    lab = Lab(Link(12.5 * MBIT), 30, pieces=2)
    for _ in range(200):
        lab.machine()
    outcome = lab.run()
    assert outcome.makespan <= 1.15 * seconds(30, 12.5)
    assert outcome.copies <= 1.02
    assert outcome.messages / 200 <= MESSAGES * 30 * 200


MESSAGES = 1.1
"""That one sends for each unit and each other member: it says once that it has it; all else is a tenth."""


@pytest.mark.parametrize("count", [10, 20, 40])
def test_messages_of_one_grow_as_the_number_of_others(count: int) -> None:
    lab = a_lab(count=count, units=60)
    outcome = lab.run()
    assert outcome.messages / count <= MESSAGES * 60 * count + 2 * 60


# The rules, one by one


def a_world(*others: str, units: int = 64) -> World:
    """One that knows others, which said all."""
    world = World(Digest(DigestKind.SHA256, "0" * 64), UnitMap(units * UNIT), "me", 0.0)
    for name in others:
        world.join(name, 0.0).is_preparing = False
    return world


def test_the_least_in_rank_that_is_here_coordinates() -> None:
    world = a_world("a", "b", "c")
    ranks = {member.id: member.rank for member in world.members.values()} | {"me": world.my_rank}
    order = sorted(ranks, key=ranks.__getitem__)
    assert coordinator_of(world) == order[0]
    assert coordinator_of(world, frozenset(order[:1]) - {"me"}) == (order[1] if order[0] != "me" else "me")


def test_nothing_is_granted_before_it_is_known_what_others_read() -> None:
    world, ask = a_world("a"), Ask("me")
    assert isinstance(next_run(world, ask, Policy(), 0.1), Wait)
    world.join("b", 1.0)
    assert isinstance(next_run(world, ask, Policy(), 2.0), Wait)
    assert isinstance(next_run(world, ask, Policy(), 4.1), Run)


def test_what_is_had_or_read_is_not_granted() -> None:
    world = a_world("a", "b")
    world.got(0, NODE, read=True, now_s=1.0)
    world.has("a", 1, NODE, read=True, now_s=1.0)
    world.lease("b", 2, 4, 1.0)
    assert next_run(world, Ask("a", rate=1e6), Policy(), 1.0) == Run(4, 8)


def test_runs_shrink_and_a_holder_gives_single_units() -> None:
    world = a_world("a", units=12)
    assert next_run(world, Ask("a", rate=1e6), Policy(hub_connections=2), 1.0) == Run(0, 3)
    assert next_run(world, Ask("a", rate=1e6, from_holder=True), Policy(), 1.0) == Run(0, 1)


def test_connections_are_shared_between_blobs_and_members() -> None:
    world = a_world("a", "b", "c")
    assert streams_of(world, Policy()) == 2  # noqa: PLR2004
    assert streams_of(world, Policy(), blobs=4) == 1
    world.lease("b", 0, 1, 1.0)
    assert isinstance(next_run(world, Ask("a"), Policy(), 1.0, blobs=8), Wait)


def test_who_has_much_to_take_reads_nothing() -> None:
    world = a_world("a")
    assert isinstance(next_run(world, Ask("a", backlog=1000), Policy(), 1.0), Wait)


def test_after_a_silent_loss_of_the_coordinator_the_other_end_is_read() -> None:
    world = a_world(*"abcdefghijkl")
    before_us = [member.id for member in world.members.values() if member.rank < world.my_rank]
    assert before_us
    for name in before_us:
        world.leave(name, Presence.SILENT, 5.0)
    assert next_run(world, Ask("me", rate=1e6), Policy(), 6.0).stop == 64  # type: ignore[union-attr]  # noqa: PLR2004
    assert next_run(world, Ask("me", rate=1e6), Policy(), 70.0).start == 0  # type: ignore[union-attr]


def test_a_lease_without_progress_is_overdue() -> None:
    world = a_world("a")
    lease = world.lease("a", 0, 4, 0.0)
    assert overdue(world, Policy(), 9.0) == []
    assert overdue(world, Policy(), 11.0) == [lease]
    world.members["a"].rate = UNIT / 10
    assert overdue(world, Policy(), 39.0) == []


def test_pulls_go_to_the_one_least_asked_and_not_to_blocked_ones() -> None:
    world = a_world("a", "b", "c")
    for name in "abc":
        world.has(name, 5, NODE, read=False, now_s=1.0)
    world.members["a"].pulls = 1
    world.members["b"].blocked_until_s = 9.0
    assert next_pull(world, Policy(), 1.0, random.Random(1)) == Pull(5, "c")
    world.fetching.add(5)
    assert next_pull(world, Policy(), 1.0, random.Random(1)) is None


def test_a_slow_giver_is_asked_only_for_what_no_other_has() -> None:
    world = a_world("a", "b")
    for name in "ab":
        world.has(name, 5, NODE, read=False, now_s=1.0)
    world.members["a"].pace, world.members["b"].pace, world.members["b"].pulls = 1e5, 1e7, 1
    assert next_pull(world, Policy(), 1.0, random.Random(1)) == Pull(5, "b")
