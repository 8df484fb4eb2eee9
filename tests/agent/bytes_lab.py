"""The gateway's bytes on loopback: a real cache, deliveries that do what a test says, an origin that counts.

async with bytes_lab(tmp_path) as made:
    wanted = made.file(data)                 # of a commit; not here yet
    delivery = made.deliveries.of(wanted)    # what whoever asks for it joins
    delivery.put(0, data[:1000])             # bytes come ...
    delivery.prove()                         # ... and are proven
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import EdgecdnError
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId
from edgecdn.repopath import RepoPath
from edgecdn.sources.faults import Broken, SourceFault
from edgecdn.spans import Span, give_back
from edgecdn_agent.deliver.delivery import Delivery, DeliveryState, Wanted
from edgecdn_agent.gateway.serving import BlobServer
from tests.agent.cache_machine import PUBLIC, CacheMachine, git_sha1

COMMIT = CommitId("c" * 40)


class ToldDelivery(Delivery):
    """Does what it is told; its file is real."""

    def __init__(self, wanted: Wanted, path: Path) -> None:
        self.entry = wanted.entry
        self._state = DeliveryState.ARRIVING
        self._error = None
        self._mark = 0
        self.wanted_by = 0
        self.opened = 0
        self._have: list[Span] = []
        self.path = path
        self._change = asyncio.Event()

    def put(self, start: int, data: bytes) -> None:
        """Bytes come."""
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.seek(start)
            file.write(data)
        give_back(self._have, Span(start, start + len(data)))
        self.tell()

    def take_back(self) -> None:
        """All of them were wrong."""
        self._have.clear()
        self._mark += 1
        self.tell()

    def prove(self) -> None:
        """All bytes are there, and right."""
        self._state = DeliveryState.HERE
        self.tell()

    def fail(self, error: EdgecdnError) -> None:
        """It ends without the file."""
        self._state, self._error = DeliveryState.FAILED, error
        self.tell()

    def tell(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    @property
    def mark(self) -> int:
        return self._mark

    @property
    def done_bytes(self) -> int:
        return sum(map(len, self._have))

    def reach(self, start: int) -> int:
        return next((span.stop for span in self._have if span.start <= start < span.stop), start)

    async def changed(self) -> None:
        await self._change.wait()

    def open(self) -> int:
        self.opened += 1
        return os.open(self.path, os.O_RDONLY)


@dataclass
class ToldDeliveries:
    """One for each file that is asked for; `refuses` is raised instead, `broken` are remembered failures."""

    folder: Path
    known: dict[Digest, ToldDelivery] = field(default_factory=dict)
    broken: dict[Digest, EdgecdnError] = field(default_factory=dict)
    refuses: EdgecdnError | None = None
    made: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def of(self, wanted: Wanted) -> ToldDelivery:
        digest = wanted.entry.digest
        if digest not in self.known:
            self.made += 1
            self.known[digest] = ToldDelivery(wanted, self.folder / f"{self.made}.partial")
        return self.known[digest]

    def renew(self, wanted: Wanted) -> ToldDelivery:
        """Another one, as after the last one who wanted it left for long."""
        self.known.pop(wanted.entry.digest, None)
        return self.of(wanted)

    def get(self, digest: Digest) -> Delivery | None:
        return self.known.get(digest)

    def failed(self, digest: Digest) -> EdgecdnError | None:
        return self.broken.get(digest)

    @asynccontextmanager
    async def want(self, wanted: Wanted) -> AsyncIterator[Delivery]:
        if self.refuses is not None:
            raise self.refuses
        delivery = self.of(wanted)
        await self._count(delivery, 1)
        try:
            yield delivery
        finally:
            await self._count(delivery, -1)

    async def wanted_by(self, wanted: Wanted, count: int) -> None:
        """Wait until so many want it."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: self.of(wanted).wanted_by == count)

    async def _count(self, delivery: ToldDelivery, by: int) -> None:
        delivery.wanted_by += by
        async with self.changed:
            self.changed.notify_all()


@dataclass
class ToldOrigin:
    """Gives from `files`, and notes what it was asked; `fault` after `after` bytes."""

    files: dict[Digest, bytes] = field(default_factory=dict)
    asked: list[Span] = field(default_factory=list)
    fault: SourceFault | None = None
    after: int = 0
    chunk: int = 64 << 10

    @asynccontextmanager
    async def open(self, wanted: Wanted, span: Span | None) -> AsyncIterator[AsyncIterator[bytes]]:
        part = span or Span(0, wanted.entry.size)
        self.asked.append(part)
        if self.fault is not None and not self.after:
            raise self.fault
        yield self._chunks(self.files.get(wanted.entry.digest), part)

    async def _chunks(self, data: bytes | None, part: Span) -> AsyncIterator[bytes]:
        if data is None:
            raise Broken("does not have it")
        given = 0
        for at in range(part.start, part.stop, self.chunk):
            if self.fault is not None and given >= self.after:
                raise self.fault
            chunk = data[at : min(part.stop, at + self.chunk)]
            given += len(chunk)
            yield chunk
            await asyncio.sleep(0)


@dataclass
class BytesLab:
    machine: CacheMachine
    deliveries: ToldDeliveries
    origin: ToldOrigin
    files: dict[str, Wanted] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)
    port: int = 0
    session: aiohttp.ClientSession | None = None

    def file(self, data: bytes, *, digest: Digest | None = None, small: bool = False) -> Wanted:
        """A file of a commit that is not here; the origin has it."""
        found = digest or (git_sha1(data) if small else Digest.of(DigestKind.SHA256, data))
        oid = found if found.kind is DigestKind.GIT_SHA1 else git_sha1(b"pointer")
        entry = FileEntry(RepoPath.parse("model.safetensors"), len(data), found, oid)
        wanted = Wanted(Manifest.of(PUBLIC, COMMIT, [entry]), entry, "http://hub/org/public")
        self.files[found.hex] = wanted
        self.data[found.hex] = data
        self.origin.files[found] = data
        return wanted

    async def held(self, data: bytes, *, small: bool = False) -> Wanted:
        """A file that is in the cache, verified."""
        wanted = self.file(data, small=small)
        self.machine.put(data, digest=wanted.entry.digest)
        await self.machine.holdings.rescan()
        return wanted

    def url(self, wanted: Wanted) -> str:
        return f"http://127.0.0.1:{self.port}/{wanted.entry.digest}"

    @asynccontextmanager
    async def asking(
        self, wanted: Wanted, range_: str | None = None, *, method: str = "GET", **headers: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request whose answer is read by the test."""
        assert self.session is not None
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if range_ is not None:
            sent["Range"] = range_
        async with asyncio.timeout(30), self.session.request(method, self.url(wanted), headers=sent) as answer:
            yield answer

    async def ask(
        self, wanted: Wanted, range_: str | None = None, *, method: str = "GET", **headers: str
    ) -> tuple[int, CIMultiDict[str], bytes]:
        """Status, headers and the whole body."""
        async with self.asking(wanted, range_, method=method, **headers) as answer:
            return answer.status, CIMultiDict(answer.headers), await answer.read()


@asynccontextmanager
async def bytes_lab(base: Path, **how: Any) -> AsyncIterator[BytesLab]:
    """It answers until the end of the block; `how` is the server's."""
    partials = base / "partials"
    partials.mkdir(parents=True)
    machine = CacheMachine(base)
    made = BytesLab(machine, ToldDeliveries(partials), ToldOrigin())
    server = BlobServer(machine.holdings, made.deliveries, made.origin, **how)

    async def answer(request: web.Request) -> web.StreamResponse:
        wanted = made.files[request.match_info["digest"]]
        return await (server.head if request.method == "HEAD" else server.get)(request, wanted)

    app = web.Application()
    app.router.add_get("/{digest}", answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as made.session:
            yield made
    finally:
        await runner.cleanup()
        server.close()
        machine.catalog.close()


async def until_gone(answer: aiohttp.ClientResponse) -> bytes:
    """All that comes before the connection is cut; it must be cut."""
    got = bytearray()
    try:
        async for chunk in answer.content.iter_any():
            got += chunk
    except aiohttp.ClientError:
        return bytes(got)
    raise AssertionError("it came to its end")
