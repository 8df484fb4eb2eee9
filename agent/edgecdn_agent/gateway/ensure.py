"""`POST /edgecdn/v1/ensure`: the plugin has a file placed in its client's cache before the client looks for it.

Every poll is answered at once with how it stands; the work is a lease's, which lives as long as somebody polls.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from edgecdn.control import parse
from edgecdn.ensure_wire import ENSURE, Ensure, Ensured
from edgecdn.errors import (
    AccessDenied,
    AgentNotRunning,
    BadInput,
    EdgecdnError,
    IntegrityFailure,
    Interrupted,
    RepoMissing,
    RevisionMissing,
)
from edgecdn_agent.gateway.errors import HubRefusal, NoAnswer

__all__ = ["EnsureService", "Lease"]

_log = logging.getLogger(__name__)

_LEASE_S = 4.0
"""A client asks several times a second: one that does not for so long (seconds) is gone. A delivery that nobody else
wants goes on for its own grace, so that one that was only held up comes back to it."""

_AT_ONCE_S = 0.08
"""What is here, or not to be had, is often known within this (seconds): it saves the client a second poll."""

_LOOK_S = 1.0
_MOST = 1000
"""Leases at a time: a client begins a few dozen."""


@dataclass(eq=False, slots=True)
class Lease:
    """What one or more clients wait for. The work writes `done_bytes`, `total_bytes`, `commit` and `etag`."""

    asked: Ensure
    polled_at: float
    done_bytes: int = 0
    total_bytes: int = 0
    commit: str = ""
    etag: str = ""
    outcome: Ensured | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def told(self) -> Ensured:
        """How it stands."""
        return self.outcome or Ensured("coming", self.done_bytes, self.total_bytes, self.commit, self.etag)

    def end(self, outcome: Ensured) -> None:
        """It is over."""
        self.outcome = outcome
        self.ended.set()


class EnsureService:
    """Routes (`extend`) and a service (`run`). `place` does the work of a lease, and raises what kept it from it."""

    def __init__(
        self,
        place: Callable[[Lease], Awaitable[None]],
        *,
        lease_s: float = _LEASE_S,
        look_s: float = _LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ready = asyncio.Event()
        self._place = place
        self._lease_s, self._look_s = lease_s, look_s
        self._clock = clock
        self._leases: dict[Ensure, Lease] = {}
        self._group: asyncio.TaskGroup | None = None

    def extend(self, app: web.Application) -> None:
        """Add the route to the local listener."""
        app.router.add_post(ENSURE, self._ensure)

    async def run(self) -> None:
        """Do what is asked until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self.ready.set()
                while True:
                    await asyncio.sleep(self._look_s)
                    self._let_go()
        finally:
            self._group = None
            self.ready.clear()
            self._leases.clear()

    async def _ensure(self, request: web.Request) -> web.Response:
        asked = parse(await request.read(), Ensure)
        lease = self._leases.get(asked) or self._begin(asked)
        if lease is None:
            return _json(Ensured("pass" if self._group is not None else "later"))
        lease.polled_at = self._clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(_AT_ONCE_S):
                await lease.ended.wait()
        if lease.outcome is not None:
            self._leases.pop(asked, None)  # told; who asks again has it looked for again
        return _json(lease.told())

    def _begin(self, asked: Ensure) -> Lease | None:
        if self._group is None or len(self._leases) >= _MOST:
            return None
        lease = self._leases[asked] = Lease(asked, self._clock())
        lease.task = self._group.create_task(self._work(lease), name=f"ensure {asked.repo} {asked.path}")
        return lease

    async def _work(self, lease: Lease) -> None:
        try:
            await self._place(lease)
        except Exception as error:  # noqa: BLE001 - it ends this lease, not the others
            lease.end(_outcome(error))
            if lease.told().state in ("failed", "pass"):
                _log.warning("not placed what=%s state=%s reason=%s", lease.asked, lease.told().state, error)
        else:
            lease.end(Ensured("placed", lease.total_bytes, lease.total_bytes, lease.commit, lease.etag))

    def _let_go(self) -> None:
        """End what nobody has asked about for a while."""
        oldest = self._clock() - self._lease_s
        for asked, lease in list(self._leases.items()):
            if lease.polled_at < oldest:
                del self._leases[asked]
                if lease.task is not None:
                    lease.task.cancel()


def _outcome(error: Exception) -> Ensured:
    """What kept a file from being placed, for the client: the hub's no, ours, or that nobody can say."""
    match error:
        case HubRefusal(status=401 | 403) | AccessDenied():
            return Ensured("denied")
        case HubRefusal() | RepoMissing() | RevisionMissing():
            return Ensured("absent")
        case BadInput() | NoAnswer():
            return Ensured("pass")
        case AgentNotRunning() | Interrupted():
            return Ensured("later")
        case EdgecdnError():
            integrity = isinstance(error, IntegrityFailure)
            return Ensured("failed", error=error.message, remedy=error.remedy, integrity=integrity)
    if not isinstance(error, OSError):
        _log.error("ensure failed unexpectedly", exc_info=error)
    return Ensured("pass")


def _json(told: Ensured) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(body=msgspec.json.encode(told), headers=headers)
