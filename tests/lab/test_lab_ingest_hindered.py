"""A lab that takes a model together while something is in the way: a partition, a hub that stalls for one, a wrong clock, a full disk."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

from tests.hub import stall
from tests.lab.disks import mounted
from tests.lab.fetching import until
from tests.lab.ingesting import BY_ADDRESS, MIB, MODEL, at_address, healed, partitioned, started, taking
from tests.lab.processes import python
from tests.lab.world import World

LINE, LAN = 80, 200
"""Mbit/s: 48 MiB cross the line in 5 s."""
SLOW_LINE = 40
"""Twice as long: to be parted for a while, and whole again before the end."""
PARTED_S = 4.0
"""Longer than anybody waits for a sign of life."""
FILLED_BYTES = 160 * MIB
YEARS_S = 10 * 365 * 86400


async def test_a_partition_in_the_middle_and_its_heal(world: World) -> None:
    """Both sides keep their line: they go on, each by itself, and have little in common when they meet again.

    The hub counts what its sockets took: of a request that is cut that is more than crossed the line, so the file is
    so large that this does not decide.
    """
    hub = world.hub("--generate", f"{MODEL}=1x96MiB", rate=SLOW_LINE)
    machines = [world.machine(name, LAN) for name in ("one", "two", "three", "four")]
    await started(*machines)
    async with taking(hub, *machines) as crowd:
        await crowd.came(0.3)
        ranked = crowd.ranked()
        sides = (ranked[0], ranked[2]), (ranked[1], ranked[3])
        partitioned(*sides)
        await asyncio.sleep(PARTED_S)
        healed(*sides)
        await crowd.done(limit_s=90)
    crowd.check_copies()


async def test_a_partition_without_a_line_on_the_other_side(world: World) -> None:
    """Those who have no line either wait for those who have one."""
    hub = world.hub("--generate", f"{MODEL}=1x48MiB", rate=SLOW_LINE)
    machines = [world.machine(name, LAN) for name in ("one", "two", "three", "four")]
    await started(*machines)
    world.network.bridge("br1")
    async with taking(hub, *machines) as crowd:
        await crowd.came(0.3)
        away = crowd.ranked()[::2]  # the coordinator is one of them
        for machine in away:
            machine.node.link.attach("br1")
        await asyncio.sleep(PARTED_S)
        for machine in away:
            machine.node.link.attach()
        await crowd.done()
    crowd.check_copies()


async def test_the_hub_stalls_for_one_only(world: World) -> None:
    """Each of its answers to one machine ends in silence before a unit is whole."""
    hub = world.hub("--generate", f"{MODEL}=1x48MiB", *BY_ADDRESS, rate=LINE)
    placed = [at_address(world, hub, name, LAN) for name in ("one", "two", "three", "four")]
    machines = [machine for machine, _ in placed]
    await started(*machines)
    hub.inject(stall(600_000, route="resolve", host=placed[0][1], path="*.safetensors"))
    async with taking(hub, *machines) as crowd:
        await crowd.done()
    address = placed[0][1].rstrip("*")
    asked = [row for row in hub.requests() if row["headers"].get("Host", "").startswith(address) and row["range"]]
    assert asked, "it asked nothing of the line"
    crowd.check_copies()


async def test_clocks_that_are_wrong(world: World) -> None:
    """One machine is ten years ahead, one ten years behind; what they count from differs as well."""
    hub = world.hub("--generate", f"{MODEL}=1x48MiB", rate=LINE)
    ahead, behind, *right = machines = [world.machine(name, LAN) for name in ("ahead", "behind", "three", "four")]
    ahead.agent_command = (python(), "-c", WRONG_CLOCK, str(YEARS_S), "5e6")
    behind.agent_command = (python(), "-c", WRONG_CLOCK, str(-YEARS_S), "1e3")
    await started(*machines)
    started_s = {machine: (await until(machine, "status", bool))["uptime_s"] for machine in machines}
    assert all(0 <= uptime_s < 60 for uptime_s in started_s.values()), (
        "the clocks of a machine disagree with each other"
    )
    async with taking(hub, *machines) as crowd:
        await crowd.done()
    crowd.check_copies()
    assert right


async def test_the_disk_of_one_is_full(world: World) -> None:
    """It fills up midway: its fetch ends and says so, the others do not notice."""
    hub = world.hub("--generate", f"{MODEL}=1x48MiB", rate=LINE)
    machines = [world.machine(name, LAN) for name in ("one", "two", "three", "full")]
    full = machines[-1]
    full.cache = full.folder / "disk"
    full.cache.mkdir()
    with mounted(world.folder / "full.ext4", full.cache, FILLED_BYTES):
        try:
            await started(*machines)
            async with taking(hub, *machines) as crowd:
                await crowd.came(0.3)
                await asyncio.to_thread(fill, full.cache)
                await crowd.done(besides=[full])
                await crowd.fetchings[full].until(lambda: crowd.fetchings[full].error is not None)
                error = crowd.fetchings[full].error
                assert error is not None
                assert error["error"] == "NoSpace", error
            crowd.check_copies()
            full.check()
        finally:
            await full.close()


def fill(folder: Path) -> None:
    """Leave no byte on a disk, not even what is kept for root."""
    seen = os.statvfs(folder)
    with (folder / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, seen.f_bfree * seen.f_frsize - 4 * MIB))
        file.seek(0, os.SEEK_END)
        try:
            while True:
                file.write(bytes(64 << 10))
                file.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC


WRONG_CLOCK = """
import runpy, sys, time
import datetime as dates
wall_s, monotonic_s = map(float, sys.argv[1:3])
wall, monotonic = time.time, time.monotonic
time.time = lambda: wall() + wall_s
time.time_ns = lambda: int((wall() + wall_s) * 1e9)
time.monotonic = lambda: monotonic() + monotonic_s
class Datetime(dates.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
dates.datetime = Datetime
sys.argv = ["edgecdn-agent"]
runpy.run_module("edgecdn_agent", run_name="__main__")
"""
"""The agent, with other clocks than the machine's: every clock of a process, but for the times of files."""
