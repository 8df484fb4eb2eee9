"""A peer that lies, stalls or speaks another protocol, as the source sees it; the good ones are in test_sources."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from edgecdn.digest import Digest, DigestKind, lfs_pointer_oid
from edgecdn.lan_wire import Asker, BlobState, encode_have_answer, encode_refusal
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, RepoId, RepoType
from edgecdn.repopath import RepoPath
from edgecdn.sources import peer as peer_module
from edgecdn.sources.faults import Broken, Busy, Misbehaved, Missing, SourceFault
from edgecdn.sources.peer import PeerSource, peer_session
from edgecdn.spans import Span
from edgecdn_agent.lan.guard import Limits
from tests.agent.lan_lab import serving, tree_of

PIECE = 64 << 10
DATA = os.urandom(PIECE) * 3 + b"the end"
DIGEST = Digest.of(DigestKind.SHA256, DATA)
TREE = tree_of(DATA)
ME = Asker("0" * 32, 8378)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def entry(data: bytes = DATA) -> FileEntry:
    digest = Digest.of(DigestKind.SHA256, data)
    return FileEntry(RepoPath.parse("a.safetensors"), len(data), digest, lfs_pointer_oid(digest, len(data)))


def manifest(*entries: FileEntry) -> Manifest:
    return Manifest.of(RepoId(RepoType.MODEL, "a/b"), CommitId("c" * 40), entries)


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[PeerSource]:
    async with peer_session() as session:
        yield PeerSource(session, "liar", URL(url), ME)


class Liar:
    """A peer whose answers a test replaces."""

    def __init__(self) -> None:
        self.state = BlobState(len(DATA), root=TREE.root.hex())
        self.layer = TREE.layer
        self.data = DATA
        self.have: Answer | None = None
        self.blob: Answer | None = None
        self.seen: list[web.Request] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        if request.path.endswith("/have"):
            body = encode_have_answer({DIGEST: self.state})
            return await self.have(request) if self.have else web.Response(body=body)
        if "/trees/" in request.path:
            return web.Response(body=self.layer)
        if self.blob:
            return await self.blob(request)
        asked = request.http_range
        part = self.data[asked]
        start = asked.start or 0
        headers = {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(self.data)}"}
        whole = "Range" not in request.headers
        return web.Response(body=part, status=200 if whole else 206, headers={} if whole else headers)


@asynccontextmanager
async def lying(liar: Liar) -> AsyncIterator[PeerSource]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", liar.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with asking(f"http://127.0.0.1:{runner.addresses[0][1]}") as source:
            yield source
    finally:
        await runner.cleanup()


async def read(source: PeerSource, span: Span) -> tuple[bytes, SourceFault | None]:
    """What came before a fault, and the fault."""
    offers = await source.offer(manifest(entry()), [entry()])
    got = bytearray()
    try:
        async for piece in source.read(offers[DIGEST], span):
            got += piece
    except SourceFault as fault:
        return bytes(got), fault
    return bytes(got), None


async def test_nothing_of_a_wrong_piece_is_passed_on() -> None:
    """FAULTS 41: told apart at the piece, not at the end of the file."""
    liar = Liar()
    liar.data = DATA[: PIECE + 7] + bytes([DATA[PIECE + 7] ^ 1]) + DATA[PIECE + 8 :]
    async with lying(liar) as source:
        got, fault = await read(source, Span(0, len(DATA)))
        assert got == DATA[:PIECE]
        assert isinstance(fault, Misbehaved)
        assert "a piece (1)" in str(fault)
        assert (await read(source, Span(2 * PIECE, len(DATA))))[0] == DATA[2 * PIECE :]


@pytest.mark.parametrize(
    ("start", "stop"), [(65_536, 3 * PIECE), (1, PIECE - 1), (PIECE - 1, PIECE + 1), (5, 3 * PIECE + 7)]
)
async def test_the_ends_of_pieces_come_as_they_are(start: int, stop: int) -> None:
    async with lying(Liar()) as source:
        assert await read(source, Span(start, stop)) == (DATA[start:stop], None)


@pytest.mark.parametrize("layer", [b"", bytes(128), bytes(96), bytes(160), bytes(1 << 22)])
async def test_a_tree_that_is_not_the_one_it_spoke_of(layer: bytes) -> None:
    """FAULTS 6: too short, too long, of another file: not used, and not read to its end."""
    liar = Liar()
    liar.layer = layer
    async with lying(liar) as source:
        got, fault = await read(source, Span(0, len(DATA)))
        assert (got, type(fault)) == (b"", Misbehaved)


async def test_without_a_root_the_file_decides_alone() -> None:
    liar = Liar()
    liar.state = BlobState(len(DATA))
    async with lying(liar) as source:
        assert await read(source, Span(0, len(DATA))) == (DATA, None)
        assert not any("/trees/" in request.path for request in liar.seen)


async def test_what_is_asked_names_the_asker_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    liar = Liar()
    async with lying(liar) as source:
        assert await read(source, Span(0, 9)) == (DATA[:9], None)
    for request in liar.seen:
        assert request.headers["Edgecdn-Protocol"] == "1"
        assert request.headers["Edgecdn-Agent"] == f"{'0' * 32}:8378"
        assert request.headers["Accept-Encoding"] == "identity"
        assert not {"Authorization", "Cookie", "Proxy-Authorization"} & set(request.headers)


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), Misbehaved),
        (lambda: web.Response(status=429, headers={"Retry-After": "3"}), Busy),
        (lambda: web.Response(status=404), Missing),
        (lambda: web.Response(status=500), Broken),
        (lambda: web.Response(status=426, body=encode_refusal()), Missing),
        (lambda: web.Response(status=426, body=b"[" * 100), Missing),
        (lambda: web.Response(body=b"[" * 100_000), Misbehaved),
        (lambda: web.Response(body=b'{"blobs":{"zz":{"size":1}}}'), Misbehaved),
        (lambda: web.Response(body=bytes(9 << 20)), Misbehaved),
        (lambda: web.Response(body=encode_have_answer({DIGEST: BlobState(1, data=b"xy")})), Misbehaved),
    ],
)  # fmt: skip
async def test_answers_to_have_that_are_none(response: Callable[[], web.Response], fault: type[SourceFault]) -> None:
    """FAULTS 8."""
    liar = Liar()

    async def have(_request: web.Request) -> web.StreamResponse:
        return response()

    liar.have = have
    async with lying(liar) as source:
        with pytest.raises(fault):
            await source.offer(manifest(entry()), [entry()])


async def test_small_files_are_checked_when_they_come() -> None:
    small = entry(b"{}")
    liar = Liar()

    async def have(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=encode_have_answer({small.digest: BlobState(2, data=b"[]")}))

    liar.have = have
    async with lying(liar) as source:
        with pytest.raises(Misbehaved, match=r"other bytes for a\.safetensors"):
            await source.offer(manifest(small), [small])


@pytest.mark.parametrize("state", [BlobState(len(DATA), complete=False), BlobState(len(DATA) - 1)])
async def test_what_is_not_whole_or_not_it_is_not_offered(state: BlobState) -> None:
    liar = Liar()
    liar.state = state
    async with lying(liar) as source:
        assert await source.offer(manifest(entry()), [entry()]) == {}


@pytest.mark.parametrize("length", [-1, 1])
async def test_a_body_of_another_length(length: int) -> None:
    """FAULTS 51."""
    liar = Liar()

    async def blob(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()  # chunked: it announces no length
        await response.prepare(request)
        await response.write(DATA[:-1] if length < 0 else DATA + b"x")
        return response

    liar.blob = blob
    async with lying(liar) as source:
        _, fault = await read(source, Span(0, len(DATA)))
        assert isinstance(fault, Broken if length < 0 else Misbehaved)


async def test_silence_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 16, 43."""
    monkeypatch.setattr(peer_module, "_SILENCE_S", 0.2)
    liar = Liar()

    async def blob(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
        await response.prepare(request)
        await response.write(DATA[:PIECE])
        while request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.01)
        return response

    liar.blob = blob
    async with lying(liar) as source:
        got, fault = await read(source, Span(0, len(DATA)))
        assert (got, str(fault)) == (DATA[:PIECE], "gave no byte for 0 s")


async def test_nobody_there() -> None:
    async with asking("http://127.0.0.1:1") as source:
        with pytest.raises(Broken, match="cannot be reached"):
            await source.offer(manifest(entry()), [entry()])


async def test_a_real_peer_that_is_asked_too_much_is_busy(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, Limits(request_burst=1, request_rate=0.5)) as lab,
        asking(f"http://{lab.address}") as source,
    ):
        assert await source.offer(manifest(entry()), [entry()]) == {}
        with pytest.raises(Busy) as caught:
            await source.offer(manifest(entry()), [entry()])
        assert caught.value.retry_after_s in (1, 2)
