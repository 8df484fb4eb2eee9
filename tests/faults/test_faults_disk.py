"""Rows 23, 24, 26, 28, 29 and 37: disks that are full, read-only or rot, and state that is damaged."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecdn import pipeline
from edgecdn.errors import NoSpace, ReadOnlyStore, Unreachable
from edgecdn.events import BytesReceived, Event
from tests.faults.machine import Machine, contents, files_in
from tests.faults.mounts import Mounts, fill
from tests.hub import Generated, TestHub, make_repo, many_files, slow_total

pytestmark = pytest.mark.timeout(180)

BIG = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(1, 16 << 20)})
SMALL = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(2, (1 << 20) + 5)})


async def test_23_full_before_the_first_byte(machine: Machine, mounts: Mounts) -> None:
    mounts.tmpfs(machine.cache, "size=8m")
    async with TestHub([BIG]) as hub:
        ran = await machine.run("fetch", "org/name", hubs=(hub,))
        assert hub.stats.total == 0
    assert ran.code == 7
    assert "16.8 MB more are needed, 64.0 MB are kept free beyond that, and 8.4 MB are free" in ran.err


async def test_23_full_for_a_file_that_would_fit(machine: Machine, mounts: Mounts) -> None:
    """What is kept free is said, or nobody understands."""
    mounts.tmpfs(machine.cache, "size=60m")
    async with TestHub([make_repo("org/name", {"config.json": b"x" * 40})]) as hub:
        ran = await machine.run("fetch", "org/name", hubs=(hub,))
    assert ran.code == 7
    assert "40 B more are needed, 64.0 MB are kept free beyond that, and 62.9 MB are free" in ran.err


async def test_23_full_midway(machine: Machine, mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_MARGIN_BYTES", 1 << 20)
    mounts.tmpfs(machine.cache, "size=24m")
    mine = machine.own(machine.cache / "models--my--own" / "blobs" / "notes", b"mine")
    ballast: list[Path] = []

    def fill_up(event: Event) -> None:
        if isinstance(event, BytesReceived) and not ballast and machine.received > 1 << 20:
            ballast.append(fill(machine.cache, keep_bytes=6 << 20))

    async with TestHub([BIG], faults=[slow_total(40e6)]) as hub:
        with pytest.raises(NoSpace) as caught:
            await machine.fetch("org/name", hub, listener=fill_up)
        assert caught.value.exit_code == 7
        assert machine.offline() is None
        kept = machine.received
        assert kept >= 4 << 20
        ballast[0].unlink()
        hub.clear()
        fetched = await machine.fetch("org/name", hub)
        assert hub.stats.total <= fetched.bytes_total + (8 << 20)
    assert files_in(fetched.path) == contents(BIG)
    assert fetched.bytes_by_source["cache"] >= 4 << 20  # what had arrived was kept
    assert mine.exists()


async def test_23_full_while_publishing_small_files(machine: Machine, mounts: Mounts) -> None:
    mounts.tmpfs(machine.cache, "size=70m")
    repo = make_repo("org/name", {f"f{n}": bytes([n]) * 300_000 for n in range(10)})
    ballast: list[Path] = []

    def fill_up(event: Event) -> None:
        if isinstance(event, BytesReceived) and not ballast:
            ballast.append(fill(machine.cache, keep_bytes=1 << 20))

    async with TestHub([repo]) as hub:
        with pytest.raises(NoSpace):
            await machine.fetch("org/name", hub, listener=fill_up)
        assert machine.offline() is None
        ballast[0].unlink()
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == contents(repo)
    assert machine.partials() == []


async def test_23_home_full(machine: Machine, mounts: Mounts) -> None:
    mounts.tmpfs(machine.home, "size=1m")
    async with TestHub([SMALL]) as hub:
        await machine.fetch("org/name", hub)
        ballast = fill(machine.home)
        fetched = await machine.fetch("org/name", hub)  # complete: needs nothing of home
        assert files_in(fetched.path) == contents(SMALL)
        hub.add(make_repo("org/other", {"m.safetensors": Generated(3, 3 << 20)}))
        ran = await machine.run("fetch", "org/other", hubs=(hub,))
        assert ran.code == 7
        assert str(machine.home) in ran.err
        ballast.unlink()
        assert (await machine.run("fetch", "org/other", hubs=(hub,))).code == 0


async def test_23_home_full_from_the_start_on_a_complete_repo(machine: Machine, mounts: Mounts) -> None:
    async with TestHub([SMALL]) as hub:
        await machine.fetch("org/name", hub)
        mounts.tmpfs(machine.home, "size=64k")
        fill(machine.home)
        ran = await machine.run("fetch", "org/name", hubs=(hub,))
    assert ran.code == 0
    assert files_in(ran.out.splitlines()[-1]) == contents(SMALL)


async def test_23_users_file_in_the_way_when_home_is_another_disk(machine: Machine, mounts: Mounts) -> None:
    mounts.tmpfs(machine.home, "size=8m")
    mine = machine.repo_dir() / "snapshots" / SMALL.main / "config.json"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    async with TestHub([SMALL]) as hub:
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == contents(SMALL)
    kept = [p for folder in (machine.home, machine.repo_dir()) for p in folder.rglob("*") if p.is_file()]
    assert any(path.read_bytes() == b"mine" for path in kept)
    assert "is kept as" in machine.said


async def test_24_out_of_inodes(machine: Machine, mounts: Mounts) -> None:
    mounts.tmpfs(machine.cache, "size=80m,nr_inodes=60")
    repo = make_repo("org/name", {**many_files(80), "m.safetensors": Generated(2, 1 << 20)})
    different = {f"d/{n}": b"%d" % n for n in range(80)}
    repo.add_commit(different)
    async with TestHub([repo]) as hub:
        with pytest.raises(NoSpace, match="inodes") as caught:
            await machine.fetch("org/name", hub)
        assert caught.value.exit_code == 7
        assert hub.stats.total == 0
        mounts.remount(machine.cache, "nr_inodes=1000")
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == contents(repo)


async def test_24_out_of_inodes_midway(machine: Machine, mounts: Mounts) -> None:
    mounts.tmpfs(machine.cache, "size=80m,nr_inodes=200")
    repo = make_repo("org/name", {f"d/{n}": b"%d" % n for n in range(60)})
    taken: list[Path] = []

    def take_all(event: Event) -> None:
        while isinstance(event, BytesReceived) and len(taken) < 300:
            path = machine.cache / f"taken-{len(taken)}"
            taken.append(path)
            try:
                path.touch()
            except OSError:
                return

    async with TestHub([repo]) as hub:
        with pytest.raises(NoSpace):
            await machine.fetch("org/name", hub, listener=take_all)
        assert machine.offline() is None
        for path in taken:
            path.unlink(missing_ok=True)
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == contents(repo)


async def test_26_read_only_cache(machine: Machine, mounts: Mounts) -> None:
    mounts.tmpfs(machine.cache, "size=80m")
    async with TestHub([SMALL, make_repo("org/other", {"a": b"a"})]) as hub:
        await machine.fetch("org/name", hub)
        mounts.remount(machine.cache, "ro")
        ran = await machine.run("fetch", "org/name", hubs=(hub,))
        assert ran.code == 0
        assert files_in(ran.out.splitlines()[-1]) == contents(SMALL)
        ran = await machine.run("fetch", "org/other", hubs=(hub,))
        assert ran.code == 7
        assert str(machine.cache) in ran.err
        assert "cannot be written" in ran.err
        with pytest.raises(ReadOnlyStore):
            await machine.fetch("org/other", hub)


@pytest.mark.parametrize("noticed_by", ["time", "lost catalog"])
async def test_28_bit_flip_at_rest(machine: Machine, noticed_by: str) -> None:
    async with TestHub([SMALL]) as hub:
        await machine.fetch("org/name", hub)
        hub.stats.reset()
        blob = next(path for path in machine.blobs() if len(path.name) == 64)
        rotten = bytearray(blob.read_bytes())
        rotten[777] ^= 1
        seen = blob.stat()
        blob.write_bytes(rotten)
        if noticed_by == "lost catalog":
            os.utime(blob, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # as a disk does it
            (machine.home / "catalog.sqlite").unlink()
        fetched = await machine.fetch("org/name", hub)
        assert set(hub.stats.sent) == {("org/name", "m.safetensors")}
    assert files_in(fetched.path) == contents(SMALL)
    assert "m.safetensors in the cache was damaged" in machine.said
    assert [path.read_bytes() for path in (machine.home / "quarantine").iterdir()] == [bytes(rotten)]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "zero length": lambda _data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "cut to 100": lambda data: data[:100],
    "garbage": lambda data: os.urandom(len(data)),
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"], ids=["db", "wal", "shm"])
async def test_29_damaged_catalog(machine: Machine, damage: Callable[[bytes], bytes], suffix: str) -> None:
    async with TestHub([SMALL]) as hub:
        await machine.fetch("org/name", hub)
        path = Path(f"{machine.home / 'catalog.sqlite'}{suffix}")
        path.write_bytes(damage(path.read_bytes() if path.exists() else os.urandom(40_000)))
        hub.stats.reset()
        fetched = await machine.fetch("org/name", hub)
        assert hub.stats.total == 0
    assert files_in(fetched.path) == contents(SMALL)


@pytest.mark.parametrize("damage", [*DAMAGE.values(), lambda data: data + b"u 99999999\nu 3"], ids=[*DAMAGE, "longer"])
async def test_37_damaged_journal(machine: Machine, damage: Callable[[bytes], bytes]) -> None:
    async with TestHub([BIG], faults=[slow_total(30e6)]) as hub:
        await _interrupted(machine, hub)
        journal = next(machine.home.rglob("*.journal"))
        journal.write_bytes(damage(journal.read_bytes()))
        hub.clear()
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == contents(BIG)
    assert list(machine.home.rglob("*.journal")) == []


@pytest.mark.parametrize("which", ["tree", "ref"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_37_damaged_tree_or_ref(machine: Machine, which: str, damage: Callable[[bytes], bytes]) -> None:
    async with TestHub([SMALL]) as hub:
        await machine.fetch("org/name", hub)
        path = machine.repo_dir() / ("refs/main" if which == "ref" else f"trees/{SMALL.main}.json")
        path.write_bytes(damage(path.read_bytes()))
        hub.stats.reset()
        fetched = await machine.fetch("org/name", hub)
        assert hub.stats.total == 0
    assert files_in(fetched.path) == contents(SMALL)
    assert machine.ref() == SMALL.main
    assert machine.offline() == Path(fetched.path)


async def _interrupted(machine: Machine, hub: TestHub) -> None:
    """Stop a fetch when 6 MiB have come."""
    enough = asyncio.Event()
    job = asyncio.create_task(
        machine.fetch("org/name", hub, listener=lambda _: enough.set() if machine.received > 6 << 20 else None)
    )
    await enough.wait()
    job.cancel()
    with pytest.raises((asyncio.CancelledError, Unreachable)):
        await job
