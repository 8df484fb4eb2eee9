"""Xet storage as a source, on a real `hf_xet` with a storage in a local folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import hf_xet
import pytest
from aiohttp import web

from edgecdn.digest import Digest, DigestKind, lfs_pointer_oid
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, RepoId, RepoType
from edgecdn.repopath import RepoPath
from edgecdn.sources.faults import Denied, Misbehaved, Missing, SourceFault
from edgecdn.sources.http import ByteClient, Credentials
from edgecdn.sources.xet import XetSource
from edgecdn.spans import Span

DATA = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(100_000))


class _TokenHub:
    """A hub that answers `xet-read-token` and remembers what it was asked."""

    def __init__(self, cas_url: str) -> None:
        self.cas_url = cas_url
        self.status = 200
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.headers.get("Authorization", ""))
        if self.status != 200:
            return web.Response(status=self.status)
        return web.json_response({"casUrl": self.cas_url, "accessToken": "x", "exp": int(time.time()) + 3600})


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[tuple[_TokenHub, str, str]]:
    storage = f"local://{tmp_path}/cas"
    session = hf_xet.XetSession()
    with session.new_upload_commit(endpoint=storage) as commit:
        handle = commit.start_upload_bytes(DATA, name="big")
    hub = _TokenHub(storage)
    app = web.Application()
    app.router.add_get("/api/models/org/big/xet-read-token/{commit}", hub.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield hub, f"http://{host}:{port}", handle.result().xet_info.hash
    await runner.cleanup()


def _manifest(xet_hash: str | None) -> Manifest:
    digest = Digest.of(DigestKind.SHA256, DATA)
    entry = FileEntry(RepoPath.parse("big.bin"), len(DATA), digest, lfs_pointer_oid(digest, len(DATA)), xet_hash)
    return Manifest.of(RepoId(RepoType.MODEL, "org/big"), CommitId("a" * 40), [entry])


async def test_spans_equal_the_slices_and_the_token_goes_only_to_the_hub(hub: tuple[_TokenHub, str, str]) -> None:
    stub, url, xet_hash = hub
    client = ByteClient([Credentials(url, "hf_secret")])
    source = XetSource(url, Kind.ORIGIN, client, larger_than=1000, local_storage=True)
    manifest = _manifest(xet_hash)
    offers = await source.offer(manifest, manifest.files)
    offer = offers[manifest.files[0].digest]
    for span in (Span(0, len(DATA)), Span(5, 70_000), Span(len(DATA) - 1, len(DATA)), Span(7, 7)):
        data = b"".join([piece async for piece in source.read(offer, span)])
        assert data == DATA[span.start : span.stop]
    assert stub.asked == ["Bearer hf_secret"]
    await source.close()
    await source.close()
    await client.close()


async def test_only_large_files_with_a_xet_hash_are_offered(hub: tuple[_TokenHub, str, str]) -> None:
    _, url, xet_hash = hub
    client = ByteClient()
    manifest = _manifest(xet_hash)
    assert not await XetSource(url, Kind.ORIGIN, client).offer(manifest, manifest.files)
    nameless = _manifest(None)
    assert not await XetSource(url, Kind.ORIGIN, client, larger_than=1).offer(nameless, nameless.files)
    await client.close()


@pytest.mark.parametrize(("status", "fault"), [(403, Denied), (404, Missing), (500, SourceFault)])
async def test_a_hub_that_refuses_the_token_is_a_fault(
    hub: tuple[_TokenHub, str, str], status: int, fault: type[SourceFault]
) -> None:
    stub, url, xet_hash = hub
    stub.status = status
    client = ByteClient()
    source = XetSource(url, Kind.ORIGIN, client, larger_than=1)
    manifest = _manifest(xet_hash)
    offers = await source.offer(manifest, manifest.files)
    with pytest.raises(fault):
        async for _ in source.read(offers[manifest.files[0].digest], Span(0, 10)):
            pass
    await client.close()


@pytest.mark.parametrize(
    "storage",
    ["HTTP://169.254.169.254/", "http://10.0.0.1", "local:///etc", "LOCAL:///etc", "file:///x", "", "http://"],
)
async def test_a_storage_that_is_not_the_hubs_business(hub: tuple[_TokenHub, str, str], storage: str) -> None:
    stub, url, xet_hash = hub
    stub.cas_url = storage
    client = ByteClient()
    source = XetSource(url, Kind.ORIGIN, client, larger_than=1)
    manifest = _manifest(xet_hash)
    offers = await source.offer(manifest, manifest.files)
    with pytest.raises(Misbehaved):
        async for _ in source.read(offers[manifest.files[0].digest], Span(0, 10)):
            pass
    await client.close()
