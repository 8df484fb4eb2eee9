"""Rows 32, 35 and 38: killed at every step, killed at random, and what the killed leave behind."""

from __future__ import annotations

import asyncio
import fcntl
import random
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir

from edgecdn.crash import CRASH_POINTS
from edgecdn.spans import Span
from tests.faults.machine import Machine, contents, files_in
from tests.hub import Generated, HubRepo, TestHub, make_repo, slow_per_connection
from tests.hub.ranges import parse_range

pytestmark = pytest.mark.timeout(180)

KILLED = -9
ALL_NEW = {"publish.9"}
"""Points after which the new state is the visible one."""

SHARD = 12 << 20


def _repo() -> tuple[HubRepo, str, str]:
    """Two commits that share one file."""
    repo = make_repo("org/name", {"config.json": b"{}", "same.txt": b"same", "m.safetensors": b"old"})
    old = repo.main
    new = repo.add_commit({"config.json": b'{"new": 1}', "m.safetensors": Generated(1, SHARD), "sub/x": b"x"})
    return repo, old, new


@pytest.mark.parametrize("first", ["nothing", "old commit"])
@pytest.mark.parametrize("point", [p for p in CRASH_POINTS if p.startswith(("partial", "publish"))])
async def test_32_killed_at(machine: Machine, point: str, first: str) -> None:
    repo, old, new = _repo()
    async with TestHub([repo]) as hub:
        if first == "old commit":
            repo.branches["main"] = old
            await machine.fetch("org/name", hub)
            repo.branches["main"] = new
        hub.stats.reset()
        hub.inject(slow_per_connection(40e6, route="cdn"))
        ran = await _run(machine, hub, point)
        assert ran == KILLED
        _check_old_or_new(machine, repo, old if first == "old commit" else None, new, point)
        hub.clear()
        assert await _run(machine, hub) == 0
        size = sum(file.size for file in repo.commits[new].files.values())
        assert hub.stats.total <= 1.2 * size + (1 << 20)
    assert machine.ref() == new
    found = machine.offline()
    assert found is not None
    assert files_in(found) == contents(repo)
    assert not scan_cache_dir(machine.cache).warnings
    assert [path.name for path in (machine.repo_dir() / "refs").iterdir()] == ["main"]


def _check_old_or_new(machine: Machine, repo: HubRepo, old: str | None, new: str, point: str) -> None:
    machine.check()
    found = machine.offline()
    assert machine.ref() == (new if point in ALL_NEW else old)
    if found is None:
        assert machine.ref() is None
    else:
        assert files_in(found) == contents(repo, found.name)
    by_commit = machine.offline(revision=new)
    assert by_commit is None or files_in(by_commit) == contents(repo, new)


async def _run(machine: Machine, hub: TestHub, point: str = "") -> int:
    variables = {"EDGECDN_CRASH": point, "EDGECDN_FETCH_CONNECTIONS": "1"}
    process = await machine.start("fetch", "org/name", hubs=(hub,), variables=variables)
    return (await machine.finish(process)).code


@pytest.mark.parametrize("point", ["quarantine.1"])
async def test_32_killed_while_setting_a_rotten_blob_aside(machine: Machine, point: str) -> None:
    repo = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(2, 1 << 20)})
    async with TestHub([repo]) as hub:
        await machine.fetch("org/name", hub)
        blob = next(path for path in machine.blobs() if len(path.name) == 64)
        blob.write_bytes(b"rotten")
        assert await _run(machine, hub, point) == KILLED
        assert await _run(machine, hub) == 0
    found = machine.offline()
    assert found is not None
    assert files_in(found) == contents(repo)
    assert [p.read_bytes() for p in (machine.home / "quarantine").iterdir()] == [b"rotten"]


async def test_35_killed_at_random(machine: Machine) -> None:
    """What one run leaves, no later one asks for again. (What lay in sockets comes again, however much that was.)"""
    chance = random.Random(35)
    repo = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(3, 64 << 20)})
    size = 64 << 20
    kills, kept = 0, machine.kept_spans()
    async with TestHub([repo], faults=[slow_per_connection(20e6, route="cdn")]) as hub:
        for _ in range(12):
            enough = hub.stats.total + chance.randrange(5 << 20)
            variables = {"EDGECDN_FETCH_CONNECTIONS": "1"}
            process = await machine.start("fetch", "org/name", hubs=(hub,), variables=variables)
            while hub.stats.total <= enough and process.returncode is None:
                await asyncio.sleep(0.002)
            if process.returncode is None:
                process.kill()
                kills += 1
            await machine.finish(process)
            machine.check()
            assert machine.offline() is None or process.returncode == 0
            assert not _asked_again(hub, kept, size)
            before, kept = kept, machine.kept_spans()
            assert set(before) <= set(kept) or process.returncode == 0
        fetched = await machine.fetch("org/name", hub)
        assert not _asked_again(hub, kept, size)
        assert fetched.bytes_by_source["cache"] >= sum(map(len, kept))
    assert kills >= 10
    assert kept or process.returncode == 0
    assert files_in(fetched.path) == contents(repo)
    assert machine.partials() == []


def _asked_again(hub: TestHub, kept: list[Span], size: int) -> list[Span]:
    """What was kept and is in a range that was asked for since this was asked last."""
    asked = [parse_range(seen.range, size) for seen in hub.stats.requests if seen.listener == "cdn"]
    hub.stats.requests.clear()
    return [one for one in kept for span in asked if span is None or (one.start < span.end and span.start < one.stop)]


async def test_38_lock_files_that_nobody_holds(machine: Machine) -> None:
    repo = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(2, (1 << 20) + 5)})
    async with TestHub([repo]) as hub:
        hub.inject(slow_per_connection(2e6, route="cdn"))
        assert await _run(machine, hub, "partial.written") == KILLED  # leaves its own lock file
        assert list(machine.home.rglob("job.lock"))
        etag = repo.commits[repo.main].files["m.safetensors"].sha256
        stale = machine.cache / ".locks" / "models--org--name" / f"{etag}.lock"
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_text("12345")
        (machine.home / "agent.pid").write_text("999999")
        hub.clear()
        async with asyncio.timeout(4):
            fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == contents(repo)


async def test_38_a_lock_that_is_held_is_waited_for(machine: Machine) -> None:
    repo = make_repo("org/name", {"config.json": b"{}"})
    async with TestHub([repo]) as hub:
        hub.add(make_repo("org/other", {"a": b"a"}))
        hub.inject(slow_per_connection(2e6, route="cdn"))
        waiting = asyncio.Event()
        await machine.fetch("org/name", hub)
        repo.add_commit({"b": b"b"})
        lock: Path = next(machine.home.rglob("job.lock"))
        with lock.open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            job = asyncio.create_task(machine.fetch("org/name", hub, listener=lambda _: waiting.set()))
            await waiting.wait()
            assert "Another edgecdn is fetching this repo" in machine.said
            assert not job.done()
        fetched = await job
    assert files_in(fetched.path) == contents(repo)


async def test_38_two_fetches_at_once_bring_one_copy(machine: Machine) -> None:
    repo = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(4, 4 << 20)})
    async with TestHub([repo], faults=[slow_per_connection(8e6)]) as hub:
        one, two = await asyncio.gather(machine.fetch("org/name", hub), machine.fetch("org/name", hub))
        assert hub.stats.total <= 1.1 * (4 << 20)
    assert files_in(one.path) == contents(repo)
    assert sorted((one.bytes_by_source["cache"], two.bytes_by_source["cache"])) == [0, one.bytes_total]
