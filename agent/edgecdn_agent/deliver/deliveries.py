"""All files that are brought one at a time because somebody wants them now; `run` is the service."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.store import open_repo
from edgecdn.control import Cancelled, FetchRequest, JobInfo
from edgecdn.digest import Digest
from edgecdn.errors import AgentNotRunning, EdgecdnError, IntegrityFailure, Interrupted
from edgecdn.events import BytesReceived, Event, Listener
from edgecdn.lately import Lately
from edgecdn.names import RepoId
from edgecdn.spans import UNIT_BYTES
from edgecdn.transfer.arrivals import Arrival, Arrivals
from edgecdn_agent.deliver.delivery import Delivery, DeliveryState, Followed, Wanted
from edgecdn_agent.jobs.job import Job, JobState
from edgecdn_agent.traffic import Traffic

__all__ = ["Brings", "Deliveries"]

_log = logging.getLogger(__name__)

_GRACE_S = 30.0
"""Tools that lose a connection come back within this (seconds); until then the file goes on."""

_LARGE_AT_ONCE = 16
_SMALL_AT_ONCE = 8
"""Small files have room of their own: a tool's config must not wait behind its weights."""

_REMEMBERED_S = 600.0
"""A file that nobody gave right is not brought again at once: each try may cost its bytes on a metered line."""

_Key = tuple[RepoId, Digest, str]


class Brings(Protocol):
    """What brings a file (`deliver.bringing.Bringer`)."""

    async def bring(self, wanted: Wanted, tokens: list[str], listener: Listener) -> None: ...
    async def run(self) -> None: ...


class _Live:
    """A delivery that is not over."""

    def __init__(self, wanted: Wanted, delivery: Delivery) -> None:
        self.wanted = wanted
        self.delivery = delivery
        self.tokens: list[str] = []
        self.wanters = 0
        self.task: asyncio.Task[None] | None = None
        self.leaving: asyncio.TimerHandle | None = None
        self.job = Job(FetchRequest(f"{wanted.manifest.repo}@{wanted.manifest.commit.hex[:12]} {wanted.entry.path}"))
        self.job.state = JobState.QUEUED

    @property
    def goes_on(self) -> bool:
        """Whether it can be joined: one that is being stopped takes a while to end, and ends without the file."""
        stopping = self.task is not None and self.task.cancelling() > 0
        return self.delivery.state is DeliveryState.ARRIVING and not stopping

    def join(self, token: str | None) -> None:
        """One more wants it."""
        self.wanters += 1
        if token and token not in self.tokens:
            self.tokens.append(token)
        if self.leaving is not None:
            self.leaving.cancel()
            self.leaving = None


class Deliveries:
    """One delivery for each repo and digest however many want it. On one event loop.

    `grace_s`: how long one goes on for which nobody waits any more.
    """

    def __init__(
        self,
        cache_dir: Path,
        bringer: Brings,
        arrivals: Arrivals,
        traffic: Traffic,
        catalog: Catalog,
        *,
        grace_s: float = _GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ready = asyncio.Event()
        self._cache_dir = cache_dir
        self._bringer = bringer
        self._arrivals = arrivals
        self._traffic = traffic
        self._grace_s = grace_s
        self._catalog = catalog
        self._live: dict[_Key, _Live] = {}
        self._failed: Lately[EdgecdnError] = Lately(_REMEMBERED_S, clock)
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._small = asyncio.Semaphore(_SMALL_AT_ONCE)
        self._group: asyncio.TaskGroup | None = None

    def get(self, digest: Digest) -> Delivery | None:
        """One that is under way: a delivery, or a file of any fetch of this agent."""
        for (_, wanted, _), live in self._live.items():
            if wanted == digest and live.delivery.state is DeliveryState.ARRIVING:
                return live.delivery
        arrival = self._arrivals.get(digest)
        return None if arrival is None else Followed(arrival, self._finder(arrival))

    @asynccontextmanager
    async def want(self, wanted: Wanted) -> AsyncIterator[Delivery]:
        """Have it brought, or join those who want it; whoever leaves last stops it after the grace.

        One that failed for its bytes a while ago is FAILED at once. Raises AgentNotRunning while stopping.
        """
        if self._group is None:
            raise AgentNotRunning(" (it is starting or stopping)")
        live = self._live.get(_key(wanted))
        if live is None or not live.goes_on:
            live = self._begin(self._group, wanted)
        live.join(wanted.token)
        try:
            yield live.delivery
        finally:
            live.wanters -= 1
            if not live.wanters and live.task is not None and not live.task.done():
                live.leaving = asyncio.get_running_loop().call_later(self._grace_s, live.task.cancel)

    def infos(self) -> tuple[JobInfo, ...]:
        """Those under way, as `status` shows them."""
        return tuple(msgspec.structs.replace(live.job.info(), askers=live.wanters) for live in self._live.values())

    def cancel(self, job_id: str) -> Cancelled | None:
        """Stop one that nobody waits for any more; None when there is no such one."""
        live = next((live for live in self._live.values() if live.job.id == job_id), None)
        if live is None:
            return None
        if live.wanters or live.task is None:
            return Cancelled(cancelled=False, others=live.wanters, by_tools=True)
        return Cancelled(cancelled=live.task.cancel(), others=0)

    def failed(self, digest: Digest) -> EdgecdnError | None:
        """Why it is not brought again at once: an integrity failure of the last minutes."""
        return self._failed.get(digest)

    async def run(self) -> None:
        """Bring what is wanted until cancelled, which stops every delivery where it is."""
        async with asyncio.TaskGroup() as holding:
            kept = holding.create_task(self._bringer.run(), name="deliveries share")
            try:
                async with asyncio.TaskGroup() as group:
                    self._group = group
                    self.ready.set()
                    try:
                        await asyncio.get_running_loop().create_future()
                    finally:  # before they are stopped: nothing is begun among them
                        self._group = None
                        self.ready.clear()
            finally:
                kept.cancel()

    def _begin(self, group: asyncio.TaskGroup, wanted: Wanted) -> _Live:
        repo, entry = wanted.manifest.repo, wanted.entry
        held = ExitStack()
        arrival = held.enter_context(self._arrivals.watch(repo, entry))
        live = _Live(wanted, Delivery(arrival, self._finder(arrival)))
        if (known := self.failed(entry.digest)) is not None:
            held.close()
            live.delivery.settle(known)
            return live
        self._live[_key(wanted)] = live
        live.task = group.create_task(self._deliver(live), name=f"delivery of {entry.path}")

        def over(_task: asyncio.Task[None]) -> None:  # also of a task that was cancelled before it began
            held.close()
            if live.leaving is not None:
                live.leaving.cancel()
            if self._live.get(_key(wanted)) is live:
                del self._live[_key(wanted)]
            live.delivery.settle(Interrupted(" The delivery was stopped."))

        live.task.add_done_callback(over)
        return live

    async def _deliver(self, live: _Live) -> None:
        entry = live.wanted.entry

        def heard(event: Event) -> None:
            if isinstance(event, BytesReceived):
                self._traffic.received(event.kind, event.source, event.count)
            live.job.tell(event)

        try:
            async with self._small if entry.size <= UNIT_BYTES else self._large:  # oldest first
                live.job.state = JobState.RUNNING
                await self._bringer.bring(live.wanted, live.tokens, heard)
        except EdgecdnError as error:
            _log.warning("delivery ended title=%s reason=%s", live.job.title, error)
            if isinstance(error, IntegrityFailure):
                self._failed.put(entry.digest, error)
            live.delivery.settle(error)
        except Exception as error:  # noqa: BLE001 - it ends this delivery, not the others
            _log.exception("delivery failed unexpectedly title=%s", live.job.title)
            live.delivery.settle(EdgecdnError(f"it failed unexpectedly ({type(error).__name__})"))
        else:
            self._failed.pop(entry.digest)
            live.delivery.settle()

    def _finder(self, arrival: Arrival) -> Callable[[], int | None]:
        """What opens the proven file: the one that was brought, or that the catalog vouches for.

        Another program may have put its own under that name meanwhile, which nobody has looked at.
        """
        digest = arrival.entry.digest

        def find() -> int | None:
            try:
                with open_repo(self._cache_dir, arrival.repo) as store:
                    fd, path = store.open_blob(digest), store.path / "blobs" / digest.hex
            except FileNotFoundError:
                return None
            if fd is None:
                return None
            seen = os.fstat(fd)
            if arrival.is_proven(seen) or self._catalog.is_verified(path, digest, seen):
                return fd
            os.close(fd)
            return None

        return find


def _key(wanted: Wanted) -> _Key:
    return wanted.manifest.repo, wanted.entry.digest, wanted.hub
