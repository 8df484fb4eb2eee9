"""ModelScope itself, asked with what the caller sent, and left alone for a while after it did not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from yarl import URL

from edgecdn.manifest import FileEntry
from edgecdn.names import RepoId
from edgecdn.settings import Settings
from edgecdn.sources.answers import retry_after_s
from edgecdn.sources.faults import NoRanges, SourceFault
from edgecdn.sources.http import ByteClient, RememberingResolver
from edgecdn.sources.ranged import RangedOffer, read_ranged
from edgecdn.spans import Span
from edgecdn_agent.gateway.errors import NoAnswer
from edgecdn_agent.gateway.modelscope.callers import STRANGER, Caller
from edgecdn_agent.gateway.modelscope.envelope import is_success
from edgecdn_agent.gateway.modelscope.paths import file_target

__all__ = ["Answer", "Upstream"]

_ANSWER_S = 12.0
"""Clients give up a listing after 15 s."""

_DOWN_S = 5.0
"""After it did not answer it is not asked for so long: a download asks several times in a row."""

_MOST_BYTES = 64 << 20
"""Its listings are cut at 3000 files, some 2 MB."""

_SILENT = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Answer:
    """What it said. `found`: it is what was asked for, not a refusal."""

    status: int
    body: bytes
    content_type: str
    found: bool


class Upstream:
    """One configured ModelScope. Close it at the end."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.endpoint = settings.hub_modelscope.rstrip("/")
        self._offline = settings.offline
        self._clock = clock
        self._down_until = 0.0
        self._strangers = ByteClient()

    async def close(self) -> None:
        """Close the connections."""
        await self._strangers.close()

    async def ask(self, target: str, caller: Caller) -> Answer:
        """Its answer, good or bad; raises NoAnswer where it has none (silent, failing, busy, no ModelScope at all)."""
        try:
            async with asyncio.timeout(_ANSWER_S), self.open(target, caller) as response:
                body = await _read(response)
        except TimeoutError as error:
            raise self._down("takes too long") from error
        except SourceFault as fault:
            raise self._down(str(fault)) from fault
        if response.status >= 500 or response.status in _SILENT:
            wait_s = retry_after_s(response.headers, datetime.now(tz=UTC))
            raise NoAnswer(f"ModelScope fails (HTTP {response.status}).", wait_s)
        found = is_success(body) if response.status == 200 else False
        if found is None:
            raise NoAnswer("ModelScope's address answers something else (a login page of this network?).")
        return Answer(response.status, body, response.content_type, found)

    async def may_read(self, target: str, caller: Caller) -> Answer | None:
        """None when it gives the file to this caller, else its refusal; raises NoAnswer."""
        try:
            async with asyncio.timeout(_ANSWER_S), self.open(target, caller, "bytes=0-0") as response:
                if response.status in (200, 206, 416):  # 416: there is no first byte, the file is empty
                    return None
                body = await _read(response)
        except TimeoutError as error:
            raise self._down("takes too long") from error
        except SourceFault as fault:
            raise self._down(str(fault)) from fault
        if response.status >= 500 or response.status in _SILENT:
            raise NoAnswer(f"ModelScope fails (HTTP {response.status}).")
        return Answer(response.status, body, response.content_type, found=False)

    @asynccontextmanager
    async def open(self, target: str, caller: Caller, range_: str = "") -> AsyncIterator[aiohttp.ClientResponse]:
        """Its answer as it comes; redirects are followed here. Raises SourceFault, and NoAnswer when not asked."""
        self._refuse_when_silent()
        headers = {"Range": range_} if range_ else {}
        async with self._client(caller) as client, client.get(self._url(target), headers) as (response, _):
            yield response

    async def read(
        self, repo: RepoId, revision: str, entry: FileEntry, span: Span, caller: Caller
    ) -> AsyncGenerator[bytes, None]:
        """Bytes of a file, for this caller alone. Raises SourceFault, and NoAnswer when not asked."""
        self._refuse_when_silent()
        offer = RangedOffer(entry, None, self._url(file_target(repo, revision, entry.path)))
        async with self._client(caller) as client:
            with suppress(NoRanges):  # said before the first byte: what is not in its large storage comes whole
                async with aclosing(read_ranged(client, offer, span)) as pieces:
                    async for piece in pieces:
                        yield piece
            if offer.whole_only:
                async with aclosing(read_ranged(client, offer, span)) as pieces:
                    async for piece in pieces:
                        yield piece

    def _url(self, target: str) -> URL:
        return URL(self.endpoint + target, encoded=True)

    @asynccontextmanager
    async def _client(self, caller: Caller) -> AsyncIterator[ByteClient]:
        """Connections are shared by strangers only; what a caller sent is forgotten with the client."""
        if caller is STRANGER:
            yield self._strangers
            return
        client = ByteClient(caller.auth(self.endpoint), resolver=RememberingResolver())
        try:
            yield client
        finally:
            await client.close()

    def _refuse_when_silent(self) -> None:
        if self._offline:
            raise NoAnswer("ModelScope is not asked: HF_HUB_OFFLINE is set.")
        if self._clock() < self._down_until:
            raise NoAnswer("ModelScope did not answer a moment ago.")

    def _down(self, why: str) -> NoAnswer:
        self._down_until = self._clock() + _DOWN_S
        return NoAnswer(f"ModelScope cannot be asked: it {why}.")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _MOST_BYTES:
            raise NoAnswer("ModelScope answers with more than a listing can be.")
    return bytes(body)
