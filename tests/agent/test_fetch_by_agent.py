"""`fetch` with a running agent: it does the work, once for all who ask, and commands may come and go."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from tests.agent.agents import lab
from tests.agent.commands import began, jobs, ran, result, the_job
from tests.faults.conftest import _plain_client  # noqa: F401 - no token and no cache of whoever runs the tests
from tests.faults.machine import contents, files_in
from tests.hub import Generated, TestHub, dry_up, make_repo
from tests.hub.content import Content

pytestmark = pytest.mark.timeout(180)

BIG = 24 << 20
FILES: dict[str, Content] = {"config.json": b"{}", "tokenizer.json": b"{ }", "m.safetensors": Generated(7, BIG)}
HALF = dry_up(BIG // 2, path="m.safetensors")
"""The first half of the file comes, and the rest when the test lifts it."""

ONCE = 1.6 * BIG
"""Not twice; tails that looked slow were asked for again."""

RESUMED = BIG + 8 * (1 << 20)
"""After a kill, what was in flight (on each of 8 connections a unit, and socket buffers) crosses the line again."""


async def test_the_agent_does_it_and_shows_it(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        done = await ran(one, "fetch", "org/name", "--json")
        got = result(done)
        wanted = contents(repo)
        assert files_in(got["path"]) == wanted
        assert got["bytes_by_source"]["origin"] == got["bytes_total"] == sum(map(len, wanted.values()))
        job = await the_job(one, lambda job: job["state"] == "done")
        assert job["bytes_by_source"] == {"origin": got["bytes_total"]}
        assert job["done_bytes"] == job["total_bytes"] == got["bytes_total"]
        status = await ran(one, "status")
        assert f"job {job['id']}: org/name@{repo.main[:12]}: done" in status.out
        again = await ran(one, "fetch", "org/name", "--json")
        assert result(again)["bytes_by_source"]["cache"] == got["bytes_total"]
        assert hub.stats.total < ONCE
        quiet = await ran(one, "fetch", "org/name", "--quiet")
        assert (quiet.out, quiet.err) == (f"{got['path']}\n", "")


async def test_who_asks_for_the_same_shares_one_job(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        hub.inject(HALF)
        one = await made.agent("one", fetch_patience="60s")
        asked = [
            await began(one, "fetch", "org/name"),
            await began(one, "fetch", "org/name@main", "--exclude", "nothing-of-the-kind"),
            await began(one, "fetch", "mine", "--json", aliases="mine=org/name"),
        ]
        await the_job(one, lambda job: job["askers"] == 3 and job["done_bytes"] > 2 << 20)
        hub.clear()
        first, second, third = await asyncio.gather(*(one.finish(process) for process in asked))
        path = result(third)["path"]
        assert [done.out.splitlines()[-1] for done in (first, second)] == [path, path]
        for done in (first, second):
            assert f"org/name at {repo.main[:12]}: 3 files, 25.2 MB" in done.err
            assert "25.2 MB over the line" in done.err
        assert result(third)["bytes_by_source"]["origin"] == BIG + 5
        assert hub.stats.total < ONCE
        assert len(await jobs(one)) == 1


async def test_ctrl_c_stops_the_job_and_keeps_what_arrived(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, lab(tmp_path, hub) as made:
        hub.inject(HALF)
        one = await made.agent("one", fetch_patience="60s")
        command = await began(one, "fetch", "org/name")
        await the_job(one, lambda job: job["done_bytes"] > 5 << 20)
        command.send_signal(signal.SIGINT)
        done = await one.finish(command)
        assert done.code == 130
        assert "kept" in done.err
        job = await the_job(one, lambda job: job["state"] == "cancelled")
        assert job["askers"] == 0
        assert one.partials()
        hub.clear()
        got = result(await ran(one, "fetch", "org/name", "--json"))
        assert got["bytes_by_source"]["cache"] > 4 << 20
        assert hub.stats.total < RESUMED


async def test_ctrl_c_with_keep_leaves_the_job(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, lab(tmp_path, hub) as made:
        hub.inject(HALF)
        one = await made.agent("one", fetch_patience="60s")
        command = await began(one, "fetch", "org/name", "--keep")
        await the_job(one, lambda job: job["done_bytes"] > 1 << 20)
        command.send_signal(signal.SIGINT)
        assert (await one.finish(command)).code == 130
        await the_job(one, lambda job: job["askers"] == 0 and job["state"] == "running")
        hub.clear()
        await the_job(one, lambda job: job["state"] == "done")
        assert one.offline() is not None
        assert hub.stats.total < ONCE


async def test_ctrl_c_while_another_waits_leaves_the_job(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, lab(tmp_path, hub) as made:
        hub.inject(HALF)
        one = await made.agent("one", fetch_patience="60s")
        leaving, staying = [await began(one, "fetch", "org/name") for _ in range(2)]
        await the_job(one, lambda job: job["askers"] == 2 and job["done_bytes"] > 1 << 20)
        leaving.send_signal(signal.SIGINT)
        assert (await one.finish(leaving)).code == 130
        await the_job(one, lambda job: job["askers"] == 1 and job["state"] == "running")
        hub.clear()
        assert (await one.finish(staying)).code == 0
        assert hub.stats.total < ONCE


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_41_an_agent_lost_during_a_job(tmp_path: Path, how: signal.Signals) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, lab(tmp_path, hub) as made:
        hub.inject(HALF)
        one = await made.agent("one", fetch_patience="60s")
        command = await began(one, "fetch", "org/name")
        before = await the_job(one, lambda job: job["done_bytes"] > 5 << 20)
        assert one.process is not None
        lost_at = time.monotonic()
        one.process.send_signal(how)
        done = await one.finish(command)
        assert time.monotonic() - lost_at < 5
        assert done.code == 8
        said = "it was stopped" if how is signal.SIGTERM else "it was lost"
        assert f"{said} during the fetch" in done.err
        assert "goes on when the agent is back" in done.err
        assert await one.ended() == (0 if how is signal.SIGTERM else -how)
        one.check()

        hub.clear()
        await made.start(one)
        after = await the_job(one, lambda job: job["state"] == "done")
        assert after["id"] == before["id"]
        assert after["bytes_by_source"]["origin"] < BIG - (4 << 20)
        assert hub.stats.total < RESUMED
        assert one.offline() is not None


async def test_an_agent_that_serves_another_cache_or_asks_other_hubs_is_done_without(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        other = str(tmp_path / "elsewhere")
        done = await ran(one, "fetch", "org/name", "--include", "*.json", HF_HUB_CACHE=other)
        assert done.code == 0
        assert done.out.startswith(other)
        assert f"The agent keeps its files in {one.cache}, not in {other}" in done.err
        both = f"{hub.url},{hub.modelscope_url or 'http://127.0.0.1:9'}"
        done = await ran(one, "fetch", "org/name", "--include", "*.json", hub_endpoints=both)
        assert done.code == 0
        assert f"The agent asks {hub.url}, not {hub.url}, " in done.err
        assert await jobs(one) == []


async def test_the_same_as_without_an_agent(tmp_path: Path) -> None:
    small = {**FILES, "m.safetensors": Generated(8, 2 << 20), "m.bin": b"pickled"}
    async with TestHub([make_repo("org/name", small)]) as hub, lab(tmp_path, hub, fetch_patience="1s") as made:
        one, alone = await made.agent("one"), made.machine("alone")
        for options in (
            ("--from", "lan", "--include", "config.json"),
            ("--include", "*.json"),
            ("--from", "origin"),
            ("--all-formats", "--exclude", "tok*"),
            ("--local-dir", "mine"),
        ):
            typed = [[str(m.base / part) if part == "mine" else part for part in options] for m in (one, alone)]
            by_agent, by_itself = await asyncio.gather(
                ran(one, "fetch", "org/name", *typed[0], "--json"), ran(alone, "fetch", "org/name", *typed[1], "--json")
            )
            if "lan" in options:
                assert (by_agent.code, by_agent.err) == (6, by_itself.err)
                continue
            got, expected = result(by_agent), result(by_itself)
            assert files_in(got.pop("path")) == files_in(expected.pop("path"))
            assert got.pop("seconds") > 0 < expected.pop("seconds")
            assert got == expected
        assert files_in(one.base / "mine").keys() == FILES.keys()
        assert len(await jobs(one)) == 5
