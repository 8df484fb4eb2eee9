"""The ModelScope gateway in this process, over a real cache; files are brought by the real pipeline, whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from edgecdn.cache.catalog import Catalog
from edgecdn.local_fetch import FetchParts, open_pipeline
from edgecdn.names import RepoId, Revision
from edgecdn.pipeline import Prepared
from edgecdn.resolve import Resolved
from edgecdn.settings import Settings, load_settings
from edgecdn.sources.faults import Broken
from edgecdn.spans import Span
from edgecdn_agent.deliver.delivery import Wanted
from edgecdn_agent.gateway.modelscope import ModelScopeGate
from edgecdn_agent.gateway.modelscope.relay import ModelScopeRelay
from edgecdn_agent.gateway.modelscope.upstream import Upstream
from edgecdn_agent.holdings.shelf import Holdings
from tests.faults.machine import Machine

__all__ = ["Gateway", "gateway"]


class NoHubs:
    """Where a part of a Hugging Face file would come from."""

    @asynccontextmanager
    async def open(self, wanted: Wanted, span: Span | None) -> AsyncIterator[AsyncIterator[bytes]]:
        raise Broken("is no part of this test")
        yield


@dataclass
class WholeFiles:
    """Gives files: those that are not held are brought first; parts of those are relayed."""

    settings: Settings
    holdings: Holdings
    relay: ModelScopeRelay
    brought: list[Wanted] = field(default_factory=list)
    relayed: list[Span] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)

    async def head(self, request: web.Request, wanted: Wanted) -> web.StreamResponse:
        return web.Response(headers={"Content-Length": str(wanted.entry.size), "ETag": f'"{wanted.entry.digest.hex}"'})

    async def get(self, request: web.Request, wanted: Wanted) -> web.StreamResponse:
        range_ = request.headers.get("Range")
        self.ranges.append(range_)
        if self.holdings.get(wanted.entry.digest) is None:
            first, _, last = (range_ or "").removeprefix("bytes=").partition("-")
            if last and (int(first) or int(last) < wanted.entry.size - 1):
                return await self._part(wanted, Span(int(first), int(last) + 1))
            await self._bring(wanted)
        holding = self.holdings.get(wanted.entry.digest)
        assert holding is not None
        return web.FileResponse(holding.path)

    async def _part(self, wanted: Wanted, span: Span) -> web.Response:
        self.relayed.append(span)
        async with self.relay.open(wanted, span) as pieces:
            body = b"".join([piece async for piece in pieces])
        told = f"bytes {span.start}-{span.stop - 1}/{wanted.entry.size}"
        return web.Response(status=206, body=body, headers={"Content-Range": told})

    async def _bring(self, wanted: Wanted) -> None:
        self.brought.append(wanted)
        async with open_pipeline(self.settings, FetchParts(hub=wanted.hub)) as pipeline:
            manifest = wanted.manifest
            resolved = Resolved(manifest, Revision(manifest.commit.hex), None, wanted.page)
            await pipeline.bring(Prepared(resolved, (wanted.entry,)))
        await self.holdings.rescan(wanted.manifest.repo)


@dataclass
class Gateway:
    """A running one. `public`: what the sharing rule knows to be; `asked` moves with every request."""

    url: str
    files: WholeFiles
    holdings: Holdings
    upstream: Upstream
    public: set[RepoId]
    session: aiohttp.ClientSession

    async def ask(
        self, path: str, *, method: str = "GET", token: str = "", **more: Any
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """One request; `token` goes as the SDK sends it."""
        headers = dict(more.pop("headers", {}))
        if token:
            headers |= {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
        async with self.session.request(method, self.url + path, headers=headers, **more) as answer:
            return answer.status, await answer.read(), answer.headers.copy()

    async def data(self, path: str, *, token: str = "") -> Any:
        """The `Data` of an answer that must be a good one."""
        status, body, _ = await self.ask(path, token=token)
        assert status == 200, body
        return json.loads(body)["Data"]

    async def file(
        self, repo: str, path: str, *, token: str = "", revision: str = "master", kind: str = "models", **headers: str
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """A file's bytes."""
        query = f"/api/v1/{kind}/{repo}/repo?Revision={revision}&FilePath={path}"
        return await self.ask(query, token=token, headers=headers)

    def silent_again(self) -> None:
        """ModelScope is asked again at once, however short ago it did not answer."""
        self.upstream._down_until = 0.0


@asynccontextmanager
async def gateway(
    machine: Machine, *hubs: Any, modelscope: str, offline: str = "", **settings: str
) -> AsyncIterator[Gateway]:
    """Serve on loopback until the end of the block."""
    environ = machine.environment(*hubs, hub_modelscope=modelscope, **settings) | {"HF_HUB_OFFLINE": offline}
    loaded = load_settings(environ)
    catalog, public = Catalog(loaded.home), set[RepoId]()
    holdings = Holdings(loaded, catalog, public.__contains__)
    await holdings.rescan()
    gate = ModelScopeGate(loaded, holdings, public.__contains__, NoHubs())
    files = WholeFiles(loaded, holdings, gate.relay)
    app = web.Application()
    gate.extension(files)(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30), auto_decompress=False) as session:
            host, port = runner.addresses[0][:2]
            yield Gateway(f"http://{host}:{port}", files, holdings, gate.upstream, public, session)
    finally:
        await runner.cleanup()
        await gate.close()
        await asyncio.to_thread(catalog.close)
