"""Peers that give little or nothing though they are there: rows 14 and 43."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from tests.lab.fetching import asked, filled, met
from tests.lab.links import Rate
from tests.lab.world import World

MIB = 1 << 20
METADATA_BYTES = 100_000
REPLACED_S = 30.0
SWARM = "peers (swarm)"


async def test_14_a_peer_on_1_mbit_is_avoided(world: World) -> None:
    """Beside a fast peer it costs nothing; alone, it is left for the hub."""
    hub = world.hub("--generate", "org/one=1x32MiB", "--generate", "org/two=1x24MiB")
    slow, fast = world.machine("slow"), world.machine("fast")
    first, second = world.machine("first", 200), world.machine("second", 200)
    await asyncio.gather(
        filled(slow, "org/one", "org/two"), filled(fast, "org/one"), first.start_agent(), second.start_agent()
    )
    await met(slow, fast, first, second)
    slow.node.link.set_rate(Rate.both(1))
    hub.reset_stats()
    async with asked(first, "org/one") as one, asked(second, "org/two") as two:
        beside, alone = await asyncio.gather(one.done(40), two.done(40))
    assert beside["bytes_by_source"]["origin"] == 0
    assert beside["seconds"] <= 10, one.by_source  # 1.4 s at 200 Mbit/s; at 1 Mbit/s, 270 s
    assert alone["bytes_by_source"]["lan"] <= 6 * MIB
    assert alone["seconds"] <= 25, two.by_source
    # The end of the slowest request is asked of another connection; what of it was in the sockets comes twice.
    assert hub.stats()["total"] <= 25 * MIB + METADATA_BYTES


async def test_43_swarm_ports_that_are_closed_silent_or_fall_silent(world: World) -> None:
    """The swarm of three holders does not work, each in its own way: their LAN ports give, the hub is not asked."""
    hub = world.hub("--generate", "org/one=1x40MiB")
    # The agent's own is on loopback, so what others reach at that port is nothing, or the proxy.
    holders = [world.machine(name, 200, swarm_listen="127.0.0.1:8379") for name in ("closed", "silent", "stops")]
    takers = [world.machine("taker"), world.machine("other")]  # two: who takes alone does not use the swarm
    for machine in holders[1:]:
        await world.proxy(machine, 8379, ("127.0.0.1", 8379))
    world.proxies[0].set(silent_after=0)
    world.proxies[1].set(silent_after=3 * MIB)
    await filled(holders[0], "org/one")
    await asyncio.gather(*(filled(holder, "org/one") for holder in holders[1:]), *(t.start_agent() for t in takers))
    await met(*holders, *takers)
    hub.reset_stats()
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        jobs = [await stack.enter_async_context(asked(taker, "org/one")) for taker in takers]
        results = await asyncio.gather(*(job.done(REPLACED_S) for job in jobs))
    assert time.monotonic() - began <= REPLACED_S
    assert all(proxy.connections for proxy in world.proxies)
    for job, result in zip(jobs, results, strict=True):
        assert result["bytes_by_source"]["origin"] == 0
        assert result["bytes_by_source"]["lan"] >= 40 * MIB
        assert job.longest_silence_s(began) <= 10, result["repo"]
    assert sum(job.by_source[SWARM] for job in jobs) > 0, "it fell silent before it gave anything"
    assert hub.stats()["total"] <= METADATA_BYTES
