"""The local listener: health, metrics, and the control API (`edgecdn.control`) for this user's programs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from socket import socket

import msgspec
from aiohttp import web

from edgecdn.control import API, BEAT_S, Cancelled, FetchRequest, encode_event, encode_line, error_info, parse
from edgecdn.errors import AgentNotRunning
from edgecdn.settings_values import Listen
from edgecdn_agent.binding import bind_near
from edgecdn_agent.control.guard import has_token, local_guard
from edgecdn_agent.control.metrics import Metrics
from edgecdn_agent.control.views import Views
from edgecdn_agent.jobs.askers import Asker
from edgecdn_agent.jobs.book import Jobs
from edgecdn_agent.lan.guard import Connections, Limits, Watched

__all__ = ["LocalServer"]

_log = logging.getLogger(__name__)

_MOST_BODY_BYTES = 1 << 20
"""A request for a fetch is small; many patterns fit in this."""

_WRITE_S = 30.0
"""A caller that takes nothing for so long (seconds) is gone."""

_STOPPED = " (it was stopped during the fetch)"
_STOPPED_HINT = "The fetch goes on when the agent is back: `edgecdn agent start`, then run the same command again."

_SHUTDOWN_S = 1.0
"""How long answers under way may take when the agent stops (seconds)."""

_LIMITS = Limits(connections=4096, connections_in_all=8192, idle_s=30.0, stall_s=120.0)
"""Of these, what holds for connections: all come from one address, this machine's."""

_BACKLOG = 512
_LINGER_S = 1.0
_SWEEPS = 10
"""How often in the time for a stall connections are looked at."""


class LocalServer:
    """A service. `on_bound` is told the real address each time it listens, before `ready` is set.

    `extensions` add routes of other parts of the agent; `cancel_other` stops what is shown as a job and is none.
    """

    def __init__(
        self,
        listen: Listen,
        token: str,
        views: Views,
        jobs: Jobs,
        metrics: Metrics,
        on_bound: Callable[[Listen], None],
        extensions: Sequence[Callable[[web.Application], None]] = (),
        limits: Limits = _LIMITS,
        cancel_other: Callable[[str], Cancelled | None] = lambda _job: None,
    ) -> None:
        self.ready = asyncio.Event()
        self.bound: Listen | None = None
        self._listen = listen
        self._views = views
        self._jobs = jobs
        self._metrics = metrics
        self._on_bound = on_bound
        self._token = token
        self._extensions = extensions
        self._limits = limits
        self.connections = Connections(limits, lambda _host: True)
        self._cancel_other = cancel_other
        self._askers: dict[str, Asker] = {}

    async def run(self) -> None:
        """Serve until cancelled. A handler whose caller leaves is cancelled."""
        runner = web.AppRunner(
            self._app(),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=self._limits.idle_s,  # also for a request that never becomes whole
            lingering_time=_LINGER_S,
            shutdown_timeout=_SHUTDOWN_S,
        )
        await runner.setup()
        server = runner.server
        assert server is not None
        listener: asyncio.Server | None = None
        try:
            listener = await asyncio.get_running_loop().create_server(
                lambda: Watched(server(), self.connections), sock=self._bind(), backlog=_BACKLOG
            )
            self.ready.set()
            while True:
                await asyncio.sleep(self._limits.stall_s / _SWEEPS)
                self.connections.sweep(time.monotonic())
        finally:
            self.ready.clear()
            self.bound = None
            if listener is not None:
                listener.close()
            await runner.cleanup()

    def _bind(self) -> socket:
        listening = bind_near(self._listen)
        host, port = listening.getsockname()[:2]
        self.bound = Listen(host, port)
        if port != self._listen.port and self._listen.port:
            _log.warning("port is taken wanted=%s used=%s", self._listen, self.bound)
        self._on_bound(self.bound)
        return listening

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[local_guard(self._token)], client_max_size=_MOST_BODY_BYTES)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics_text)
        app.router.add_get(f"{API}/status", self._status)
        app.router.add_get(f"{API}/peers", self._peers)
        app.router.add_get(f"{API}/top", self._top)
        app.router.add_get(f"{API}/jobs", self._list_jobs)
        app.router.add_post(f"{API}/jobs", self._fetch)
        app.router.add_delete(API + "/jobs/{id:[0-9a-f]+}", self._cancel)
        for extend in self._extensions:
            extend(app)
        return app

    async def _healthz(self, request: web.Request) -> web.Response:
        health = self._views.health(reasons=has_token(request, self._token))
        return _json(health, status=200 if health.ready else 503)

    async def _metrics_text(self, _request: web.Request) -> web.Response:
        text = self._metrics.text()
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _status(self, _request: web.Request) -> web.Response:
        return _json(self._views.status())

    async def _peers(self, _request: web.Request) -> web.Response:
        return _json(self._views.peers())

    async def _top(self, _request: web.Request) -> web.Response:
        return _json(self._views.top())

    async def _list_jobs(self, _request: web.Request) -> web.Response:
        return _json(self._views.jobs())

    async def _cancel(self, request: web.Request) -> web.Response:
        asker = self._askers.get(request.query.get("asker", ""))
        # Its job may have become another's since it was told which: what it waits for now is meant.
        job = asker.job_id if asker is not None else request.match_info["id"]
        done = self._jobs.cancel(job, asker.id if asker is not None else "") or self._cancel_other(job)
        return _json(done or Cancelled(cancelled=False, others=0))

    async def _fetch(self, request: web.Request) -> web.StreamResponse:
        wanted = parse(await request.read(), FetchRequest)
        asker = self._jobs.ask(wanted)
        self._askers[asker.id] = asker
        stream = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
        try:
            await stream.prepare(request)
            await _pass_on(asker, stream)
        except (ConnectionError, TimeoutError):
            _log.info("caller left job=%s", asker.job_id)
        finally:
            del self._askers[asker.id]
            self._jobs.leave(asker)
        return stream


async def _pass_on(asker: Asker, stream: web.StreamResponse) -> None:
    """All that the asker gets, as lines; a beat where there is nothing; an error when the agent stops."""
    told_job, beats = asker.job_id, 0
    await _write(stream, encode_line(job=told_job, asker=asker.id))
    while True:
        lines = [encode_event(event) for event in await asker.take(BEAT_S)]
        if asker.job_id != told_job:  # before the events: who leaves on hearing them leaves that job
            told_job = asker.job_id
            lines.insert(0, encode_line(job=told_job, asker=asker.id))
        outcome = asker.outcome
        if outcome is not None and outcome.fetched is not None:
            lines.append(encode_line(result=outcome.fetched))
        elif outcome is not None and outcome.error is not None:
            lines.append(encode_line(error=error_info(outcome.error)))
        elif outcome is not None:
            lines.append(encode_line(error=error_info(AgentNotRunning(_STOPPED, hint=_STOPPED_HINT))))
        if not lines:
            beats += 1
            lines.append(encode_line(beat=beats))
        await _write(stream, b"".join(lines))
        if outcome is not None:
            return


async def _write(stream: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(_WRITE_S):
        await stream.write(data)


def _json(value: object, *, status: int = 200) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(body=msgspec.json.encode(value), status=status, headers=headers)
