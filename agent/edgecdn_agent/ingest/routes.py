"""What an agent answers to the other members of an ingest. An extension of the LAN server.

What is not ingested here, may not be shared, is not held or is no name at all gets the very same answer.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from typing import Protocol

from aiohttp import web

from edgecdn.digest import Digest
from edgecdn.errors import BadInput
from edgecdn.lan_wire import AGENT_HEADER, Asker, parse_asker
from edgecdn.spans import Span
from edgecdn_agent.ingest.telling import Teller, Tempo
from edgecdn_agent.ingest.wire import LeaseAnswer, LeaseAsk, Told, encode_answer, parse_ask, parse_back
from edgecdn_agent.ingest.world import UnitMap
from edgecdn_agent.lan.guard import Refused
from edgecdn_agent.lan.parts import Tools
from edgecdn_agent.lan.routes import host_of, not_found

__all__ = ["Book", "IngestRoutes", "Shared"]

_SLICE_BYTES = 256 << 10
"""Of a long line: a reader that takes so much within the time for a stall does read."""

_WHOLE_BYTES = 1 << 20
"""Who takes so much has not asked for nothing."""

_JSON = "application/json"


class Shared(Protocol):
    """One blob that is ingested here, and may be shared. `Session` is one."""

    @property
    def cut(self) -> UnitMap: ...

    def first(self) -> Told:
        """All there is to say now."""

    def subscribe(self, callback: Callable[[Told], None]) -> Callable[[], None]:
        """Call `callback` with each change as it happens; returns what ends that. An empty one: see to it again."""

    def heard_from(self, member: str, host: str, port: int) -> None:
        """A member listens, so it takes part; where it says to be reached. Raises BadInput to refuse it."""

    def ask(self, member: str, host: str, ask: LeaseAsk) -> LeaseAnswer:
        """A member asks for a run, from this address."""

    def give_back(self, member: str, host: str, start: int, stop: int) -> None:
        """A member will not read a run to its end."""

    def open(self, unit: int) -> int | None:
        """A descriptor of the file that the unit is in, at its place; the caller closes it. None: not held."""


class Book(Protocol):
    """All that is ingested here."""

    def get(self, digest: Digest) -> Shared | None:
        """One of them; None too where it may not be shared."""


class IngestRoutes:
    """The answers. Each counts with the guard what it costs."""

    def __init__(self, book: Book, tempo: Tempo | None = None, gives: int = 64) -> None:
        """`gives`: units of one blob given at a time; others are told to come again."""
        self._book = book
        self._gives = gives
        self._giving: Counter[tuple[Digest, str]] = Counter()
        self._tempo = tempo or Tempo()
        self._tools: Tools | None = None
        self._tellers: dict[Digest, tuple[Shared, Teller]] = {}

    def routes(self, tools: Tools) -> list[web.RouteDef]:
        """Methods and paths below the base, from now on until `close`."""
        self._tools = tools
        return [
            web.get("/ingest/{digest}", self._stream, allow_head=False),
            web.post("/ingest/{digest}/lease", self._lease),
            web.post("/ingest/{digest}/lease/back", self._back),
            web.get("/ingest/{digest}/units/{unit:[0-9]{1,6}}", self._unit, allow_head=False),
        ]

    def close(self) -> None:
        """End all streams, in order."""
        self._tools = None
        for _, teller in self._tellers.values():
            teller.end()
        self._tellers.clear()

    @property
    def _open(self) -> Tools:
        """What is lent while the server serves."""
        if self._tools is None:
            raise ConnectionError("the server closes")
        return self._tools

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """All that changes, until the asker leaves or the ingest is over."""
        tools, host = self._open, host_of(request)
        with tools.guard.stream(host), ExitStack() as first_line:
            first_line.enter_context(tools.guard.first_line(host))
            digest, shared = self._shared(request)
            if digest is None or shared is None:
                return not_found()
            asker = _asker(request)
            shared.heard_from(asker.id, host, asker.lan_port)
            response = web.StreamResponse()
            response.content_type = "application/x-ndjson"
            await response.prepare(request)
            if self._tools is not tools:
                return response  # the server closes
            teller = self._teller(digest, shared)
            reader = teller.join()
            try:
                with suppress(ConnectionError):
                    while lines := await reader.take():
                        await _write(response, lines, tools.limits.stall_s)
                        first_line.close()
            finally:
                teller.leave(reader)
                if not teller.is_heard and self._tellers.get(digest, (None, None))[1] is teller:
                    del self._tellers[digest]
            return response

    async def _lease(self, request: web.Request) -> web.StreamResponse:
        with self._open.guard.request(host_of(request)):
            _, shared = self._shared(request)
            if shared is None:
                return not_found()
            asker = _asker(request)
            answer = shared.ask(asker.id, host_of(request), parse_ask(await self._body(request)))
            return web.Response(body=encode_answer(answer), content_type=_JSON)

    async def _back(self, request: web.Request) -> web.StreamResponse:
        with self._open.guard.request(host_of(request)):
            _, shared = self._shared(request)
            if shared is None:
                return not_found()
            asker = _asker(request)
            back = parse_back(await self._body(request))
            shared.give_back(asker.id, host_of(request), back.start, back.stop)
            return web.Response(status=204)

    async def _unit(self, request: web.Request) -> web.StreamResponse:
        guard, host = self._open.guard, host_of(request)
        guard.spend(host)
        digest, shared = self._shared(request)
        unit = int(request.match_info["unit"])
        if digest is None or shared is None or unit >= shared.cut.count:
            return not_found()
        with self._one_more(digest, host):
            return await self._give(request, shared, unit)

    @contextmanager
    def _one_more(self, digest: Digest, host: str) -> Iterator[None]:
        """Count a unit that is given. Raises Refused: half of all is for one address, but for our own machine's."""
        whole = (digest, "")
        counted = [whole] if ip_address(host).is_loopback else [whole, (digest, host)]
        for key in counted:
            if self._giving[key] >= (self._gives if key == whole else max(1, self._gives // 2)):
                raise Refused
        self._giving.update(counted)
        try:
            yield
        finally:
            self._giving.subtract(counted)
            for key in counted:
                if not self._giving[key]:
                    del self._giving[key]

    async def _give(self, request: web.Request, shared: Shared, unit: int) -> web.StreamResponse:
        guard, host = self._open.guard, host_of(request)
        with guard.send(host):
            fd = shared.open(unit)
            if fd is None:
                return not_found()
            try:
                response = await self._send(request, fd, shared.cut.span(unit))
            finally:
                os.close(fd)
        guard.refund(host, min(1.0, len(shared.cut.span(unit)) / _WHOLE_BYTES))
        return response

    async def _send(self, request: web.Request, fd: int, span: Span) -> web.StreamResponse:
        tools, host, asker = self._open, host_of(request), parse_asker(request.headers.get(AGENT_HEADER))
        response = web.StreamResponse()
        response.content_type, response.content_length = "application/octet-stream", len(span)
        writer, transport = await response.prepare(request), request.transport
        if writer is None or transport is None:
            return response
        await tools.sender.send(writer, transport, fd, span, lambda count: tools.sent(host, asker, count))
        return response

    async def _body(self, request: web.Request) -> bytes:
        """The whole body, which aiohttp bounds (413)."""
        async with asyncio.timeout(self._open.limits.body_s):
            return await request.read()

    def _shared(self, request: web.Request) -> tuple[Digest | None, Shared | None]:
        try:
            digest = Digest.parse(request.match_info["digest"])
        except BadInput:
            return None, None
        return digest, self._book.get(digest)

    def _teller(self, digest: Digest, shared: Shared) -> Teller:
        """The one for all who listen to it; a new one where the blob is ingested anew."""
        known, teller = self._tellers.get(digest, (None, None))
        if teller is None or known is not shared:
            if teller is not None:
                teller.end()
            teller = Teller(shared, lambda: self._book.get(digest) is shared, self._tempo)
            self._tellers[digest] = shared, teller
        return teller


def _asker(request: web.Request) -> Asker:
    """Who asks. Raises BadInput where it does not say."""
    asker = parse_asker(request.headers.get(AGENT_HEADER))
    if asker is None:
        raise BadInput(f"a member says who it is: {AGENT_HEADER}")
    return asker


async def _write(response: web.StreamResponse, lines: bytes, stall_s: float) -> None:
    left = memoryview(lines)
    while left:
        async with asyncio.timeout(stall_s):
            await response.write(left[:_SLICE_BYTES])
        left = left[_SLICE_BYTES:]
