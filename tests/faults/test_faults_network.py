"""Rows 13, 15, 16, 20 and 21: lines that break, stall, lie or ask for patience."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

import pytest

from edgecdn.errors import Unreachable
from edgecdn.events import BytesReceived, Event
from edgecdn.sources import http
from tests.faults.machine import Machine, contents, files_in
from tests.hub import Fault, Generated, Kind, TestHub, make_repo, reset, slow_total, stall, status
from tests.hub.stats import Seen

BIG = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(1, 24 << 20)})
SMALL = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(2, (1 << 20) + 5)})
BYTES = 8_000_000


@dataclass
class Mark:
    """An event that is set when `count` bytes have been received."""

    count: int
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, event: Event) -> None:
        """Count."""
        if isinstance(event, BytesReceived):
            self.count -= event.count
            if self.count <= 0:
                self.reached.set()


async def _all_down(*hubs: TestHub) -> None:
    for hub in hubs:
        for role in ("hub", "cdn"):
            await hub.go_down(role)


async def _all_back(*hubs: TestHub) -> None:
    for hub in hubs:
        for role in ("hub", "cdn"):
            await hub.come_back(role)


def _lift(*hubs: TestHub) -> None:
    for hub in hubs:
        hub.clear()


async def test_13_both_down_and_back_within_patience(machine: Machine) -> None:
    async with TestHub([BIG], faults=[slow_total(BYTES)]) as one, TestHub([BIG], faults=[slow_total(BYTES)]) as two:
        mark = Mark(6 << 20)
        job = asyncio.create_task(machine.fetch("org/name", one, two, listener=mark))
        await mark.reached.wait()
        await _all_down(one, two)
        before = machine.received
        await asyncio.sleep(1.5)  # the outage
        assert not job.done()
        _lift(one, two)
        await _all_back(one, two)
        fetched = await job
        assert before < BIG.commits[BIG.main].files["m.safetensors"].size
        assert one.stats.total + two.stats.total < 1.4 * fetched.bytes_total
    assert files_in(fetched.path) == contents(BIG)
    assert machine.received == fetched.bytes_total


async def test_13_down_for_longer_than_patience_then_resumed(machine: Machine) -> None:
    async with TestHub([BIG], faults=[slow_total(BYTES)]) as one, TestHub([BIG], faults=[slow_total(BYTES)]) as two:
        mark = Mark(10 << 20)
        work = machine.fetch("org/name", one, two, listener=mark, fetch_patience="1s", fetch_connections="2")
        job = asyncio.create_task(work)
        await mark.reached.wait()
        await _all_down(one, two)
        with pytest.raises(Unreachable) as caught:
            await job
        assert caught.value.exit_code == 6
        assert "same command again" in caught.value.remedy
        assert machine.offline() is None
        await _all_back(one, two)
        _lift(one, two)
        fetched = await machine.fetch("org/name", one, two)
    assert files_in(fetched.path) == contents(BIG)
    assert fetched.bytes_by_source["cache"] >= 4 << 20
    assert machine.received <= fetched.bytes_total + (8 << 20)  # of each connection at most one unit came twice
    assert machine.partials() == []


async def test_15_reset_every_mib(machine: Machine) -> None:
    async with TestHub([BIG]) as hub:
        hub.inject(reset(after_bytes=1 << 20, route="cdn"))
        fetched = await machine.fetch("org/name", hub)
        assert hub.stats.total < 1.5 * fetched.bytes_total  # a reset takes what lay in the socket with it
    assert machine.received == fetched.bytes_total  # monotonic: nothing was written twice
    assert files_in(fetched.path) == contents(BIG)


async def test_16_a_stalled_hub_is_left_for_the_other(machine: Machine) -> None:
    async with TestHub([BIG]) as slow, TestHub([BIG]) as good:
        slow.inject(stall(after_bytes=100_000, route="cdn"))
        async with asyncio.timeout(15):
            fetched = await machine.fetch("org/name", slow, good)
    assert files_in(fetched.path) == contents(BIG)


async def test_16_a_stalled_connection_is_given_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALL_S", 1.0)
    async with TestHub([SMALL]) as hub:
        hub.inject(stall(after_bytes=100_000, route="cdn", times=2))
        async with asyncio.timeout(15):
            fetched = await machine.fetch("org/name", hub)
        assert hub.stats.open_bodies == 0
    assert files_in(fetched.path) == contents(SMALL)


async def test_20_nxdomain(machine: Machine) -> None:
    gone = "http://nonexistent.invalid"
    with pytest.raises(Unreachable, match=r"nonexistent\.invalid"):
        await machine.fetch("org/name", gone)
    async with TestHub([SMALL]) as hub:
        fetched = await machine.fetch("org/name", gone, hub)
    assert files_in(fetched.path) == contents(SMALL)


async def test_20_captive_portal_for_metadata(machine: Machine) -> None:
    async with TestHub([SMALL]) as caught, TestHub([SMALL]) as good:
        caught.inject(Fault(Kind.CAPTIVE_PORTAL, route="api"))
        with pytest.raises(Unreachable, match="login page"):
            await machine.fetch("org/name", caught)
        fetched = await machine.fetch("org/name", caught, good)
    assert files_in(fetched.path) == contents(SMALL)


@pytest.mark.parametrize("route", ["resolve", "cdn"])
async def test_20_captive_portal_for_bytes(machine: Machine, route: str) -> None:
    async with TestHub([SMALL]) as caught, TestHub([SMALL]) as good:
        caught.inject(Fault(Kind.CAPTIVE_PORTAL, route=route))
        with pytest.raises(Unreachable, match="login page"):
            await machine.fetch("org/name", caught, fetch_patience="3s")
        assert machine.offline() is None
        fetched = await machine.fetch("org/name", caught, good)
    assert files_in(fetched.path) == contents(SMALL)


async def test_20_captive_portal_everywhere_at_the_command_line(machine: Machine) -> None:
    async with TestHub([SMALL]) as hub:
        hub.inject(Fault(Kind.CAPTIVE_PORTAL))
        ran = await machine.run("fetch", "org/name", hubs=(hub,))
    assert ran.code == 6
    assert "login page" in ran.err


class _Stamped(deque[Seen]):
    """A request log that knows when."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def append(self, seen: Seen) -> None:
        self.times.append(time.monotonic())
        super().append(seen)


TOLD = {
    "Retry-After": ({"Retry-After": "2"}, 2.0),
    "RateLimit": ({"RateLimit": '"resolvers";r=0;t=2'}, 2.0),
}
PLACES = {
    "api revision": {"route": "api", "path": "/api/models/org/name*"},
    "api tree": {"route": "api", "path": "*/tree/*"},
    "resolve": {"route": "resolve", "path": "m.safetensors"},
    "cdn": {"route": "cdn", "path": "m.safetensors"},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("code", "told"), [(429, "Retry-After"), (429, "RateLimit"), (503, "Retry-After")])
async def test_21_told_to_wait(machine: Machine, place: str, told: str, code: int) -> None:
    headers, seconds = TOLD[told]
    async with TestHub([SMALL]) as hub:
        hub.stats.requests = log = _Stamped()
        hub.inject(status(code, headers, times=1, **PLACES[place]))
        fetched = await machine.fetch("org/name", hub)
    refused = next(index for index, seen in enumerate(log) if seen.status == code)
    asked = log[refused].path.partition("?")[0]
    again = next(i for i, seen in enumerate(log) if i > refused and seen.path.partition("?")[0] == asked)
    waited = log.times[again] - log.times[refused]
    assert waited >= seconds - 0.02
    assert waited < seconds * 1.1 + 2.5
    assert files_in(fetched.path) == contents(SMALL)


async def test_21_another_hub_gives_what_a_busy_one_does_not(machine: Machine) -> None:
    async with TestHub([SMALL]) as busy, TestHub([SMALL]) as good:
        busy.inject(*(status(429, {"Retry-After": "600"}, route=route) for route in ("resolve", "cdn")))
        async with asyncio.timeout(20):
            fetched = await machine.fetch("org/name", busy, good)
        assert len(busy.stats.asked(contains="/resolve/")) <= 4  # one for each connection it began with
    assert files_in(fetched.path) == contents(SMALL)


async def test_21_told_to_wait_for_too_long(machine: Machine) -> None:
    async with TestHub([SMALL]) as busy:
        busy.inject(status(503, {"Retry-After": "86400"}, route="resolve"))
        async with asyncio.timeout(20):
            with pytest.raises(Unreachable, match="86400"):
                await machine.fetch("org/name", busy)
