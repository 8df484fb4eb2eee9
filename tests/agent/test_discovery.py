"""Discovery by real multicast on loopback."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from ipaddress import ip_interface

import psutil
import pytest
from zeroconf import ServiceStateChange

from edgecdn_agent.lab import discovery as module
from edgecdn_agent.lab.addresses import Interface
from edgecdn_agent.lab.discovery import SERVICE_TYPE, Announcement, Discovery
from edgecdn_agent.lab.reach import Reach
from tests.agent.speaking_peer import until

LO = Interface("lo", (ip_interface("127.0.0.1/8"),))
LO_AND_SIX = Interface("lo", (ip_interface("127.0.0.1/8"), ip_interface("::1/128")))
MOVED = Interface("lo", (ip_interface("127.0.0.9/8"),))


class Ear:
    """One agent's discovery and the hints it gave."""

    def __init__(self, number: int, interfaces: Iterable[Interface], port: int = 0, listen: str = "0.0.0.0") -> None:
        self.hints: list[tuple[str, int]] = []
        self.id = f"{random.getrandbits(96):024x}{number:08x}"
        self.port = port or random.randrange(20000, 60000)
        me = Announcement(self.id, f"bench {number}.local", "1.0.0", listen, self.port, 8379)
        self.discovery = Discovery(me, lambda h, p: self.hints.append((h, p)), Reach((), [LO]).allows, interfaces)

    def heard(self, other: Ear) -> bool:
        return any(port == other.port for _, port in self.hints)


@asynccontextmanager
async def running(*ears: Ear) -> AsyncIterator[None]:
    """At the end nothing of them is left, soon."""
    others = asyncio.all_tasks()
    tasks = [asyncio.ensure_future(ear.discovery.run()) for ear in ears]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        began = time.monotonic()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert time.monotonic() - began < 1.2
        assert all(task.cancelled() for task in tasks)
        assert not any(ear.discovery.is_working for ear in ears)
    if others == {asyncio.current_task()}:
        assert asyncio.all_tasks() == others


def open_sockets() -> int:
    return sum(c.fd >= 0 for c in psutil.Process().net_connections())


@pytest.mark.parametrize("interface", [LO, LO_AND_SIX], ids=["ipv4", "both"])
async def test_two_agents_on_one_machine_find_each_other(interface: Interface) -> None:
    before = open_sockets()
    one, two = Ear(1, [interface]), Ear(2, [interface])
    async with running(one):
        await until(lambda: one.discovery.is_working)
        async with running(two):
            # the join is seen by who is there, and the newcomer sees who was there: 3 s are allowed
            assert await until(lambda: one.heard(two) and two.heard(one)) < 3
            assert ("127.0.0.1", two.port) in one.hints
            assert not one.heard(one)
    assert open_sockets() == before


async def test_three_agents_that_start_at_once() -> None:
    ears = [Ear(n, [LO]) for n in range(3)]
    async with running(*ears):
        assert await until(lambda: all(a is b or a.heard(b) for a in ears for b in ears)) < 3


async def test_one_that_comes_back_is_news_again() -> None:
    one, two = Ear(1, [LO]), Ear(2, [LO])
    async with running(one):
        async with running(two):
            await until(lambda: one.heard(two))
        one.hints.clear()
        async with running(Ear(2, [LO]), two):
            assert await until(lambda: one.heard(two)) < 3


async def test_row_18_a_new_address_is_announced() -> None:
    one, two = Ear(1, [LO]), Ear(2, [LO])
    async with running(one, two):
        await until(lambda: one.heard(two) and two.heard(one))
        two.discovery.update([MOVED])
        assert await until(lambda: ("127.0.0.9", two.port) in one.hints) < 60


async def test_row_19_what_is_still_known_is_suggested_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # a network that was cut in two and healed: nobody announces anything, and the hints of then are forgotten
    monkeypatch.setattr(module, "_REMIND_S", 0.05)
    one, two = Ear(1, [LO]), Ear(2, [LO])
    async with running(one, two):
        await until(lambda: one.heard(two))
        await asyncio.sleep(0.7)  # the announcements are over
        one.hints.clear()
        await until(lambda: one.heard(two))


async def test_only_addresses_the_server_answers_at_are_told() -> None:
    bound, other = Ear(1, [LO], listen="127.0.0.9"), Ear(2, [LO])
    info = bound.discovery._service()
    assert info.parsed_addresses() == []
    assert info.server == f"bench-1-local-{bound.id[:8]}.local."
    assert other.discovery._service().parsed_addresses() == ["127.0.0.1"]


async def test_without_an_interface_the_agent_goes_on_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_RETRY_S", 0.01)
    one, two = Ear(1, []), Ear(2, [LO])
    with caplog.at_level(logging.DEBUG, "edgecdn_agent.lab.discovery"):
        async with running(one, two):
            await until(lambda: one.discovery._failures >= 4)
            assert not one.discovery.is_working
            # the cable is plugged in
            one.discovery.update([LO])
            await until(lambda: one.heard(two) and two.heard(one))
    assert [r.levelno for r in caplog.records if "no discovery" in r.message].count(logging.WARNING) == 1


async def test_an_address_that_went_away_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_sockets()
    monkeypatch.setattr(module, "_FIRST_RETRY_S", 0.01)
    gone = Interface("eth7", (ip_interface("169.254.77.77/16"), ip_interface("fe80::dead:beef/64")))
    ear = Ear(1, [gone])
    ear.discovery._allows = lambda _: True
    async with running(ear):
        await asyncio.sleep(0.3)
        ear.discovery.update([LO, gone])
        await until(lambda: ear.discovery.is_working)
    assert open_sockets() == before


def names(count: int) -> list[bytes]:
    return [f"{random.getrandbits(128):032x}".encode() for _ in range(count)]


def made_up(instance: bytes) -> bytes:
    """An answer of an agent that does not exist: a pointer to a name, with nothing behind it."""
    service = b"\x08_edgecdn\x04_tcp\x05local\x00"
    data = bytes([len(instance)]) + instance + b"\xc0\x0c"
    header = struct.pack("!6H", 0, 0x8400, 0, 1, 0, 0)
    return header + service + struct.pack("!HHIH", 12, 1, 4500, len(data)) + data


def garbage(generator: random.Random) -> list[bytes]:
    """Datagrams that are too large, cut, random, or point into themselves."""
    whole = made_up(b"f" * 32)
    return [
        generator.randbytes(9000),
        struct.pack("!6H", 0, 0x8400, 0, 65535, 65535, 65535) + generator.randbytes(8900),
        struct.pack("!6H", 0, 0x0000, 65535, 0, 0, 0) + b"\xc0\x0c" * 4000,
        generator.randbytes(generator.randrange(1, 1400)),
        whole[: generator.randrange(len(whole))],
        whole + b"\xff" * 9000,
        b"",
    ]


async def test_row_7_oversize_and_garbage_are_dropped() -> None:
    generator = random.Random(7)
    one, two = Ear(1, [LO]), Ear(2, [LO])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        async with running(one):
            await until(lambda: one.discovery.is_working)
            await flood(sender, [d for _ in range(30) for d in garbage(generator)])
            before_bytes = psutil.Process().memory_info().rss
            for _ in range(20):
                await flood(sender, [d for _ in range(50) for d in garbage(generator)])
                await flood(sender, [made_up(name) for name in names(100)])
            assert psutil.Process().memory_info().rss - before_bytes < 24 << 20
            assert len(one.discovery._instances) <= 512
            assert one.discovery._unresolved.qsize() <= 512
            async with running(two):
                # still heard, and the flood named nobody
                assert await until(lambda: two.heard(one) and one.heard(two)) < 6
            assert len({port for _, port in one.hints}) < 100  # agents of other tests may be in hearing


async def flood(sender: socket.socket, datagrams: list[bytes]) -> None:
    for number, datagram in enumerate(datagrams):
        sender.sendto(datagram, ("224.0.0.251", 5353))
        if number % 20 == 0:
            await asyncio.sleep(0.002)


def test_names_that_are_no_agents_are_not_remembered() -> None:
    ear = Ear(1, [LO])
    for name in ("x", "", f"../../etc.{SERVICE_TYPE}", f"{'g' * 32}.{SERVICE_TYPE}", f"{ear.id}.{SERVICE_TYPE}"):
        ear.discovery._noticed(None, SERVICE_TYPE, name, ServiceStateChange.Added)  # type: ignore[arg-type]
    assert ear.discovery._instances == {}
