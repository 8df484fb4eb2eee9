"""A stand-in for the agent: its home, its ensure, its gateway, and every way in which an agent can be of no use.

It speaks what the hook expects of an agent, so that faults can be told apart; real agents are in `tests/agent`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tests.hub import HubFile, TestHub
from tests.hub.content import read_range

TOKEN = "t" * 40
_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}


class StandIn:
    """`asked`: what came, as `METHOD path`; `ensured`: the messages. `mode` is what it does with all that:

    ok · silent (accepts, never answers) · broken (500) · old (knows no ensure) · bad (integrity) · full (no space) ·
    pass · late (a while until placed) · later (stops) · cut (ends bodies early) · gone (the connection is closed).
    """

    def __init__(self, hub: TestHub, home: Path, mode: str = "ok") -> None:
        self.hub, self.home, self.mode = hub, home, mode
        self.asked: list[str] = []
        self.ensured: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.late_polls = 6
        self.shown: dict[str, Any] = {}
        self.address = ""
        self._lock = -1

    def announce(self, **more: Any) -> None:
        """Be there for whoever looks into the home."""
        self.home.mkdir(parents=True, exist_ok=True)
        if self._lock < 0:
            self._lock = os.open(self.home / "agent.lock", os.O_RDWR | os.O_CREAT)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        run = {"pid": os.getpid(), "version": "0", "agent_id": "a", "listeners": {"local": self.address}}
        run |= {"started_at": 0.0, "cache_dir": "", "hub_endpoints": [self.hub.url], **more}
        (self.home / "run.json").write_text(json.dumps(run))
        (self.home / "api-token").write_text(TOKEN)

    def vanish(self) -> None:
        """As killed: what it left is still there, the lock is free."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def gets(self) -> list[str]:
        """The downloads through the socket."""
        return [line for line in self.asked if line.startswith("GET") and "/resolve/" in line]

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Everything."""
        self.asked.append(f"{request.method} {request.raw_path}")
        if self.mode == "silent":
            await asyncio.sleep(60)
        if self.mode == "gone":
            assert request.transport is not None
            request.transport.abort()
        if self.mode == "broken":
            return web.Response(status=500, text="bug")
        if request.path == "/healthz":
            return web.json_response({})
        if self.mode == "old":
            return web.json_response({}, status=404 if "ensure" in request.path else 401)
        if request.path == "/edgecdn/v1/ensure":
            return await self._ensure(request)
        if "/resolve/" in request.path:
            return await self._file(request)
        return await self._relay(request)

    async def _ensure(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        message = await request.json()
        self.ensured.append(message)
        if self.mode == "bad":
            told = {"state": "failed", "integrity": True, "error": "x is wrong.", "remedy": "Do this."}
            return web.json_response(told)
        if self.mode == "full":
            told = {"state": "failed", "error": "Not enough space in /x.", "remedy": "Free some."}
            return web.json_response(told)
        if self.mode in ("pass", "later"):
            return web.json_response({"state": self.mode})
        if not message["path"]:
            return web.json_response({"state": "placed" if self._place_all(message) else "absent"})
        file, _ = self._find(message["type"], message["repo"], message["revision"], message["path"])
        if file is None:
            return web.json_response({"state": "absent"})
        if self.mode == "late" and self.late_polls:
            self.late_polls -= 1
            return web.json_response({"state": "coming", "done_bytes": max(0, 20 - self.late_polls), "total_bytes": 20})
        self._place(message, file)
        return web.json_response({"state": "placed", "done_bytes": file.size, "total_bytes": file.size})

    def _folder(self, message: dict[str, Any]) -> Path:
        name = message.get("stored_as") or message["repo"]
        return Path(message["cache_dir"]) / "--".join([message["type"] + "s", *name.split("/")])

    def _place(self, message: dict[str, Any], file: HubFile) -> str:
        blob = self._folder(message) / "blobs" / file.etag
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(read_range(file.source, 0, file.size))
        return file.etag

    def _place_all(self, message: dict[str, Any]) -> bool:
        repo = self.hub.state.repos.get((message["type"], message["repo"]))
        commit = repo and repo.resolve(message["revision"])
        if not commit:
            return False
        folder = self._folder(message)
        for path, file in commit.files.items():
            link = folder / "snapshots" / commit.id / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder / "blobs" / self._place(message, file))
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / message["revision"]).write_text(commit.id)
        return True

    def _find(self, kind: str, name: str, revision: str, path: str) -> tuple[HubFile | None, str]:
        repo = self.hub.state.repos.get((kind, name))
        commit = repo.resolve(revision) if repo else None
        return (commit.files.get(path), commit.id) if commit else (None, "")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        before, _, after = request.path.strip("/").partition("/resolve/")
        head, _, name = before.partition("/")
        kind, name = (_TYPES[head], name) if head in _TYPES else ("model", before)
        revision, _, path = after.partition("/")
        self.tokens.add(request.headers.get("Authorization"))
        file, commit = self._find(kind, name, revision, path)
        if file is None:
            code = "EntryNotFound" if commit else "RepoNotFound"
            headers = {"X-Error-Code": code, "X-Error-Message": "no"} | ({"X-Repo-Commit": commit} if commit else {})
            return web.Response(status=404, headers=headers)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        data = read_range(file.source, 0, file.size)
        first = int((request.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        headers["Content-Length"] = str(file.size - first)
        if first:
            headers["Content-Range"] = f"bytes {first}-{file.size - 1}/{file.size}"
        answer = web.StreamResponse(status=206 if first else 200, headers=headers)
        await answer.prepare(request)
        if request.method == "GET":
            await answer.write(data[first : first + file.size // 2 if self.mode == "cut" else None])
            if self.mode == "cut":
                assert request.transport is not None
                request.transport.abort()
        return answer

    async def _relay(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "connection")}
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, self.hub.url + request.raw_path, data=body, headers=headers) as got,
        ):
            data = (await got.read()).replace(b'"xetHash"', b'"notXet"')
            kept = {k: v for k, v in got.headers.items() if k.startswith("X-") or k == "Content-Type"}
            if "Link" in got.headers:
                kept["Link"] = got.headers["Link"].replace(self.hub.url, f"http://{self.address}")
            return web.Response(status=got.status, body=data, headers=kept)


@asynccontextmanager
async def stand_in(hub: TestHub, home: Path, mode: str = "ok", **run: Any) -> AsyncIterator[StandIn]:
    """One that runs."""
    made = StandIn(hub, home, mode)
    server = web.Server(made.serve)  # type: ignore[arg-type]
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.address = "{}:{}".format(*runner.addresses[0][:2])
    made.announce(**run)
    try:
        yield made
    finally:
        made.vanish()
        await runner.cleanup()
