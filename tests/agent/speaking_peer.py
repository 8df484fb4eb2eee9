"""A peer as far as others hear of it: a real HTTP server with the event stream, which can be told to misbehave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from edgecdn.lan_wire import BASE_PATH, format_address


@dataclass
class SpeakingPeer:
    id: str = "b" * 32
    name: str = "bench-2"
    host: str = "127.0.0.1"
    port: int = 0
    beat_s: float = 0.05
    fields: dict[str, Any] = field(default_factory=dict)
    first: bytes | None = None
    """Sent instead of the hello, then the stream stays open."""
    refuses: bytes | None = None
    answers: web.Response | None = None
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    speaks: asyncio.Event = field(default_factory=asyncio.Event)
    lines: dict[int, asyncio.Queue[bytes]] = field(default_factory=dict)
    _runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        return format_address(self.host, self.port)

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get(f"{BASE_PATH}/events", self._events)
        self.routes(app)
        app.router.add_get(f"{BASE_PATH}/hello", self._hello)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port).start()
        self.port = self._runner.addresses[0][1]
        self.speaks.set()

    def routes(self, app: web.Application) -> None:
        """More that it answers; here nothing."""

    async def kill(self) -> None:
        assert self._runner is not None
        for queue in self.lines.values():
            queue.put_nowait(b"")
        await self._runner.cleanup()

    def say(self, **event: Any) -> None:
        self.say_bytes(msgspec.json.encode(event) + b"\n")

    def say_bytes(self, line: bytes) -> None:
        for queue in self.lines.values():
            queue.put_nowait(line)

    def hello(self) -> bytes:
        hello = {
            "protocol": 1,
            "oldest": 1,
            "id": self.id,
            "name": self.name,
            "version": "1.0.0",
            "lan_port": self.port,
            "swarm_port": 8379,
            "time": time.time(),
            "peers": [],
        }
        return msgspec.json.encode({"hello": hello | self.fields}) + b"\n"

    async def _hello(self, _request: web.Request) -> web.Response:
        return web.json_response(msgspec.json.decode(self.hello())["hello"])

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.headers.get("Edgecdn-Agent", ""))
        if self.refuses is not None:
            return web.Response(status=426, body=self.refuses)
        if self.answers is not None:
            return web.Response(status=self.answers.status, headers=self.answers.headers)
        response = web.StreamResponse(headers=self.headers)
        await response.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.lines[id(queue)] = queue
        try:
            await response.write(self.hello() if self.first is None else self.first)
            while (line := await self._next(queue)) != b"":
                await response.write(line)
        except ConnectionError:
            pass
        finally:
            del self.lines[id(queue)]
        return response

    async def _next(self, queue: asyncio.Queue[bytes]) -> bytes:
        try:
            async with asyncio.timeout(self.beat_s):
                line = await queue.get()
        except TimeoutError:
            line = b'{"beat":1}\n'
        if line:
            await self.speaks.wait()
        return line


@asynccontextmanager
async def speaking(**how: Any) -> AsyncIterator[SpeakingPeer]:
    peer = SpeakingPeer(**how)
    await peer.start()
    try:
        yield peer
    finally:
        peer.speaks.set()
        await peer.kill()


async def until(holds: Callable[[], object], limit_s: float = 20.0) -> float:
    """Wait for something another task does; returns how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.005)
    return time.monotonic() - began
