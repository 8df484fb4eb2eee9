"""Lines and holders that go away while a file comes: rows 12 and 13, and a holder killed with -9."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from tests.lab.fetching import Fetching, asked, filled, met, until
from tests.lab.links import Rate
from tests.lab.world import World

MIB = 1 << 20
METADATA_BYTES = 100_000
SILENT_S, KILLED_S = 15.0, 5.0
"""What each loss may cost: who is silent is waited for, first in the swarm and then over HTTP; a dead one says so."""


async def test_12_lan_down_mid_piece_and_a_holder_killed(world: World) -> None:
    """Two pairs side by side: one holder's cable goes dead silently, the other one's agent dies. The hub ends both."""
    hub = world.hub("--generate", "org/one=1x32MiB", "--generate", "org/two=1x33MiB")
    silent, killed = world.machine("silent", Rate(up=60)), world.machine("killed", Rate(up=60))
    first, second = world.machine("first"), world.machine("second")
    await asyncio.gather(
        filled(silent, "org/one"), filled(killed, "org/two"), first.start_agent(), second.start_agent()
    )
    await met(silent, killed, first, second)
    hub.reset_stats()

    async def cable() -> None:
        silent.node.link.detach()

    async with asked(first, "org/one") as one, asked(second, "org/two") as two:
        lost = await asyncio.gather(_lose(one, cable), _lose(two, killed.kill))
        results = await asyncio.gather(one.done(30), two.done(30))
    for fetching, result, at, most_s in zip((one, two), results, lost, (SILENT_S, KILLED_S), strict=True):
        assert result["bytes_by_source"]["lan"] >= 4 * MIB
        assert result["bytes_by_source"]["origin"] > 0
        assert fetching.longest_silence_s(at) <= most_s
    # Nothing that had come was asked of the hub again, but for what was in flight: of a request that is cut the hub
    # counts what its socket took, 2 MiB at most.
    missing = sum(result["bytes_by_source"]["origin"] for result in results)
    assert hub.stats()["total"] <= missing * 1.05 + 2 * 2 * MIB + METADATA_BYTES


async def test_13_both_down_and_back(world: World) -> None:
    """With patience the same fetch goes on; without, and with nobody waiting, the agent begins again by itself."""
    hub = world.hub("--generate", "org/big=1x32MiB")
    holder = world.machine("holder", Rate(up=100))
    patient, left = world.machine("patient", fetch_patience="40s"), world.machine("left", fetch_patience="3s")
    await asyncio.gather(filled(holder, "org/big"), patient.start_agent(), left.start_agent())
    hub.node.link.set_rate(Rate.both(50))
    await met(holder, patient, left)
    async with asked(patient, "org/big") as waits:
        async with asked(left, "org/big") as leaves:
            await asyncio.gather(waits.came(6 * MIB), leaves.came(6 * MIB))
        for machine in (patient, left):
            machine.node.link.pull()
        jobs = await until(left, "jobs", lambda jobs: jobs[0]["state"] == "waiting", 20)
        assert jobs[0]["askers"] == 0
        for machine in (patient, left):
            machine.node.link.plug()
        plugged = time.monotonic()
        await waits.done(30)
    assert min(at[0] for at in waits.seen.values()) < plugged < max(at[-1] for at in waits.seen.values())
    ended = (await until(left, "jobs", lambda jobs: jobs[0]["state"] == "done", 30))[0]
    assert 0 < sum(ended["bytes_by_source"].values()) <= 28 * MIB, "what had come was asked for again"


async def _lose(fetching: Fetching, lose: Callable[[], Awaitable[object]]) -> float:
    await fetching.came(4 * MIB, "lan")
    await lose()
    return time.monotonic()
