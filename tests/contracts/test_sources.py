"""One contract for every source: what it offers it gives, exactly, and it leaves nothing open behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest
from yarl import URL

from edgecdn.digest import Digest, DigestKind, lfs_pointer_oid
from edgecdn.events import Kind
from edgecdn.lan_wire import Asker
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, RepoId, RepoType
from edgecdn.repopath import RepoPath
from edgecdn.sources import Offer, Source
from edgecdn.sources.faults import Missing
from edgecdn.sources.folder import FolderSource
from edgecdn.sources.http import ByteClient
from edgecdn.sources.hub import HubSource
from edgecdn.sources.memory import MemorySource
from edgecdn.sources.modelscope import ModelScopeSource
from edgecdn.sources.peer import PeerSource, peer_session
from edgecdn.spans import Span
from tests.agent.lan_lab import serving
from tests.hub import Generated, HubFile, Quirks, TestHub, make_repo
from tests.hub.content import chunks_of
from tests.hub.repos import Contents

LARGE = Generated(seed=3, size=6_000_011)
CONTENTS = {"sub/model.safetensors": b"".join(chunks_of(LARGE)), "config.json": b'{"a": 1}\n', "one byte": b"x"}
FILES: Contents = {"sub/model.safetensors": LARGE, "config.json": CONTENTS["config.json"], "one byte": b"x"}
REPO = make_repo("org/name", FILES)
SOURCES = ["memory", "hub", "hub with cdn", "modelscope", "modelscope by redirect", "hub cache", "plain folder", "peer"]


@dataclass
class Tried:
    """A source, the commit it is asked about, and how many answers are still open on its other side."""

    source: Source
    manifest: Manifest
    open: Callable[[], int]

    async def offers(self) -> dict[str, Offer]:
        """What it offers, by path."""
        offers = await self.source.offer(self.manifest, self.manifest.files)
        return {str(offer.entry.path): offer for offer in offers.values()}

    async def read(self, offer: Offer, span: Span) -> bytes:
        """All of a span."""
        async with asyncio.timeout(20):
            return b"".join([piece async for piece in self.source.read(offer, span)])

    async def closed(self) -> None:
        """Wait until nothing is open any more."""
        async with asyncio.timeout(20):
            while self.open():
                await asyncio.sleep(0.005)


def manifest_of(repo_id: str, files: list[FileEntry]) -> Manifest:
    return Manifest.of(RepoId(RepoType.MODEL, repo_id), CommitId(REPO.main), files)


def entry_of(file: HubFile, *, sha256: bool) -> FileEntry:
    """As a hub lists it, or as ModelScope does (`sha256`: for every file)."""
    if file.lfs or sha256:
        digest = Digest(DigestKind.SHA256, file.sha256)
        return FileEntry(RepoPath.parse(file.path), file.size, digest, lfs_pointer_oid(digest, file.size))
    digest = Digest(DigestKind.GIT_SHA1, file.oid)
    return FileEntry(RepoPath.parse(file.path), file.size, digest, digest)


def _unknown() -> FileEntry:
    digest = Digest.of(DigestKind.SHA256, b"nobody has this")
    return FileEntry(RepoPath.parse("sub/unknown.safetensors"), 15, digest, lfs_pointer_oid(digest, 15))


def _cache(base: Path, entries: list[FileEntry], *, plain: bool) -> Path:
    for entry in entries:
        path = base / "anywhere" / "Org" / "Name" / str(entry.path)
        if not plain:
            path = base / "models--org--name" / "blobs" / entry.digest.hex
            link = base / "models--org--name" / "snapshots" / REPO.main / str(entry.path)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(path, link.parent))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENTS[str(entry.path)])
    return base


@pytest.fixture(params=SOURCES)
async def tried(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Tried]:
    monkeypatch.setenv("NO_PROXY", "*")
    name: str = request.param
    files = list(REPO.commits[REPO.main].files.values())
    entries = [entry_of(file, sha256="modelscope" in name) for file in files]
    manifest = manifest_of("org/name", [*entries, _unknown()])
    async with AsyncExitStack() as stack:
        if name == "memory":
            blobs = {entry.digest: CONTENTS[str(entry.path)] for entry in entries}
            source: Source = MemorySource("memory", blobs=blobs, piece_bytes=10_007)
            yield Tried(source, manifest, lambda: 0)
        elif name == "peer":
            lab = await stack.enter_async_context(serving(tmp_path))
            for entry in entries:
                lab.shelf.add(CONTENTS[str(entry.path)], entry.digest.kind)
            session = await stack.enter_async_context(peer_session())
            source = PeerSource(session, "box", URL(f"http://{lab.address}"), Asker("0" * 32, 8378))
            yield Tried(source, manifest, lambda: _open_below(tmp_path))
        elif "hub" in name and "cache" not in name:
            hub = await stack.enter_async_context(TestHub([REPO], cdn="cdn" in name))
            client = ByteClient()
            stack.push_async_callback(client.close)
            source = HubSource(hub.url, Kind.ORIGIN, client, connections=7)
            yield Tried(source, manifest, lambda: hub.stats.open_bodies)
        elif "modelscope" in name:
            quirks = Quirks(redirect_lfs="redirect" in name, range_status_200="redirect" not in name)
            hub = await stack.enter_async_context(TestHub([REPO], modelscope=True, quirks=quirks))
            client = ByteClient()
            stack.push_async_callback(client.close)
            source = ModelScopeSource(hub.modelscope_url, Kind.MIRROR, client, connections=3)
            yield Tried(source, manifest, lambda: hub.stats.open_bodies)
        else:
            source = FolderSource(_cache(tmp_path, entries, plain="plain" in name))
            yield Tried(source, manifest, lambda: _open_below(tmp_path))
        await source.close()


def _open_below(folder: Path) -> int:
    """Files below a folder that this process has open."""
    targets = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            targets.append(fd.readlink())
        except OSError:
            continue
    return sum(target.is_relative_to(folder) for target in targets)


async def test_it_has_a_name_a_kind_and_a_number_of_connections(tried: Tried) -> None:
    assert tried.source.name
    assert "://" not in tried.source.name
    assert tried.source.kind in Kind
    assert tried.source.connections >= 1


async def test_it_offers_what_it_has(tried: Tried) -> None:
    offers = await tried.offers()
    assert set(CONTENTS) <= set(offers)
    for path, offer in offers.items():
        assert offer.entry == tried.manifest.by_path[path]


async def test_only_what_is_wanted_is_offered(tried: Tried) -> None:
    assert await tried.source.offer(tried.manifest, []) == {}
    one = tried.manifest.by_path["config.json"]
    assert set(await tried.source.offer(tried.manifest, [one])) == {one.digest}


async def test_what_it_lacks_is_not_offered_or_missing_when_read(tried: Tried) -> None:
    offer = (await tried.offers()).get("sub/unknown.safetensors")
    if offer is not None:
        with pytest.raises(Missing):
            await tried.read(offer, Span(0, offer.entry.size))


async def test_a_whole_read_has_the_digest(tried: Tried) -> None:
    for path, data in CONTENTS.items():
        offer = (await tried.offers())[path]
        read = await tried.read(offer, Span(0, len(data)))
        assert Digest.of(offer.entry.digest.kind, read) == offer.entry.digest


SPANS = [
    (0, 1), (1, 2), (0, 1000), (4095, 4097), (1_000_000, 3_000_001), (6_000_010, 6_000_011), (5_999_000, 6_000_011),
    (16_383, 16_385), (1, 6_000_011), (0, 6_000_010),
]  # fmt: skip


async def test_any_span_is_the_slice(tried: Tried) -> None:
    """FAULTS 10: the edges."""
    offer = (await tried.offers())["sub/model.safetensors"]
    data = CONTENTS["sub/model.safetensors"]
    for start, stop in SPANS:
        assert await tried.read(offer, Span(start, stop)) == data[start:stop], (start, stop)


async def test_spans_side_by_side(tried: Tried) -> None:
    offer = (await tried.offers())["sub/model.safetensors"]
    data = CONTENTS["sub/model.safetensors"]
    parts = await asyncio.gather(*(tried.read(offer, Span(n * 1_500_000, (n + 1) * 1_500_000)) for n in range(4)))
    assert hashlib.sha256(b"".join(parts)).digest() == hashlib.sha256(data[:6_000_000]).digest()


async def test_a_span_of_nothing_is_nothing(tried: Tried) -> None:
    offer = (await tried.offers())["sub/model.safetensors"]
    for at in (0, 7, 6_000_011):
        assert await tried.read(offer, Span(at, at)) == b""


async def test_a_read_that_is_left_midway_leaves_nothing_open(tried: Tried) -> None:
    offer = (await tried.offers())["sub/model.safetensors"]
    async with aclosing(tried.source.read(offer, Span(0, offer.entry.size))) as pieces:
        async for piece in pieces:
            assert piece
            break
    await tried.closed()


async def test_a_read_that_is_cancelled_leaves_nothing_open(tried: Tried) -> None:
    offer = (await tried.offers())["sub/model.safetensors"]
    begun, forever = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        async with aclosing(tried.source.read(offer, Span(0, offer.entry.size))) as pieces:
            async for _ in pieces:
                begun.set()
                await forever.wait()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await tried.closed()
    assert await tried.read(offer, Span(0, 10)) == CONTENTS["sub/model.safetensors"][:10]  # and it still works


async def test_closing_twice(tried: Tried) -> None:
    await tried.source.close()
    await tried.source.close()
