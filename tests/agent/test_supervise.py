"""Services that fail, return, hang; and what the log makes of what they say."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import Iterator

import pytest

from edgecdn.events import Kind
from edgecdn_agent.control.logs import JsonLines, RepeatsToDebug, TextLines, configure_logs, redact
from edgecdn_agent.control.metrics import Gauges, Metrics
from edgecdn_agent.supervise import Fatal, NoRestart, State, Supervisor
from edgecdn_agent.traffic import RateMeter, Traffic


class Part:
    """A service by script: raises what is in `faults`, one a start, then runs."""

    def __init__(self, *faults: BaseException, ready: bool = True) -> None:
        self.faults = list(faults)
        self.ready = asyncio.Event()
        self.starts = 0
        self.cleaned = 0
        self._gets_ready = ready

    async def run(self) -> None:
        self.starts += 1
        if self._gets_ready:
            self.ready.set()
        if self.faults:
            raise self.faults.pop(0)
        try:
            await asyncio.Event().wait()
        finally:
            self.cleaned += 1


async def test_one_that_fails_is_started_again_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor(backoff_s=(0.01, 0.04))
    bad, good = Part(*[ValueError("of the test")] * 4), Part()
    services = [supervisor.add("bad", bad.run, bad.ready), supervisor.add("good", good.run, good.ready)]
    before = asyncio.all_tasks()
    running = asyncio.create_task(supervisor.run())
    began = time.monotonic()
    while bad.starts < 5:
        await asyncio.sleep(0.005)
    assert time.monotonic() - began >= 0.01 + 0.02 + 0.04 + 0.04
    assert await supervisor.wait_ready(1)
    assert supervisor.is_ready
    assert (good.starts, services[0].restarts, services[0].state) == (1, 4, State.READY)
    assert "of the test" in services[0].detail
    supervisor.stop()
    supervisor.stop()
    await asyncio.wait_for(running, 1)
    assert (bad.cleaned, good.cleaned) == (1, 1)
    assert asyncio.all_tasks() == before
    assert "service failed" in caplog.text


async def test_the_pause_is_short_again_after_a_time_of_health() -> None:
    now = [0.0]
    supervisor = Supervisor(backoff_s=(0.01, 10), healthy_s=60, clock=lambda: now[0])
    pauses: list[float] = []

    async def run() -> None:
        pauses.append(time.monotonic())
        now[0] += 61
        if len(pauses) == 12:
            await asyncio.Event().wait()
        raise OSError

    supervisor.add("often", run)
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(5):
        while len(pauses) < 12:  # doubling, it would be 20 s
            await asyncio.sleep(0.01)
    supervisor.stop()
    await running


async def test_no_restart_fatal_and_done() -> None:
    supervisor = Supervisor(backoff_s=(0.01, 0.01))
    down, done = Part(NoRestart("no such port")), Part()

    async def ends() -> None:
        done.starts += 1

    states = [supervisor.add("down", down.run, down.ready), supervisor.add("done", ends)]
    running = asyncio.create_task(supervisor.run())
    assert await supervisor.wait_ready(1)
    await asyncio.sleep(0.05)
    assert (down.starts, done.starts) == (1, 1)
    assert [s.state for s in states] == [State.FAILED, State.DONE]
    assert supervisor.is_ready
    assert supervisor.failing == ["down"]
    supervisor.stop()
    await running

    good, fatal = Part(), Part(Fatal("the disk is gone"))
    second = Supervisor()
    second.add("good", good.run)
    second.add("fatal", fatal.run)
    with pytest.raises(Fatal, match="disk"):
        await asyncio.wait_for(second.run(), 1)
    assert good.cleaned == 1


async def test_one_that_does_not_end_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor(stop_s=0.1)
    over = asyncio.Event()

    async def stubborn() -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue

    supervisor.add("stubborn", stubborn)
    running = asyncio.create_task(supervisor.run())
    await asyncio.sleep(0.01)
    supervisor.stop()
    await asyncio.wait_for(running, 1)
    assert "stubborn" in caplog.text
    over.set()


async def test_cancelled_it_leaves_nothing_running() -> None:
    before = asyncio.all_tasks()
    supervisor, part = Supervisor(), Part(ready=False)
    supervisor.add("part", part.run, part.ready)
    running = asyncio.create_task(supervisor.run())
    assert not await supervisor.wait_ready(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert part.cleaned == 1
    assert asyncio.all_tasks() == before


SECRET = "hf_" + "abcDEF123456" * 3


@pytest.mark.parametrize(
    "text",
    [f"token {SECRET}", f"Authorization: Bearer {SECRET}", "authorization='Bearer Zm9vYmFyYmF6'", '{"Authorization": "Bearer Zm9vYmFyYmF6"}',
     "Bearer Zm9vYmFyYmF6", "bearer  Zm9vYmFyYmF6,", f"https://user:{SECRET}@host/", "api-token=Zm9vYmFyYmF6", "m_session_id=Zm9vYmFyYmF6; path=/",
     "ms-12345678-1234-1234-1234-123456789abc", "Authorization: Zm9vYmFyYmF6", f"a{SECRET}b"],
)  # fmt: skip
def test_tokens_are_taken_out(text: str) -> None:
    told = redact(text)
    assert "[redacted]" in told
    for secret in (SECRET, "Zm9vYmFyYmF6", "123456789abc"):
        assert secret not in told


@pytest.mark.parametrize("text", ["no bearer of news", "job=ab12 model=org/hf-tiny", "sha256 " + "ab" * 32])
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text or "bearer" in text


@pytest.fixture
def own_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_log(log_format: str) -> None:
    stream = io.StringIO()
    configure_logs(log_format, stream=stream)
    log = logging.getLogger("edgecdn_agent.some")
    for _ in range(3):
        log.warning("source fails source=%s", "hub")
    log.debug("not shown")
    try:
        raise ValueError(SECRET)
    except ValueError:
        log.exception("failed header=%s", f"Bearer {SECRET}")
    logging.getLogger("aiohttp.access").info("noise")
    text = stream.getvalue()
    assert SECRET not in text
    assert text.count("source fails") == 1
    assert "noise" not in text
    assert "not shown" not in text
    if log_format == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["level"] for line in lines] == ["warning", "error"]
        assert "ValueError: [redacted]" in lines[1]["exception"]


def test_repeats_are_debug_where_debug_is_shown() -> None:
    kept = RepeatsToDebug(logging.DEBUG)
    records = [logging.LogRecord("a", logging.WARNING, "", 0, "the same", (), None) for _ in range(2)]
    assert all(kept.filter(record) for record in records)
    assert [record.levelname for record in records] == ["WARNING", "DEBUG"]
    assert TextLines().format(records[1])
    assert json.loads(JsonLines().format(records[1]))["level"] == "debug"


def test_rates_are_of_the_last_seconds() -> None:
    now = [100.0]
    meter = RateMeter(lambda: now[0])
    assert meter.rate() == 0
    for _ in range(40):
        meter.add(1000)
        now[0] += 0.25
    assert 3900 <= meter.rate() <= 4300
    now[0] += 6
    assert meter.rate() == 0
    meter.add(500)
    assert meter.rate() == 500


def test_traffic_counts_by_kind_and_party() -> None:
    traffic = Traffic()
    traffic.received(Kind.LAN, "peer b", 5)
    traffic.received(Kind.ORIGIN, "https://hub", 7)
    traffic.sent("peer a", 3)
    assert traffic.totals().in_by_source == {"cache": 0, "lan": 5, "mirror": 0, "origin": 7}
    assert traffic.out_lan == 3
    assert [(p.name, p.in_bytes, p.out_bytes) for p in traffic.parties()] == [("peer a", 0, 3), ("peer b", 5, 0)]


async def test_a_blocked_loop_is_measured() -> None:
    metrics = Metrics(Traffic(), Gauges(lambda: 0, lambda: 0, lambda: 0, lambda: 0, lambda: 0))
    running = asyncio.create_task(metrics.loop_lag.run())
    await asyncio.sleep(0)
    time.sleep(0.4)
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert metrics.loop_lag.worst_s >= 0.1
    assert b"edgecdn_loop_lag_worst_seconds 0." in metrics.text()
