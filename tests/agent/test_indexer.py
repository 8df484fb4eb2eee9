"""Hashing in the background what was never verified."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import psutil
import pytest

from edgecdn.cache.catalog import Catalog
from edgecdn.digest import Digest
from edgecdn_agent.holdings import indexer as indexer_module
from edgecdn_agent.holdings.indexer import Indexer
from edgecdn_agent.holdings.shelf import Holding, Holdings
from tests.agent.cache_machine import DATA, PUBLIC, CacheMachine, flip, git_sha1, sha256, tree_of, until

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[CacheMachine]:
    made = CacheMachine(tmp_path)
    yield made
    made.catalog.close()


@asynccontextmanager
async def indexing(holdings: Holdings, indexed: Callable[[Holding], None] = lambda _: None) -> AsyncIterator[None]:
    """An indexer at work."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(Indexer(holdings, indexed).run())
        yield
        task.cancel()


async def idle(holdings: Holdings) -> None:
    """Wait until nothing is left to be indexed."""
    await until(holdings, lambda: not holdings.table.pending())


async def test_what_was_never_hashed_is_held_afterwards(machine: CacheMachine) -> None:
    large = machine.put(DATA, verified=False)
    small = machine.put(b"{}", digest=git_sha1(b"{}"), verified=False)
    empty = machine.put(b"", verified=False)
    known = machine.put(b"known but without a tree")
    holdings = machine.holdings
    told: list[Digest] = []
    await holdings.rescan()
    assert holdings.get(large) is None
    async with indexing(holdings, lambda holding: told.append(holding.digest)):
        await idle(holdings)
    assert {large, small, empty, known} == set(told)
    assert told[-1] == large  # smallest first
    for digest in told:
        assert holdings.get(digest) is not None
    assert await holdings.tree(large) == tree_of(DATA)
    assert await holdings.tree(known) == tree_of(b"known but without a tree")
    assert await holdings.tree(small) is None
    assert await holdings.tree(empty) is None
    again = machine.restarted()
    await again.rescan()
    assert again.table.pending() == []
    assert again.counts.blobs == 4


async def test_a_wrong_file_of_the_user_is_never_announced_and_stays(
    machine: CacheMachine, caplog: pytest.LogCaptureFixture
) -> None:
    digest = machine.put(b"other bytes than its name says", digest=sha256(DATA), verified=False)
    await machine.holdings.rescan()
    with caplog.at_level(logging.WARNING):
        async with indexing(machine.holdings):
            await idle(machine.holdings)
    assert machine.holdings.get(digest) is None
    assert machine.path(PUBLIC, digest).read_bytes() == b"other bytes than its name says"
    assert not machine.catalog.tree_digests()
    assert len(caplog.records) == 1
    await machine.holdings.rescan()
    assert machine.holdings.table.pending() == []  # not hashed again and again


async def test_a_rotten_file_that_edgecdn_brought_is_set_aside(machine: CacheMachine) -> None:
    digest = machine.put(DATA, brought=True)
    flip(machine.path(PUBLIC, digest), 17)
    await machine.holdings.rescan()
    async with indexing(machine.holdings):
        await idle(machine.holdings)
    assert machine.holdings.get(digest) is None
    assert not machine.path(PUBLIC, digest).exists()
    assert len(list((machine.home / "quarantine").iterdir())) == 1


async def test_a_withdrawn_blob_comes_back_when_it_reads_well(machine: CacheMachine) -> None:
    digest = machine.put(DATA)
    machine.catalog.set_tree(digest, tree_of(DATA))
    await machine.holdings.rescan()
    async with indexing(machine.holdings):
        machine.holdings.withdraw(digest)
        assert machine.holdings.get(digest) is None
        await until(machine.holdings, lambda: machine.holdings.get(digest) is not None)


async def test_a_file_that_is_still_written_is_left_alone(machine: CacheMachine) -> None:
    half, rest = DATA[:1000], DATA[1000:]
    digest = machine.put(half, digest=sha256(DATA), verified=False, age_s=0.0)
    path = machine.path(PUBLIC, digest)
    await machine.holdings.rescan()
    async with indexing(machine.holdings):
        with path.open("ab") as file:
            file.write(rest)
        await until(machine.holdings, lambda: machine.holdings.get(digest) is not None)
        assert time.time() - path.stat().st_mtime >= 2.0
    assert await machine.holdings.tree(digest) == tree_of(DATA)


async def test_what_a_fetch_verified_meanwhile_is_not_read_again(
    machine: CacheMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = machine.put(DATA, verified=False)
    await machine.holdings.rescan()
    path = machine.path(PUBLIC, digest)
    machine.catalog.set_verified(path, digest, path.stat(), brought=True)
    machine.catalog.set_tree(digest, tree_of(DATA))
    monkeypatch.delattr(indexer_module, "_read")
    async with indexing(machine.holdings):
        await idle(machine.holdings)
    assert machine.holdings.get(digest) is not None
    assert machine.catalog.was_brought(path, path.lstat())


def _lowered() -> list[psutil.Process]:
    """The threads that stepped back: nice, and idle in reading."""
    found = []
    for thread in threading.enumerate():
        with suppress(OSError, psutil.Error):
            process = psutil.Process(thread.native_id)
            if os.getpriority(os.PRIO_PROCESS, process.pid) >= 10:
                found += [process] if process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE else []
    return found


async def test_it_works_at_low_priority_stops_soon_and_goes_on_after_a_restart(machine: CacheMachine) -> None:
    small = machine.put(DATA, verified=False)
    huge = machine.path(PUBLIC, Digest.parse("a" * 64))
    with huge.open("wb") as file:
        file.truncate(64 << 30)  # sparse: minutes of hashing
    os.utime(huge, (1.7e9, 1.7e9))
    await machine.holdings.rescan()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(Indexer(machine.holdings).run())
        await until(machine.holdings, lambda: machine.holdings.get(small) is not None)
        async with asyncio.timeout(20):
            while not _lowered():
                await asyncio.sleep(0.01)
        assert os.getpriority(os.PRIO_PROCESS, 0) == before, "its own thread alone"
        stopped = time.monotonic()
        task.cancel()
    async with asyncio.timeout(1):
        while _lowered():
            await asyncio.sleep(0.01)
    print(f"stopped after {(time.monotonic() - stopped) * 1000:.0f} ms")
    again = machine.restarted()
    await again.rescan()
    assert again.get(small) is not None
    assert [holding.path for holding in again.table.pending()] == [huge]


@pytest.mark.parametrize("harm", ["half", "empty", "gone", "wal"])
async def test_a_damaged_catalog_is_made_again_from_the_cache(machine: CacheMachine, harm: str) -> None:
    """FAULTS 29, 37."""
    blobs = {machine.put(Random(n).randbytes(1000 + n), brought=True) for n in range(300)}
    path = machine.catalog.path
    if harm == "wal":
        wal = Path(f"{path}-wal")
        left = wal.read_bytes()
        machine.catalog.close()
        path.write_bytes(b"")  # nothing was moved over from the log yet, and that is cut
        wal.write_bytes(left[: len(left) // 3])
    else:
        machine.catalog.close()
        if harm == "gone":
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2 if harm == "half" else 0)
    machine.catalog = Catalog(machine.home)
    holdings = machine.restarted()
    await holdings.rescan()
    async with indexing(holdings):
        await idle(holdings)
    assert {digest for digest in blobs if holdings.get(digest)} == blobs
    assert machine.catalog.check() == "ok"
    machine.catalog.close()
    machine.catalog = Catalog(machine.home)
    again = machine.restarted()
    await again.rescan()
    assert again.counts.blobs == 300
    assert again.table.pending() == []


async def test_a_catalog_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """FAULTS 26: held in memory, and hashed again after a restart."""
    machine = CacheMachine(tmp_path)
    machine.catalog.path.mkdir(parents=True)
    digest = machine.put(DATA, verified=False)
    await machine.holdings.rescan()
    async with indexing(machine.holdings):
        await idle(machine.holdings)
    assert machine.holdings.get(digest) is not None
    assert await machine.holdings.tree(digest) is None
    machine.catalog.close()


async def test_a_blob_that_goes_away_while_it_is_due(machine: CacheMachine) -> None:
    gone = machine.put(DATA, verified=False)
    stays = machine.put(DATA + b"!", verified=False)
    await machine.holdings.rescan()
    machine.path(PUBLIC, gone).unlink()
    async with indexing(machine.holdings):
        await until(machine.holdings, lambda: machine.holdings.get(stays) is not None)
        await idle(machine.holdings)
    assert machine.holdings.get(gone) is None


class LoopDisk:
    """An ext4 on a file, which can lose its second half: reads fail there with EIO."""

    def __init__(self, base: Path) -> None:
        self.image = base / "disk.img"
        self.where = base / "disk"
        self.where.mkdir()
        with self.image.open("wb") as file:
            file.truncate(64 * MIB)
        if os.geteuid() != 0:
            pytest.skip("needs root to mount a loop device")
        for command in (
            ["mkfs.ext4", "-q", "-O", "^has_journal", str(self.image)],
            ["mount", "-o", "loop", str(self.image), str(self.where)],
        ):
            try:
                subprocess.run(command, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no loop device here: {error}")

    def rot(self, keep: int) -> None:
        """Cut the file under the disk, and forget what is in memory of it."""
        subprocess.run(["sync", "-f", self.where], check=True)
        os.truncate(self.image, keep)
        Path("/proc/sys/vm/drop_caches").write_text("3")

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.where], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    made = LoopDisk(tmp_path)
    yield made
    made.close()


@pytest.mark.root
async def test_a_disk_that_cannot_read_a_blob(disk: LoopDisk, caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 25: what cannot be read is not held; what can be is."""
    machine = CacheMachine(disk.where)
    data = Random(5).randbytes(40 * MIB)
    digest = machine.put(data)
    small = machine.put(b"small", digest=git_sha1(b"small"), verified=False)
    machine.catalog.set_tree(digest, tree_of(data))
    await machine.holdings.rescan()
    held = machine.holdings.get(digest)
    assert held is not None
    disk.rot(20 * MIB)
    fd = machine.holdings.open(held)
    with pytest.raises(OSError, match="Input/output error"):
        for at in range(0, held.size, MIB):
            os.pread(fd, MIB, at)
    os.close(fd)
    with caplog.at_level(logging.WARNING):
        async with indexing(machine.holdings):
            machine.holdings.withdraw(digest)  # as whoever reads it does
            await idle(machine.holdings)
    assert machine.holdings.get(digest) is None
    assert any(record.getMessage().endswith("reason=EIO") for record in caplog.records)
    assert machine.holdings.get(small) is not None or not machine.path(PUBLIC, small).exists()
    await machine.holdings.rescan()
    assert machine.holdings.get(digest) is None
    machine.catalog.close()


@pytest.mark.root
async def test_a_disk_that_fails_under_a_recheck(disk: LoopDisk) -> None:
    """FAULTS 25."""
    machine = CacheMachine(disk.where)
    digest = machine.put(Random(6).randbytes(40 * MIB))
    await machine.holdings.rescan()
    disk.rot(20 * MIB)
    assert not await machine.holdings.recheck(digest)
    assert machine.holdings.get(digest) is None
    with suppress(sqlite3.Error):
        machine.catalog.close()
