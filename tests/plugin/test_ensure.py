"""The agent's side of the plugin: leases that live while somebody polls, and placing in a client's cache."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from edgecdn.cache.store import open_repo
from edgecdn.digest import Digest, DigestKind
from edgecdn.ensure_wire import ENSURE, Ensure, Ensured
from edgecdn.errors import AccessDenied, AgentNotRunning, CacheRefused, EdgecdnError, IntegrityFailure, Interrupted
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, RepoId, RepoType, Revision
from edgecdn.repopath import RepoPath
from edgecdn_agent.deliver.delivery import Wanted
from edgecdn_agent.gateway.ensure import EnsureService, Lease
from edgecdn_agent.gateway.errors import HubRefusal, NoAnswer
from edgecdn_agent.gateway.placer import Placer
from edgecdn_agent.gateway.placing import has_blob, place_blob, place_snapshot
from tests.agent.bytes_lab import ToldDeliveries
from tests.agent.cache_machine import SECRET, CacheMachine

ASKED = Ensure("model", "org/model", "main", "config.json", "/cache")
REPO = RepoId(RepoType.MODEL, "org/model")
Poll = Callable[[], Awaitable[Ensured]]


@asynccontextmanager
async def served(place: Callable[[Lease], Awaitable[None]], clock: Callable[[], float]) -> AsyncIterator[Poll]:
    service = EnsureService(place, look_s=0.01, clock=clock)
    app = web.Application()
    service.extend(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = "http://{}:{}".format(*runner.addresses[0][:2])
    async with asyncio.TaskGroup() as group, ClientSession() as session:

        async def poll() -> Ensured:
            async with session.post(url + ENSURE, data=msgspec.json.encode(ASKED)) as answer:
                return msgspec.json.decode(await answer.read(), type=Ensured)

        running = group.create_task(service.run())
        async with asyncio.timeout(20):
            await service.ready.wait()
            yield poll
        running.cancel()
    await runner.cleanup()


async def test_polls_tell_how_far_it_is_and_that_it_is_there() -> None:
    go_on = asyncio.Event()

    async def place(lease: Lease) -> None:
        lease.done_bytes, lease.total_bytes, lease.etag = 3, 10, "e"
        await go_on.wait()

    async with served(place, lambda: 0.0) as poll:
        assert await poll() == Ensured("coming", 3, 10, "", "e")
        go_on.set()
        assert await poll() == Ensured("placed", 10, 10, "", "e")


async def test_a_client_that_asks_no_more_does_not_keep_it() -> None:
    now, left = 0.0, asyncio.Event()

    async def place(lease: Lease) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with served(place, lambda: now) as poll:
        for _ in range(3):
            assert (await poll()).state == "coming"
            now += 3
        assert not left.is_set()
        now += 5
        await left.wait()
        assert (await poll()).state == "coming"  # another begins


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (HubRefusal(404, "EntryNotFound", "no"), "absent"),
        (HubRefusal(403, "GatedRepo", "no"), "denied"),
        (AccessDenied(name="x", where="y", reason=""), "denied"),
        (NoAnswer("nobody"), "pass"),
        (CacheRefused("foreign", where="/x"), "failed"),
        (Interrupted(" It was stopped."), "later"),
        (AgentNotRunning(" (it is stopping)"), "later"),
        (OSError("disk"), "pass"),
        (RuntimeError("bug"), "pass"),
    ],
)
async def test_what_keeps_it_from_there_is_told(error: Exception, state: str) -> None:
    async def place(lease: Lease) -> None:
        raise error

    async with served(place, lambda: 0.0) as poll:
        told = await poll()
        assert (told.state, told.integrity) == (state, False)


async def test_wrong_bytes_are_told_with_what_to_do() -> None:
    async def place(lease: Lease) -> None:
        raise IntegrityFailure("x", path="config.json")

    async with served(place, lambda: 0.0) as poll:
        told = await poll()
        assert (told.state, told.integrity) == ("failed", True)
        assert told.error
        assert told.remedy


def entry_of(path: str, data: bytes) -> FileEntry:
    digest = Digest.of(DigestKind.GIT_SHA1, data)
    return FileEntry(RepoPath.parse(path), len(data), digest, digest)


def held(cache: Path, data: bytes) -> Path:
    digest = Digest.of(DigestKind.GIT_SHA1, data)
    blob = cache / REPO.folder / "blobs" / digest.hex
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    return blob


def placed(blob: Path, cache: Path, entry: FileEntry, stop: Event | None = None) -> list[int]:
    told: list[int] = []
    source = os.open(blob, os.O_RDONLY)
    try:
        place_blob(source, cache, REPO, entry, told.append, stop or Event())
    finally:
        os.close(source)
    return told


def test_a_blob_is_linked_where_the_disk_is_the_same(tmp_path: Path) -> None:
    blob, entry = held(tmp_path / "ours", b"data"), entry_of("a", b"data")
    assert placed(blob, tmp_path / "theirs", entry) == [4]
    there = tmp_path / "theirs" / REPO.folder / "blobs" / entry.digest.hex
    assert there.samefile(blob)
    assert not there.is_symlink()
    assert has_blob(tmp_path / "theirs", REPO, entry.digest)
    assert [path.name for path in there.parent.iterdir()] == [entry.digest.hex]
    assert placed(blob, tmp_path / "theirs", entry) == [4]


def test_it_is_copied_where_it_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    data = os.urandom(40 << 20)
    blob, entry = held(tmp_path / "ours", data), entry_of("a", data)
    told = placed(blob, tmp_path / "theirs", entry)
    there = tmp_path / "theirs" / REPO.folder / "blobs" / entry.digest.hex
    assert there.read_bytes() == data
    assert not there.samefile(blob)
    assert told[-1] == len(data)
    stop = Event()
    stop.set()
    if len(told) > 1:  # no reflinks here
        with pytest.raises(Interrupted):
            placed(blob, tmp_path / "others", entry, stop)
        assert list((tmp_path / "others" / REPO.folder / "blobs").iterdir()) == []


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    blob, entry = held(tmp_path / "ours", b"data"), entry_of("a", b"data")
    there = tmp_path / "theirs" / REPO.folder / "blobs" / entry.digest.hex
    there.parent.mkdir(parents=True)
    there.write_bytes(b"user")
    placed(blob, tmp_path / "theirs", entry)
    assert there.read_bytes() == b"user"


def test_planted_links_lead_nowhere(tmp_path: Path) -> None:
    blob, entry = held(tmp_path / "ours", b"data"), entry_of("a", b"data")
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "theirs" / REPO.folder
    folder.mkdir(parents=True)
    (folder / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EdgecdnError):
        placed(blob, tmp_path / "theirs", entry)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: gives a folder to another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    blob, entry = held(tmp_path / "ours", b"data"), entry_of("a", b"data")
    folder = tmp_path / "theirs" / REPO.folder
    folder.mkdir(parents=True)
    os.chown(folder, 65534, 65534)
    with pytest.raises(CacheRefused):
        placed(blob, tmp_path / "theirs", entry)


def test_a_snapshot_is_placed_whole(tmp_path: Path) -> None:
    entries = [entry_of("a.json", b"one"), entry_of("sub/b.json", b"two"), entry_of("c.bin", b"not here")]
    manifest = Manifest.of(REPO, CommitId("c" * 40), entries)
    for data in (b"one", b"two"):
        held(tmp_path / "ours", data)
    told: list[int] = []
    with open_repo(tmp_path / "ours", REPO) as own:
        own.write_tree(manifest)
        for entry in entries:
            if entry.path.name != "c.bin":
                own.link(manifest.commit, entry)
        place_snapshot(own, tmp_path / "theirs", manifest, Revision("main"), told.append, Event())
    folder = tmp_path / "theirs" / REPO.folder
    assert (folder / "refs" / "main").read_text() == "c" * 40
    assert (folder / "snapshots" / ("c" * 40) / "sub" / "b.json").read_bytes() == b"two"
    assert not (folder / "snapshots" / ("c" * 40) / "c.bin").exists()
    assert told[-1] == 6


def test_two_who_place_the_same_at_once_leave_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two names of one file a rename does nothing, and leaves both."""
    both, link = Barrier(2, timeout=20), os.link

    def linked(*given: Any, **named: Any) -> None:
        link(*given, **named)
        both.wait()

    monkeypatch.setattr(os, "link", linked)
    blob, entry = held(tmp_path / "ours", b"data"), entry_of("a", b"data")
    with ThreadPoolExecutor(2) as threads:
        placing = [threads.submit(placed, blob, tmp_path / "theirs", entry) for _ in range(2)]
        assert [one.result(20) for one in placing] == [[4], [4]]
    blobs = tmp_path / "theirs" / REPO.folder / "blobs"
    assert [path.name for path in blobs.iterdir()] == [entry.digest.hex]


async def test_what_only_the_lab_vouches_for_is_placed_from_its_own_repo(tmp_path: Path) -> None:
    machine = CacheMachine(tmp_path)
    digest = machine.put(b"secret", SECRET)
    await machine.holdings.rescan()
    entry = FileEntry(RepoPath.parse("config.json"), 6, digest, Digest.of(DigestKind.GIT_SHA1, b"pointer"))

    class Found:
        page = ""

        async def find(self, repo: RepoId, *_: object, **__: object) -> Wanted:
            return Wanted(Manifest.of(repo, CommitId("c" * 40), [entry]), entry, self.page)

    finder, deliveries = Found(), ToldDeliveries(tmp_path, refuses=AgentNotRunning())
    placer = Placer(finder, deliveries, machine.holdings, None, machine.cache)  # type: ignore[arg-type]
    theirs = tmp_path / "theirs"
    lease = Lease(Ensure("model", REPO.name, "main", "config.json", str(theirs)), 0.0)
    with pytest.raises(AgentNotRunning):
        await placer.place(lease)
    assert not has_blob(theirs, REPO, digest)
    finder.page = "https://hub.example/org/model"
    await placer.place(lease)
    assert has_blob(theirs, REPO, digest)
    machine.catalog.close()


async def test_a_service_that_does_not_run_is_asked_again() -> None:
    async def place(lease: Lease) -> None: ...

    service, app = EnsureService(place), web.Application()
    service.extend(app)
    async with TestClient(TestServer(app)) as client:
        answer = await client.post(ENSURE, data=msgspec.json.encode(ASKED))
        assert (await answer.json())["state"] == "later"
