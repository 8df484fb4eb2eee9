"""What the LAN server answers: one method a path. Who may ask, and how much, was decided before.

What is secret, what is unknown and what is no name at all get the very same answer, `not_found`.
"""

from __future__ import annotations

import asyncio
import os

from aiohttp import web

from edgecdn.digest import Digest
from edgecdn.errors import BadInput
from edgecdn.lan_wire import (
    AGENT_HEADER,
    INLINE_BYTES,
    MOST_INLINE_BYTES,
    BlobState,
    encode_have_answer,
    encode_hello,
    encode_ref,
    parse_asker,
    parse_have_query,
    parse_rotten,
)
from edgecdn.names import CommitId, RepoId, RepoType, Revision
from edgecdn.spans import Span
from edgecdn_agent.holdings.held_files import Holding
from edgecdn_agent.lan.guard import Guard, Limits, Refused
from edgecdn_agent.lan.parts import LanParts
from edgecdn_agent.lan.rechecks import Rechecks
from edgecdn_agent.lan.sender import BlobSender, ReadFailed, parse_range
from edgecdn_agent.lan.workers import Workers, open_by

__all__ = ["Routes", "host_of", "not_found"]

_THREADS = 4
_DISK_S = 10.0
"""A file that cannot be opened, or a small one read, within this is on a disk that hangs."""

_MOST_SPEED_BYTES = 256 << 20
_SPEED_TESTS = 4
"""At once, for one peer."""

_ZEROS = bytes(256 << 10)
_MANIFESTS = 8
"""Listings in memory at once, to whomever they are sent."""

_TURN_S = 10.0
"""How long one waits for its turn."""

_SLICE_BYTES = 256 << 10
_MOST_ROOTS = 200_000
_OCTETS = "application/octet-stream"
_JSON = "application/json"


def not_found() -> web.Response:
    """The one answer for everything that is not given."""
    return web.Response(status=404, text="not found\n")


def host_of(request: web.Request) -> str:
    """The asker's address; empty when it is gone already."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if peer else ""


class Routes:
    """The answers."""

    def __init__(self, parts: LanParts, guard: Guard, rechecks: Rechecks, limits: Limits) -> None:
        self._parts = parts
        self._guard = guard
        self._rechecks = rechecks
        self._limits = limits
        self.sender = BlobSender(parts.upload, limits.stall_s)
        self._disk = Workers(_THREADS, "edgecdn-open")
        self._manifests = asyncio.Semaphore(_MANIFESTS)
        self._roots: dict[Digest, str] = {}

    def all(self) -> list[web.RouteDef]:
        """Methods and paths below the base."""
        return [
            web.get("/hello", self._hello, allow_head=False),
            web.post("/have", self._have),
            web.post("/small", self._have),
            web.get("/trees/{digest}", self._tree),
            web.get("/blobs/{digest}", self._blob),
            web.get("/manifests/{type}/{name:.+}/{commit}", self._manifest),
            web.get("/refs/{type}/{name:.+}", self._ref),
            web.post("/rotten", self._rotten),
            web.get("/speed", self._speed, allow_head=False),
        ]

    def close(self) -> None:
        """End the threads."""
        self.sender.close()
        self._disk.close()

    async def _hello(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(body=encode_hello(self._parts.hello()), content_type=_JSON)

    async def _have(self, request: web.Request) -> web.StreamResponse:
        digests, inline = parse_have_query(await self._body(request))
        self._guard.digests(host_of(request), len(digests))
        downloading = self._parts.downloading()
        states = {digest: downloading[digest] for digest in digests if digest in downloading}
        held = [holding for digest in digests if (holding := self._parts.shelf.shared(digest)) is not None]
        for holding in held:
            states[holding.digest] = BlobState(holding.size, root=await self._root(holding))
        chosen = _small(held, min(MOST_INLINE_BYTES, self._guard.inline_left(host_of(request)))) if inline else []
        if not chosen:
            return web.Response(body=encode_have_answer(states), content_type=_JSON)
        host = host_of(request)
        with self._guard.inline(host, sum(holding.size for holding in chosen)):
            small = await self._inline(host, chosen)
            for digest in small:
                self._rechecks.given(host, digest)
            asker = parse_asker(request.headers.get(AGENT_HEADER))
            self._parts.sent(host, asker, sum(state.size for state in small.values()))
            return await self._write(request, encode_have_answer(states | small))

    async def _inline(self, host: str, chosen: list[Holding]) -> dict[Digest, BlobState]:
        """The chosen ones with their bytes."""
        with self._guard.send(host):
            read = await self._disk.run(lambda: [self._read_small(holding) for holding in chosen], _DISK_S)
        pairs = zip(chosen, read, strict=True)
        return {holding.digest: BlobState(holding.size, data=data) for holding, data in pairs if data is not None}

    def _read_small(self, holding: Holding) -> bytes | None:
        try:
            fd = self._parts.shelf.open(holding)
        except FileNotFoundError:
            return None
        try:
            data = os.pread(fd, holding.size, 0)
        except OSError:
            data = None
        finally:
            os.close(fd)
        if data is None or len(data) != holding.size:
            self._parts.shelf.withdraw(holding.digest)
            return None
        return data

    async def _root(self, holding: Holding) -> str:
        """The root of its piece tree, which never changes; for small files nobody needs one."""
        if holding.size <= INLINE_BYTES:
            return ""
        known = self._roots.get(holding.digest)
        if known is None:
            tree = await self._parts.shelf.tree(holding.digest)
            if tree is None:
                return ""
            if len(self._roots) >= _MOST_ROOTS:
                self._roots.clear()
            known = self._roots[holding.digest] = (await asyncio.to_thread(lambda: tree.root)).hex()
        return known

    async def _tree(self, request: web.Request) -> web.StreamResponse:
        holding = self._shared(request)
        tree = None if holding is None else await self._parts.shelf.tree(holding.digest)
        if holding is None or tree is None:
            return not_found()
        self._rechecks.given(host_of(request), holding.digest)
        await self._parts.tree_asked(holding.digest)
        return web.Response(body=tree.layer, content_type=_OCTETS, headers=_etag(holding))

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        holding = self._shared(request)
        if holding is None:
            return not_found()
        etag = _etag(holding)
        try:
            ranged = request.headers.get("If-Range", etag["ETag"]) == etag["ETag"]
            span = parse_range(request.headers.get("Range"), holding.size) if ranged else None
        except BadInput:
            return web.Response(status=416, headers={**etag, "Content-Range": f"bytes */{holding.size}"})
        with self._guard.send(host_of(request)):
            try:
                fd = await open_by(self._disk, lambda: self._parts.shelf.open(holding), _DISK_S)
            except (FileNotFoundError, TimeoutError):
                return not_found()
            try:
                return await self._send(request, holding, fd, span)
            finally:
                os.close(fd)

    async def _send(self, request: web.Request, holding: Holding, fd: int, span: Span | None) -> web.StreamResponse:
        if not holding.is_file(os.fstat(fd)):
            self._parts.shelf.withdraw(holding.digest)
            return not_found()
        part = span or Span(0, holding.size)
        response = web.StreamResponse(status=206 if span else 200, headers=_etag(holding))
        response.content_type, response.content_length = _OCTETS, len(part)
        response.headers["Accept-Ranges"] = "bytes"
        if span:
            response.headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{holding.size}"
        writer, transport = await response.prepare(request), request.transport
        if writer is None or transport is None or request.method == "HEAD" or not len(part):
            return response
        host, asker = host_of(request), parse_asker(request.headers.get(AGENT_HEADER))
        self._rechecks.given(host, holding.digest)
        count = lambda n: self._parts.sent(host, asker, n)  # noqa: E731 - two names bound to a callback
        try:
            await self.sender.send(writer, transport, fd, part, count)
        except ReadFailed:
            self._parts.shelf.withdraw(holding.digest)
            raise
        return response

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        repo = _repo(request.match_info["type"], request.match_info["name"])
        commit = CommitId(request.match_info["commit"])
        with self._guard.manifest(host_of(request)):
            await self._turn()
            try:
                tree = await self._parts.manifest(repo, commit)
                return not_found() if tree is None else await self._write(request, tree)
            finally:
                self._manifests.release()

    async def _turn(self) -> None:
        """Wait until one listing more may be in memory."""
        try:
            async with asyncio.timeout(_TURN_S):
                await self._manifests.acquire()
        except TimeoutError as error:
            raise Refused from error

    async def _write(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """An answer that may be large, written to its end here: so it is known how long it takes memory."""
        response = web.StreamResponse()
        response.content_type, response.content_length = _JSON, len(body)
        await response.prepare(request)
        left = memoryview(b"" if request.method == "HEAD" else body)
        while left:
            async with asyncio.timeout(self._limits.stall_s):
                await response.write(left[:_SLICE_BYTES])
            left = left[_SLICE_BYTES:]
        return response

    async def _ref(self, request: web.Request) -> web.StreamResponse:
        parts = request.match_info["name"].split("/")
        owned = 2 if len(parts) > 2 else 1  # an old repo without an owner: NAME/REVISION
        repo = _repo(request.match_info["type"], "/".join(parts[:owned]))
        commit = await self._parts.ref(repo, Revision("/".join(parts[owned:])))
        return not_found() if commit is None else web.Response(body=encode_ref(commit), content_type=_JSON)

    async def _rotten(self, request: web.Request) -> web.StreamResponse:
        digest, _ = parse_rotten(await self._body(request))
        if self._parts.shelf.shared(digest) is not None:
            self._rechecks.ask(host_of(request), digest)
        return web.Response(status=204)

    async def _speed(self, request: web.Request) -> web.StreamResponse:
        text = request.query.get("bytes", "")
        left = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0
        if not 0 < left <= _MOST_SPEED_BYTES:
            raise BadInput(f"bytes={text[:20]} is not a number from 1 to {_MOST_SPEED_BYTES}")
        with self._guard.few(host_of(request), "speed", _SPEED_TESTS):
            response = web.StreamResponse()
            response.content_type, response.content_length = _OCTETS, left
            await response.prepare(request)
            while left:
                piece = _ZEROS[: min(left, self._parts.upload.slice_bytes)]
                await self._parts.upload.take(len(piece))
                async with asyncio.timeout(self._limits.stall_s):
                    await response.write(piece)
                left -= len(piece)
            return response

    async def _body(self, request: web.Request) -> bytes:
        """The whole body, which aiohttp bounds (413)."""
        async with asyncio.timeout(self._limits.body_s):
            return await request.read()

    def _shared(self, request: web.Request) -> Holding | None:
        try:
            return self._parts.shelf.shared(Digest.parse(request.match_info["digest"]))
        except BadInput:
            return None


def _small(held: list[Holding], left: int) -> list[Holding]:
    """Those that travel within an answer, as many as fit into what is left."""
    chosen: list[Holding] = []
    for holding in held:
        if holding.size <= min(INLINE_BYTES, left):
            chosen.append(holding)
            left -= holding.size
    return chosen


def _etag(holding: Holding) -> dict[str, str]:
    return {"ETag": f'"{holding.digest.hex}"'}


def _repo(type_: str, name: str) -> RepoId:
    try:
        return RepoId(RepoType(type_), name)
    except ValueError as error:
        raise BadInput(f"{type_[:20]} {name[:120]} is no repo") from error
