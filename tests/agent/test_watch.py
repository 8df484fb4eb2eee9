"""Following what other programs do in the cache."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edgecdn.names import RepoId, RepoType
from edgecdn_agent.holdings.indexer import Indexer
from edgecdn_agent.holdings.watch import CacheWatch
from tests.agent.cache_machine import DATA, PUBLIC, CacheMachine, git_sha1, sha256, until

LIMIT_S = 5.0
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[CacheMachine]:
    made = CacheMachine(tmp_path)
    yield made
    made.catalog.close()


@asynccontextmanager
async def watching(machine: CacheMachine) -> AsyncIterator[None]:
    """The services that follow a cache."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(CacheWatch(machine.holdings).run()),
            group.create_task(Indexer(machine.holdings).run()),
        ]
        yield
        for task in tasks:
            task.cancel()


async def test_a_blob_deleted_by_another_program_is_withdrawn(machine: CacheMachine) -> None:
    """FAULTS 30."""
    digest = machine.put(DATA)
    other = machine.put(b"other")
    async with watching(machine):
        await until(machine.holdings, lambda: machine.holdings.counts.blobs == 2)
        machine.path(PUBLIC, digest).unlink()
        took_s = await until(machine.holdings, lambda: machine.holdings.get(digest) is None, LIMIT_S)
        print(f"withdrawn after {took_s:.1f} s")
        assert machine.holdings.get(other) is not None
        shutil.rmtree(machine.cache / PUBLIC.folder)
        await until(machine.holdings, lambda: machine.holdings.counts.repos == 0, LIMIT_S)


async def test_what_another_program_brings_is_known_and_held_once_hashed(machine: CacheMachine) -> None:
    machine.put(DATA)
    data_set = RepoId(RepoType.DATASET, "org/new")
    async with watching(machine):
        await until(machine.holdings, lambda: machine.holdings.counts.blobs == 1)
        digest = machine.put(b"new", data_set, digest=git_sha1(b"new"), verified=False)
        took_s = await until(machine.holdings, lambda: machine.holdings.get(digest) is not None, LIMIT_S)
        print(f"held after {took_s:.1f} s")
        second = machine.put(b"newer", data_set, verified=False)
        await until(machine.holdings, lambda: machine.holdings.get(second) is not None, LIMIT_S)


async def test_the_cache_folder_may_come_later_and_go_and_come_again(machine: CacheMachine) -> None:
    async with watching(machine):
        assert not machine.cache.exists()
        digest = machine.put(DATA, verified=False)
        await until(machine.holdings, lambda: machine.holdings.get(digest) is not None, LIMIT_S + 1)
        shutil.rmtree(machine.cache)
        await until(machine.holdings, lambda: machine.holdings.counts.blobs == 0, LIMIT_S)
        again = machine.put(DATA + b"again", verified=False)
        await until(machine.holdings, lambda: machine.holdings.get(again) is not None, LIMIT_S + 1)


async def test_a_cache_reached_through_a_link(tmp_path: Path) -> None:
    machine = CacheMachine(tmp_path)
    (tmp_path / "real").mkdir()
    machine.cache.symlink_to(tmp_path / "real")
    digest = machine.put(DATA)
    async with watching(machine):
        await until(machine.holdings, lambda: machine.holdings.counts.blobs == 1)
        machine.path(PUBLIC, digest).unlink()
        await until(machine.holdings, lambda: machine.holdings.get(digest) is None, LIMIT_S)
    machine.catalog.close()


async def test_a_blob_deleted_from_the_shared_store_is_withdrawn(machine: CacheMachine) -> None:
    digest = sha256(DATA)
    stored = machine.cache / "blobs" / digest.hex[:2] / digest.hex
    stored.parent.mkdir(parents=True)
    stored.write_bytes(DATA)
    path = machine.path(PUBLIC, digest)
    path.parent.mkdir(parents=True)
    path.symlink_to(f"../../blobs/{digest.hex[:2]}/{digest.hex}")
    machine.catalog.set_verified(path, digest, path.stat())
    async with watching(machine):
        await until(machine.holdings, lambda: machine.holdings.counts.blobs == 1)
        stored.unlink()
        await until(machine.holdings, lambda: machine.holdings.counts.blobs == 0, LIMIT_S)


_WITHOUT_NOTICES = """
import asyncio, json, logging, sys
from pathlib import Path
from edgecdn_agent.holdings.watch import CacheWatch
from tests.agent.cache_machine import DATA, PUBLIC, CacheMachine, until

async def main():
    machine = CacheMachine(Path(sys.argv[1]))
    digest = machine.put(DATA)
    heard = []
    class Heard(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())
    logging.getLogger("edgecdn_agent.holdings.watch").addHandler(Heard())
    async with asyncio.TaskGroup() as group:
        task = group.create_task(CacheWatch(machine.holdings).run())
        await until(machine.holdings, lambda: machine.holdings.counts.blobs == 1)
        machine.path(PUBLIC, digest).unlink()
        took_s = await until(machine.holdings, lambda: machine.holdings.counts.blobs == 0)
        task.cancel()
    print(json.dumps({"took_s": took_s, "heard": heard}))

asyncio.run(main())
"""


@pytest.mark.parametrize("limit", ["watches", "instances"])
def test_without_notices_folder_times_do(tmp_path: Path, limit: str) -> None:
    """Where the kernel has no more watches to give (its own limit, in a user namespace of its own)."""
    script = f'echo 0 > /proc/sys/user/max_inotify_{limit} && exec "$@"'
    command = ["unshare", "-U", "-r", "sh", "-c", script, "sh", sys.executable, "-c", _WITHOUT_NOTICES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=50, check=False)
    if done.returncode and ("unshare" in done.stderr or "/proc/sys/user" in done.stderr):
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["took_s"] <= LIMIT_S
    assert len(told["heard"]) == 1
    print(f"withdrawn after {told['took_s']:.1f} s")
