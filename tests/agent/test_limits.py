"""The limits of the settings: what holds now, over HTTP and swarm together, by the hour; a swarm that really runs."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edgecdn.errors import SettingsInvalid
from edgecdn.settings import load_settings
from edgecdn_agent.limits import Limits, bytes_s
from edgecdn_agent.swarm.session import Swarm
from tests.agent.agents import lab
from tests.agent.commands import ran, result
from tests.faults.conftest import _plain_client  # noqa: F401 - no token and no cache of whoever runs the tests
from tests.hub import Generated, TestHub, make_repo

GBIT = 125_000_000


class Clock:
    """The local time, as the test says."""

    def __init__(self, text: str) -> None:
        self.now = dt.time.fromisoformat(text)

    def __call__(self) -> dt.time:
        return self.now


def limits_of(swarm: Swarm, link: int | None = GBIT, clock: Clock | None = None, **settings: str) -> Limits:
    named = {f"EDGECDN_LIMITS_{name.upper()}": value for name, value in settings.items()}
    loaded = load_settings({"EDGECDN_HOME": "/nonexistent", **named})
    return Limits(loaded, swarm, lambda: link, clock or Clock("12:00"))


def rates(limits: Limits) -> tuple[int | None, int | None, int | None]:
    return limits.upload.rate_bytes_s, limits.download.rate_bytes_s, limits.wan.rate_bytes_s


@asynccontextmanager
async def running() -> AsyncIterator[Swarm]:
    swarm = Swarm()
    await swarm.start("127.0.0.1", 0)
    try:
        yield swarm
    finally:
        await swarm.close()


def of_swarm(swarm: Swarm) -> tuple[int, int]:
    """What libtorrent itself holds to: up and down; 0 is no limit."""
    assert swarm._session is not None
    found: dict[str, Any] = swarm._session.get_settings()
    return found["upload_rate_limit"], found["download_rate_limit"]


async def test_what_is_set_holds_for_http_and_swarm() -> None:
    async with running() as swarm:
        limits = limits_of(swarm, upload="10MB/s", download="100Mbit/s", wan="50%")
        await limits.apply()
        assert rates(limits) == (10_000_000, 12_500_000, GBIT // 2)
        assert of_swarm(swarm) == (10_000_000, 12_500_000)


async def test_the_default_is_a_share_of_the_link_and_a_fast_link_has_no_limit() -> None:
    async with running() as swarm:
        limits = limits_of(swarm)
        await limits.apply()
        assert rates(limits) == (int(0.95 * GBIT), None, None)
        assert of_swarm(swarm) == (int(0.95 * GBIT), 0)
    for link in (None, 25 * GBIT):
        async with running() as swarm:
            limits = limits_of(swarm, link)
            await limits.apply()
            assert rates(limits) == (None, None, None)
            assert of_swarm(swarm) == (0, 0)


async def test_hours_switch_all_of_them() -> None:
    clock = Clock("21:59:59")
    async with running() as swarm:
        limits = limits_of(swarm, clock=clock, upload="1MB/s", download="2MB/s", wan="3MB/s", hours="22:00-06:00")
        some = (1_000_000, 2_000_000, 3_000_000)
        for text, expected in (
            ("21:59:59", None), ("22:00", some), ("23:59:59", some), ("00:00", some), ("05:59:59", some),
            ("06:00", None), ("12:00", None), ("22:30", some), ("06:00:01", None),
        ):  # fmt: skip
            clock.now = dt.time.fromisoformat(text)
            await limits.apply()
            assert rates(limits) == (expected or (None, None, None)), text
            assert of_swarm(swarm) == (expected[:2] if expected else (0, 0)), text


async def test_a_limit_reaches_a_swarm_that_starts_later_or_anew() -> None:
    swarm = Swarm()
    limits = limits_of(swarm, upload="1MB/s", download="2MB/s")
    await limits.apply()
    assert rates(limits)[:2] == (1_000_000, 2_000_000)
    for _ in range(2):
        await swarm.start("127.0.0.1", 0)
        await limits.apply()
        assert of_swarm(swarm) == (1_000_000, 2_000_000)
        await swarm.close()
        await limits.apply()


async def test_who_waits_for_a_slow_pace_goes_on_when_the_hours_end() -> None:
    clock = Clock("12:00")
    limits = limits_of(Swarm(), clock=clock, wan="1kB/s", hours="08:00-18:00")
    await limits.apply()
    taking = asyncio.create_task(limits.wan.take(10_000_000))
    await asyncio.sleep(0)
    clock.now = dt.time(18)
    await limits.apply()
    await asyncio.wait_for(taking, 5)


@pytest.mark.parametrize(
    ("text", "link", "expected"),
    [("10MB/s", None, 10_000_000), ("80%", GBIT, 100_000_000), ("80%", None, None), ("off", GBIT, None),
     ("100%", 1_000_000_000_000, None), ("8kbit/s", GBIT, 1000)],
)  # fmt: skip
def test_a_rate_in_bytes(text: str, link: int | None, expected: int | None) -> None:
    settings = load_settings({"EDGECDN_HOME": "/nonexistent", "EDGECDN_LIMITS_UPLOAD": text})
    assert bytes_s(settings.limits_upload, link) == expected


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("UPLOAD", "fast", "'fast' is not a rate (20MB/s, 100Mbit/s, 80% or off; at least 1 kB/s)"),
        ("UPLOAD", "101%", "'101%' is not a rate"),
        ("UPLOAD", "0%", "'0%' is no rate: it is 'off' for no limit"),
        ("DOWNLOAD", "-1MB/s", "'-1MB/s' is not a rate"),
        ("DOWNLOAD", "12", "'12' has no unit (did you mean 12MB/s or 12Mbit/s?)"),
        ("WAN", "5 B/s", "'5 B/s' is not a rate"),
        ("WAN", "1MB/h", "'1MB/h' is not a rate"),
        ("HOURS", "8-18", "'8-18' is not a part of the day (22:00-06:00)"),
        ("HOURS", "25:00-06:00", "is not a part of the day"),
        ("HOURS", "24:30-06:00", "is not a part of the day"),
        ("HOURS", "22:00", "is not a part of the day"),
    ],
)
def test_what_is_no_limit_is_said(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        load_settings({"EDGECDN_HOME": "/nonexistent", f"EDGECDN_LIMITS_{name}": value})
    assert f"EDGECDN_LIMITS_{name}: " in caught.value.message
    assert says in caught.value.message
    assert caught.value.exit_code == 2


async def test_upload_holds_for_all_takers_together(tmp_path: Path) -> None:
    """Two at once, one without a swarm: what is given is given no faster than the limit, however slow this machine is."""
    size, rate = 8 << 20, 4_000_000
    repo = make_repo("org/name", {"m.safetensors": Generated(5, size)})
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one", limits_upload=f"{rate}B/s")
        await ran(one, "fetch", "org/name")
        await one.gives(repo.commits[repo.main].files["m.safetensors"].sha256)
        swarm, http = await made.agent("swarm"), await made.agent("http", swarm_listen="off")
        await swarm.knows(2)
        await http.knows(2)
        hub.stats.reset()
        start = time.monotonic()
        await asyncio.gather(swarm.fetch_here("org/name"), http.fetch_here("org/name"))
        took_s = time.monotonic() - start
        assert hub.stats.total == 0
        gave = (await one.get("/edgecdn/v1/status"))["totals"]["out_lan"]
        assert gave >= size
        assert took_s > 0.75 * gave / rate


async def test_wan_holds_for_hub_bytes(tmp_path: Path) -> None:
    size, rate = 4 << 20, 2_000_000
    repo = make_repo("org/name", {"m.safetensors": Generated(6, size)})
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one", limits_wan=f"{rate}B/s", limits_upload="1kB/s", limits_download="1kB/s")
        got = result(await ran(one, "fetch", "org/name", "--json"))
        assert got["bytes_by_source"]["origin"] == size
        assert got["seconds"] > 0.85 * size / rate
