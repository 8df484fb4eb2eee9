"""Machines that are lost while a lab takes a model together: the others end, and nearly nothing is asked of the hub again."""

from __future__ import annotations

import pytest

from tests.lab.hub import LabHub
from tests.lab.ingesting import MODEL, started, taking
from tests.lab.machine import Machine
from tests.lab.world import World

LINE, LAN = 80, 200
"""Mbit/s: the model crosses the line in 5 s, in which a machine can be lost."""


async def test_the_coordinator_is_killed_and_then_its_successor(world: World) -> None:
    hub, machines = await lab(world)
    async with taking(hub, *machines) as crowd:
        first, second, *_ = crowd.ranked()
        await crowd.came(0.3)
        await first.kill()
        await crowd.came(0.6, besides=[first])
        await second.kill()
        await crowd.done(besides=[first, second])
    crowd.check_copies()


async def test_a_lease_holder_is_killed(world: World) -> None:
    hub, machines = await lab(world)
    async with taking(hub, *machines) as crowd:
        await crowd.came(0.4)
        lost = await crowd.reader(besides=crowd.ranked()[:1])
        await lost.kill()
        await crowd.done(besides=[lost])
    crowd.check_copies()


@pytest.mark.parametrize("role", ["a lease holder", "the coordinator"])
async def test_one_falls_silent_without_a_reset(world: World, role: str) -> None:
    hub, machines = await lab(world)
    async with taking(hub, *machines) as crowd:
        await crowd.came(0.4)
        coordinator = crowd.ranked()[0]
        lost = coordinator if role == "the coordinator" else await crowd.reader(besides=[coordinator])
        lost.node.link.detach()
        await crowd.done(besides=[lost])
    crowd.check_copies()


async def test_all_but_one_are_killed(world: World) -> None:
    hub, machines = await lab(world)
    async with taking(hub, *machines) as crowd:
        await crowd.came(0.4)
        last = crowd.ranked()[-1]
        lost = [machine for machine in machines if machine is not last]
        for machine in lost:
            await machine.kill()
        await crowd.done(besides=lost)
    crowd.check_copies()


async def lab(world: World) -> tuple[LabHub, list[Machine]]:
    """Four machines that know each other, and a hub behind a line that they share."""
    hub = world.hub("--generate", f"{MODEL}=1x48MiB", rate=LINE)
    machines = [world.machine(name, LAN) for name in ("one", "two", "three", "four")]
    await started(*machines)
    return hub, machines
