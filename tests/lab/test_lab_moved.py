"""Machines that get another address, sleep, or are cut off for a while: rows 18 and 19, and sleep and wake."""

from __future__ import annotations

import asyncio
import time

from tests.lab.fetching import asked, filled, met, until
from tests.lab.links import Rate
from tests.lab.world import World

MIB = 1 << 20
METADATA_BYTES = 100_000
ANNOUNCED_S = 60.0
GONE_S = 15.0
NEW_ADDRESS = "10.77.9.9"


async def test_18_another_address_and_a_machine_that_sleeps(world: World) -> None:
    """Side by side: one holder gets another address, one sleeps and wakes; both are found again, and used."""
    hub = world.hub("--generate", "org/one=1x16MiB", "--generate", "org/two=1x17MiB")
    mover, sleeper = world.machine("mover", 200), world.machine("sleeper", 200)
    taker = world.machine("taker", 200)
    await asyncio.gather(filled(mover, "org/one"), filled(sleeper, "org/two"), taker.start_agent())
    await met(mover, sleeper, taker)
    hub.reset_stats()
    hub.node.link.set_rate(Rate.both(1))
    began = time.monotonic()
    mover.node.move(NEW_ADDRESS)
    sleeper.pause()
    await until(taker, "peers", lambda peers: "sleeper" not in {peer["name"] for peer in peers}, GONE_S)
    left_s = ANNOUNCED_S - (time.monotonic() - began)
    await until(taker, "peers", lambda peers: [NEW_ADDRESS] in [p["addresses"][:1] for p in peers], left_s)
    async with asked(taker, "org/one") as fetching:
        assert (await fetching.done())["bytes_by_source"]["origin"] == 0
    # Longer than peers wait for a sign of life: it knows by itself that it slept.
    await asyncio.sleep(max(0.0, began + GONE_S + 1 - time.monotonic()))
    sleeper.resume()
    await met(taker, sleeper)
    await until(sleeper, "peers", lambda peers: "taker" in {peer["name"] for peer in peers})
    async with asked(taker, "org/two") as fetching:
        assert (await fetching.done())["bytes_by_source"]["origin"] == 0
    assert hub.stats()["total"] <= METADATA_BYTES


async def test_19_partition_and_heal_is_one_copy(world: World) -> None:
    """The side without a line waits for the other side's copy; after the heal nobody asks the hub for the bytes again."""
    hub = world.hub("--generate", "org/big=1x24MiB")
    near, far, other = world.machine("near"), world.machine("far", fetch_patience="2s"), world.machine("other")
    await asyncio.gather(near.start_agent(), far.start_agent(), other.start_agent())
    await met(near, far, other)
    world.network.bridge("br1")
    for machine in (far, other):
        machine.node.link.attach("br1")
    async with asked(far, "org/big"), asked(near, "org/big") as fetching:
        assert (await fetching.done())["bytes_by_source"]["lan"] == 0
    await until(far, "peers", lambda peers: [peer["name"] for peer in peers] == ["other"])
    await until(far, "jobs", lambda jobs: jobs[0]["state"] == "waiting", 20)
    copied = hub.stats()["total"]
    for machine in (far, other):
        machine.node.link.attach()
    healed = time.monotonic()
    ended = (await until(far, "jobs", lambda jobs: jobs[0]["state"] == "done", 40))[0]
    assert ended["bytes_by_source"]["lan"] >= 24 * MIB
    async with asked(other, "org/big") as fetching:
        assert (await fetching.done())["bytes_by_source"]["origin"] == 0
    assert time.monotonic() - healed < 45
    assert copied >= 24 * MIB
    assert hub.stats()["total"] - copied <= METADATA_BYTES
