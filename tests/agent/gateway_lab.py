"""The gateway's metadata behind the real guard, on a real socket, with a real hub; bytes by a stand-in that relays.

async with gateway(tmp_path, hub) as gate:
    info = await gate.ask("GET", "/api/models/org/name")
    api = gate.client()              # the real client; `await gate.call(api.model_info, "org/name")`
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from huggingface_hub import HfApi
from yarl import URL

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.store import open_repo
from edgecdn.digest import DigestKind
from edgecdn.manifest import Manifest
from edgecdn.names import CommitId, RepoId, RepoType, Revision
from edgecdn.resolve import LabIndex
from edgecdn.settings import Settings, load_settings
from edgecdn_agent.control.guard import local_guard
from edgecdn_agent.deliver.delivery import Wanted
from edgecdn_agent.gateway.gate import Gate
from edgecdn_agent.gateway.routes import add_gateway
from edgecdn_agent.gateway.upstream import Relay
from edgecdn_agent.holdings.sharing import SharingRule
from tests.hub import TestHub

__all__ = ["Answer", "Clock", "Gateway", "gateway", "manifest_of", "put_in_cache", "repo_id"]

CALL_LIMIT_S = 40.0


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class RelayedBlobs:
    """Headers as the gateway gives them; the bytes are the hub's, unverified."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.wanted: list[Wanted] = []

    async def head(self, request: web.Request, wanted: Wanted) -> web.StreamResponse:
        self.wanted.append(wanted)
        return web.Response(headers=_headers(wanted))

    async def get(self, request: web.Request, wanted: Wanted) -> web.StreamResponse:
        self.wanted.append(wanted)
        answer = web.StreamResponse(headers=_headers(wanted))
        async with self.relay.open(wanted, None) as pieces:
            await answer.prepare(request)
            async for piece in pieces:
                await answer.write(piece)
        return answer


def _headers(wanted: Wanted) -> dict[str, str]:
    entry = wanted.entry
    linked = {"X-Linked-Etag": f'"{entry.digest}"', "X-Linked-Size": str(entry.size)}
    headers = {
        "X-Repo-Commit": wanted.manifest.commit.hex, "ETag": f'"{entry.digest}"',
        "Content-Length": str(entry.size), "Accept-Ranges": "bytes",
    }  # fmt: skip
    return headers | (linked if entry.digest.kind is DigestKind.SHA256 else {})


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class Gateway:
    url: str
    gate: Gate
    rule: SharingRule
    settings: Settings
    blobs: RelayedBlobs
    clock: Clock
    session: aiohttp.ClientSession

    async def ask(
        self, method: str, target: str, *, token: str | None = None, data: Any = None, **headers: str
    ) -> Answer:
        """One request, its target sent as it is. `Sec_Fetch_Site="x"` is a header."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["Authorization"] = f"Bearer {token}"
        url = URL(self.url + target, encoded=True)
        async with (
            asyncio.timeout(CALL_LIMIT_S),
            self.session.request(method, url, headers=sent, data=data, allow_redirects=False) as answer,
        ):
            found = Answer(answer.status, answer.headers, await answer.read())
        assert not [name for name in found.headers if name.lower().startswith("access-control-")]
        return found

    def client(self, token: str | None = None) -> HfApi:
        return HfApi(endpoint=self.url, token=token or False)

    @staticmethod
    async def call(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """A call of the real client, in a thread; what it lists, all of it."""

        def run() -> Any:
            found = function(*args, **named)
            return list(found) if hasattr(found, "__next__") else found

        async with asyncio.timeout(CALL_LIMIT_S):
            return await asyncio.to_thread(run)


@asynccontextmanager
async def gateway(
    tmp: Path, *hubs: TestHub | str, lab: LabIndex | None = None, accept_lab: bool = False, **environ: str
) -> AsyncIterator[Gateway]:
    """One that runs. `hubs` in order."""
    endpoints = ",".join(hub if isinstance(hub, str) else hub.url for hub in hubs)
    settings = load_settings({
        "EDGECDN_HOME": str(tmp / "home"), "EDGECDN_CACHE_DIR": str(tmp / "cache"), "EDGECDN_HUB_ENDPOINTS": endpoints,
        "HOME": str(tmp), **environ,
    })  # fmt: skip
    catalog = Catalog(settings.home)
    rule, clock = SharingRule(settings, catalog), Clock()
    await rule.load()
    gate = Gate(settings, rule, lab, accept_lab=accept_lab, clock=clock)
    blobs = RelayedBlobs(gate.relay)
    app = web.Application(middlewares=[local_guard("the-token")], client_max_size=1 << 20)
    app.router.add_get("/healthz", _empty)
    app.router.add_get("/edgecdn/v1/status", _empty)
    add_gateway(gate.parts(blobs))(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    running = asyncio.create_task(gate.run())
    try:
        await gate.ready.wait()
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield Gateway(url, gate, rule, settings, blobs, clock, session)
    finally:
        await runner.cleanup()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        catalog.close()


async def _empty(_request: web.Request) -> web.Response:
    return web.json_response({})


def put_in_cache(settings: Settings, manifest: Manifest, *branches: str) -> None:
    """The listing and refs of a commit, as a fetch leaves them."""
    with open_repo(settings.cache_dir, manifest.repo, create=True) as store:
        store.write_tree(manifest)
        for branch in branches:
            store.write_ref(Revision(branch), manifest.commit)


def repo_id(name: str, kind: str = "model") -> RepoId:
    return RepoId(RepoType(kind), name)


async def manifest_of(made: Gateway, name: str, commit: str, kind: str = "model", token: str | None = None) -> Manifest:
    """A commit's listing, asked through the gateway's own parts."""
    return await made.gate.listings.manifest(repo_id(name, kind), CommitId(commit), token, 20)
