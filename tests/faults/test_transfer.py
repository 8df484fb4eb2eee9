"""The engine on in-memory sources: patience, lies, side by side, and that nothing is written twice."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.digest import Digest, DigestKind, lfs_pointer_oid
from edgecdn.errors import IntegrityFailure, Unreachable
from edgecdn.events import BytesReceived, Event, SourceDropped
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, RepoId, RepoType
from edgecdn.repopath import RepoPath
from edgecdn.sources.faults import Broken, Busy, Misbehaved
from edgecdn.sources.memory import MemorySource, ScriptedFault
from edgecdn.transfer.engine import Transfer

MIB = 1 << 20
REPO = RepoId(RepoType.MODEL, "org/name")


class Bench:
    """A store, and transfers into it."""

    def __init__(self, store: RepoStore, state: SafeDir) -> None:
        self.store = store
        self.state = state
        self.events: list[Event] = []

    async def bring(self, data: bytes, *sources: MemorySource, patience_s: float = 20.0) -> None:
        """Fetch one file."""
        digest = Digest.of(DigestKind.SHA256, data)
        entry = FileEntry(RepoPath.parse("f.bin"), len(data), digest, lfs_pointer_oid(digest, len(data)))
        manifest = Manifest.of(REPO, CommitId("a" * 40), [entry])
        transfer = Transfer(
            self.store,
            self.state,
            sources,
            self.events.append,
            patience_s=patience_s,
            on_publishing=lambda _entry, _seen: None,
            chance=random.Random(1),
        )
        await transfer.run(manifest, manifest.files)
        blob = self.store.path / "blobs" / digest.hex
        assert blob.read_bytes() == data

    @property
    def received(self) -> int:
        """Bytes that were written."""
        return sum(e.count for e in self.events if isinstance(e, BytesReceived))

    @property
    def dropped(self) -> set[str]:
        """Sources that were dropped."""
        return {e.source for e in self.events if isinstance(e, SourceDropped)}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    with open_repo(tmp_path / "hub", REPO, create=True) as store, SafeDir.at(tmp_path / "state", create=True) as state:
        yield Bench(store, state)
        names = sorted(p.name for p in store.path.glob("blobs/*"))
        assert not [n for n in names if not n.endswith(".incomplete") and len(n) != 64]


def _source(name: str, data: bytes, wrong: bytes | None = None, **more: object) -> MemorySource:
    blobs = {Digest.of(DigestKind.SHA256, data): data if wrong is None else wrong}
    return MemorySource(name, blobs=blobs, **more)  # type: ignore[arg-type]  # a test names what it needs


async def test_a_slow_line_is_no_silence(bench: Bench) -> None:
    async def slow(_count: int) -> None:
        await asyncio.sleep(0.1)  # what is tested is time itself: pieces far apart, units farther than the patience

    data = random.Random(1).randbytes(600 * 1024)
    await bench.bring(data, _source("hub", data, pace=slow, connections=1), patience_s=0.5)
    assert bench.received == len(data)


async def test_a_hub_that_is_busy_for_ever_is_given_up(bench: Bench) -> None:
    data = random.Random(2).randbytes(MIB)
    hub = _source("hub", data, faults=deque(ScriptedFault(Busy("is busy", 0.2)) for _ in range(1000)))
    started = time.monotonic()
    with pytest.raises(Unreachable, match="is busy"):
        await bench.bring(data, hub, patience_s=1.0)
    assert time.monotonic() - started < 20


async def test_one_burst_of_odd_answers_does_not_drop_the_only_hub(bench: Bench) -> None:
    data = random.Random(3).randbytes(40 * MIB)
    hub = _source("hub", data, faults=deque(ScriptedFault(Misbehaved("a web page")) for _ in range(8)))
    await bench.bring(data, hub)
    assert not bench.dropped


@pytest.mark.parametrize("size", [1000, 5 * MIB + 17, 40 * MIB])
async def test_the_liar_of_two_is_found_and_dropped(bench: Bench, size: int) -> None:
    data = random.Random(4).randbytes(size)
    wrong = bytearray(data)
    wrong[size // 2] ^= 1
    for spoiled in range(0, size, 3 * MIB):
        wrong[spoiled] ^= 1
    await bench.bring(data, _source("good", data), _source("bad", data, bytes(wrong)))
    assert bench.dropped <= {"bad"}


async def test_nobody_right_is_an_integrity_failure_that_names_them(bench: Bench) -> None:
    data = random.Random(5).randbytes(3 * MIB)
    wrong = bytes(len(data))
    with pytest.raises(IntegrityFailure, match=r"wrong bytes from one, two"):
        await bench.bring(data, _source("one", data, wrong), _source("two", data, wrong))
    assert list((bench.store.path / "blobs").iterdir()) == []


async def test_cut_off_again_and_again_nothing_is_fetched_twice(bench: Bench) -> None:
    data = random.Random(6).randbytes(24 * MIB)
    cuts = deque(ScriptedFault(Broken("reset"), after_bytes=(n % 5 + 1) * 300_000) for n in range(60))
    hub = _source("hub", data, faults=cuts)
    await bench.bring(data, hub)
    assert bench.received == len(data)


async def test_cancelled_midway_keeps_what_came_and_leaves_no_task(bench: Bench) -> None:
    half = asyncio.Event()
    data = random.Random(7).randbytes(30 * MIB)

    async def gate(_count: int) -> None:
        if bench.received > 15 * MIB:
            half.set()
            await asyncio.Event().wait()

    before = asyncio.all_tasks()
    job = asyncio.ensure_future(bench.bring(data, _source("hub", data, pace=gate)))
    await half.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert asyncio.all_tasks() == before
    kept, bench.events = bench.received, []
    await bench.bring(data, _source("hub", data))
    assert bench.received <= len(data) - kept + 2 * MIB
