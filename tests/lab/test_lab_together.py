"""Agents that find each other by themselves: rows 11 and 17, and a peer that comes while a fetch runs."""

from __future__ import annotations

import asyncio
import time

from tests.lab.fetching import asked, filled, holds, met
from tests.lab.links import Rate
from tests.lab.world import World

MIB = 1 << 20
METADATA_BYTES = 100_000
USED_S = 3.0


async def test_two_agents_share_with_nothing_configured(world: World) -> None:
    hub = world.hub("--generate", "org/big=2x20MiB")
    first, second = world.machine("first", 200), world.machine("second", 200)
    await asyncio.gather(first.start_agent(), second.start_agent())
    await first.fetch("org/big")
    await holds(first, 40 * MIB)
    hub.reset_stats()
    await second.fetch("org/big")
    result = (await second.status())["jobs"][0]["bytes_by_source"]
    assert result.pop("lan") == 40 * MIB + len(next(second.cache.glob("*/snapshots/*/config.json")).read_bytes())
    assert not any(result.values())
    assert hub.stats()["total"] <= METADATA_BYTES
    assert [peer["name"] for peer in await second.peers()] == ["first"]
    assert {path.name for path in first.blobs()} == {path.name for path in second.blobs()}


async def test_11_origin_blackholed_mid_file_and_a_peer_that_comes_meanwhile_finishes(world: World) -> None:
    hub = world.hub("--generate", "org/big=1x48MiB")
    holder, taker = world.machine("holder", 200), world.machine("taker", 200, fetch_patience="30s")
    await asyncio.gather(filled(holder, "org/big"), taker.start_agent())
    assert holder.agent is not None
    await holder.agent.stop()
    hub.node.link.set_rate(Rate.both(30))
    async with asked(taker, "org/big") as fetching:
        await fetching.came(4 * MIB, "origin")
        await holder.start_agent()
        joined = time.monotonic()
        # Its agent is used before the origin is gone: it came, it was asked, it gives.
        await fetching.came(1, "lan")
        assert time.monotonic() - joined <= USED_S
        hub.node.blackhole(taker.node)
        result = (await fetching.done(25))["bytes_by_source"]
    assert result["origin"] >= 4 * MIB
    assert result["lan"] >= 16 * MIB


async def test_17_a_small_mtu_completes(world: World) -> None:
    hub = world.hub("--generate", "org/big=1x24MiB")
    holder, taker = world.machine("holder", 200), world.machine("taker", 200)
    await asyncio.gather(filled(holder, "org/big"), taker.start_agent())
    hub.reset_stats()
    holder.node.link.set_mtu(600)
    await met(holder, taker)
    async with asked(taker, "org/big") as fetching:
        result = (await fetching.done())["bytes_by_source"]
    assert result["origin"] == 0
    assert hub.stats()["total"] <= METADATA_BYTES
