"""The machine's interfaces, what follows from them, and word of their changes."""

from __future__ import annotations

import asyncio
from ipaddress import ip_interface, ip_network

from edgecdn_agent.lab.addresses import (
    AddressWatch,
    Clocks,
    Interface,
    MachineChanged,
    announceable,
    link_bytes_s,
    private_networks,
    read_clocks,
    read_interfaces,
)
from edgecdn_agent.lab.reach import Reach


def interface(name: str, *addresses: str, is_up: bool = True, speed_bits_s: int = 0) -> Interface:
    return Interface(name, tuple(ip_interface(a) for a in addresses), is_up, speed_bits_s)


LO = interface("lo", "127.0.0.1/8", "::1/128")
ETH = interface("eth0", "192.168.7.20/24", "fe80::1/64", speed_bits_s=1_000_000_000)
CAMPUS = interface("eth1", "130.75.1.2/16", "2001:db8::2/64", speed_bits_s=100_000_000)
DOCKER = interface("docker0", "172.17.0.1/16", speed_bits_s=10_000_000_000)
DOWN = interface("wlan0", "10.1.2.3/8", is_up=False, speed_bits_s=10_000_000_000)


def test_this_machine_has_loopback() -> None:
    found = {str(a.ip): i for i in read_interfaces() for a in i.addresses}
    assert found["127.0.0.1"].is_up


def test_private_networks_are_those_of_interfaces_that_are_up() -> None:
    found = private_networks([LO, ETH, CAMPUS, DOCKER, DOWN])
    assert [str(n) for n in found] == ["192.168.7.0/24", "fe80::/64", "172.17.0.0/16"]


def test_carrier_nat_is_not_private_and_a_network_that_is_too_wide_is_cut_to_its_private_part() -> None:
    found = private_networks([interface("ppp0", "100.64.3.4/10"), interface("vpn", "10.0.0.5/7")])
    assert found == (ip_network("10.0.0.0/8"),)


def test_announced_is_what_others_can_use() -> None:
    everything = [LO, ETH, CAMPUS, DOCKER, DOWN]
    assert announceable(everything, Reach((), everything).allows) == ("192.168.7.20", "fe80::1")
    assert announceable([LO, CAMPUS], Reach((), [LO, CAMPUS]).allows) == ("127.0.0.1", "::1")
    assert announceable([DOWN], lambda _: True) == ()


def test_the_links_speed_is_that_of_the_fastest_real_one() -> None:
    assert link_bytes_s([LO, ETH, CAMPUS, DOCKER, DOWN]) == 125_000_000
    assert link_bytes_s([LO]) is None


class Scripted:
    """Snapshots and clocks as a test sets them."""

    def __init__(self) -> None:
        self.interfaces: tuple[Interface, ...] = (LO, ETH)
        self.clocks = Clocks(100.0, 100.0)
        self.told: list[MachineChanged] = []
        self.fails = False
        self.watch = AddressWatch((LO, ETH), self.read, lambda: self.clocks)
        self.watch.subscribe(self.told.append)

    def read(self) -> tuple[Interface, ...]:
        if self.fails:
            raise OSError("too many open files")
        return self.interfaces

    async def look(self, awake_s: float = 5.0, asleep_s: float = 0.0) -> None:
        before = self.clocks
        self.clocks = Clocks(before.monotonic_s + awake_s, before.boottime_s + awake_s + asleep_s)
        await self.watch.look()


async def test_changes_are_told_once() -> None:
    world = Scripted()
    await world.look()
    assert world.told == []
    world.interfaces = (LO, CAMPUS)
    await world.look()
    await world.look()
    assert world.told == [MachineChanged((LO, CAMPUS), woke=False)]


async def test_sleep_and_a_stopped_process_are_noticed() -> None:
    world = Scripted()
    await world.look(asleep_s=4.0)
    assert world.told == []
    await world.look(asleep_s=3600.0)
    await world.look()
    await world.look(awake_s=21.0)
    assert world.told == [MachineChanged((LO, ETH), woke=True)] * 2


async def test_interfaces_that_cannot_be_read_change_nothing() -> None:
    world = Scripted()
    world.fails = True
    await world.look()
    assert world.told == []
    assert world.watch.interfaces == (LO, ETH)


async def test_the_watch_looks_by_itself() -> None:
    told: asyncio.Queue[MachineChanged] = asyncio.Queue()
    watch = AddressWatch((), read_interfaces, read_clocks, poll_s=0.01)
    watch.subscribe(told.put_nowait)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(watch.run())
        assert (await told.get()).interfaces == read_interfaces()
        running.cancel()


async def test_a_listener_that_fails_does_not_silence_the_others() -> None:
    world = Scripted()
    later: list[MachineChanged] = []

    def fail(_: MachineChanged) -> None:
        raise ValueError("mine")

    stop = world.watch.subscribe(fail)
    world.watch.subscribe(later.append)
    await world.look(asleep_s=60)
    stop()
    assert len(later) == 1
