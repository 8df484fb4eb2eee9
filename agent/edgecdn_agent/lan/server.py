"""The LAN server: what this agent gives to its peers over HTTP.

Every request passes the same gate: the address is one of a peer, the protocol is spoken, the peer is
within its share. `routes` answers then. A failure in the midst of an answer cuts the connection,
so that a short body never looks whole.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from aiohttp import web

from edgecdn.errors import EdgecdnError
from edgecdn.lan_wire import (
    AGENT_HEADER,
    BASE_PATH,
    MOST_QUERY_BYTES,
    PROTOCOL,
    PROTOCOL_HEADER,
    encode_refusal,
    parse_asker,
    speaks,
)
from edgecdn.settings_values import Listen
from edgecdn_agent.binding import bind_near
from edgecdn_agent.lan.events import EventStreams
from edgecdn_agent.lan.guard import Connections, Guard, Limits, Refused, Watched
from edgecdn_agent.lan.parts import LanParts, Tools
from edgecdn_agent.lan.rechecks import Rechecks
from edgecdn_agent.lan.routes import Routes, host_of, not_found
from edgecdn_agent.lan.sender import ReadFailed

__all__ = ["LanServer"]

_log = logging.getLogger(__name__)

_BACKLOG = 256
_CLOSE_S = 2.0
"""For answers under way when the server closes."""

_LINGER_S = 1.0
"""For the rest of a body nobody wants."""

_SWEEPS = 10
"""How often in the time for a stall connections are looked at."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LanServer:
    """Serves until closed. `start` and `close` may be called from different tasks, `run` does both."""

    def __init__(self, parts: LanParts, limits: Limits | None = None) -> None:
        self._parts = parts
        self._limits = limits or Limits()
        self._guard = Guard(self._limits, time.monotonic)
        self._rechecks = Rechecks(parts.shelf.recheck, self._limits.recheck_s, time.monotonic)
        self._events = EventStreams(parts, self._limits)
        self.connections = Connections(self._limits, parts.allows)
        self._routes: Routes | None = None
        self._counting: frozenset[Any] = frozenset()
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, listen: Listen, ready: Callable[[Listen], None]) -> None:
        """Serve until cancelled; `ready` is told where. Raises OSError when no port can be had."""
        try:
            ready(await self.start(listen))
            await asyncio.gather(*self._tasks)
        finally:
            await self.close()

    async def start(self, listen: Listen) -> Listen:
        """Begin to serve; where. A port that is taken is replaced by the next free one."""
        routes = self._routes = Routes(self._parts, self._guard, self._rechecks, self._limits)
        tools = Tools(self._guard, self._limits, routes.sender, self._parts.sent)
        more = [route for extension in self._parts.extensions for route in extension.routes(tools)]
        self._counting = frozenset(route.handler for route in more)
        app = web.Application(client_max_size=MOST_QUERY_BYTES)
        app.add_routes([web.get("/events", self._events.answer, allow_head=False), *routes.all(), *more])
        outer = web.Application(middlewares=[self._gate], client_max_size=MOST_QUERY_BYTES)
        outer.add_subapp(BASE_PATH, app)
        outer.on_response_prepare.append(_mark)
        runner = web.AppRunner(
            outer,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=self._limits.idle_s,
            lingering_time=_LINGER_S,
            auto_decompress=False,  # nothing we are told is large enough to be compressed
            shutdown_timeout=_CLOSE_S,
        )
        await runner.setup()
        self._runner = runner
        sock = await asyncio.to_thread(bind_near, listen)
        self._listener = await asyncio.get_running_loop().create_server(self._accept, sock=sock, backlog=_BACKLOG)
        self._events.start()
        # Not in a TaskGroup: that must be left by the task that entered it, and `close` may be called by another.
        self._tasks = [asyncio.create_task(work()) for work in (self._sweep, self._rechecks.run)]
        return Listen(listen.host, int(sock.getsockname()[1]))

    async def close(self) -> None:
        """Stop serving; answers under way have two seconds. Safe to call twice."""
        self._events.close()
        for extension in self._parts.extensions:
            extension.close()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._routes is not None:
            self._routes.close()
            self._routes = None

    def _accept(self) -> Watched:
        assert self._runner is not None
        assert self._runner.server is not None
        return Watched(self._runner.server(), self.connections)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._limits.stall_s / _SWEEPS)
            self.connections.sweep(time.monotonic())

    @web.middleware
    async def _gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        host = host_of(request)
        if not host or not self._parts.allows(host):
            return _close(web.Response(status=403))
        if not speaks(request.headers.get(PROTOCOL_HEADER)):
            return web.Response(status=426, body=encode_refusal(), content_type="application/json")
        asker = parse_asker(request.headers.get(AGENT_HEADER))
        if asker is not None:
            self._parts.suggest(host, asker.lan_port)
        try:
            with self._counted(request, host):
                return await self._answer(request, handler)
        except Refused as refused:
            return _too_much(refused)

    def _counted(self, request: web.Request, host: str) -> AbstractContextManager[None]:
        """What a request counts as, unless its answer counts itself."""
        if request.match_info.handler in self._counting:
            return nullcontext()
        # A stream lasts as long as the peer, so it is counted apart: many agents may share an address.
        is_stream = request.path == f"{BASE_PATH}/events"
        return self._guard.stream(host) if is_stream else self._guard.request(host)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The handler's answer, or the one its failure stands for."""
        try:
            return await handler(request)
        except Refused:
            raise
        except web.HTTPException as error:
            if error.status == 404:
                return not_found()
            return _close(web.Response(status=error.status, text=f"{error.reason}\n"))
        except EdgecdnError as error:
            return web.json_response({"error": error.message}, status=400)
        except (ReadFailed, ConnectionError, TimeoutError) as error:
            return self._cut(request, str(error) or type(error).__name__)
        except Exception:  # noqa: BLE001 - logged; one request's failure is not the server's
            _log.exception("a request failed path=%.200r", request.path)
            return self._cut(request, "an error")

    @staticmethod
    def _cut(request: web.Request, reason: str) -> web.StreamResponse:
        """End the connection at once: a part of an answer may be on its way already."""
        _log.info("a connection is cut peer=%s reason=%s", host_of(request), reason)
        if request.transport is not None:
            request.transport.abort()
        return _close(web.Response(status=500))


async def _mark(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers[PROTOCOL_HEADER] = str(PROTOCOL)
    response.headers["Server"] = "edgecdn"


def _close(response: web.Response) -> web.StreamResponse:
    response.force_close()
    return response


def _too_much(refused: Refused) -> web.StreamResponse:
    after_s = max(1, math.ceil(refused.retry_after_s))
    return web.Response(status=429, text="too much\n", headers={"Retry-After": str(after_s)})
