"""The agent's fetches: one job per manifest however many ask for it, and none forgotten.

A request is written down before anything else, so it is gone on with after a restart. Who leaves does not
stop a job; who cancels does, where nobody else waits. A job for which nobody waits and that finds no source
tries again by itself; one that somebody waits for tells them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from edgecdn.control import Cancelled, FetchRequest, JobInfo
from edgecdn.errors import AgentNotRunning, EdgecdnError, Interrupted, Unreachable
from edgecdn.events import BytesReceived, Event, Listener, Waiting
from edgecdn.lately import Lately
from edgecdn.pipeline import Fetched
from edgecdn_agent.jobs.askers import Asker, Outcome
from edgecdn_agent.jobs.job import Job, JobState
from edgecdn_agent.jobs.store import JobStore, StoredJob
from edgecdn_agent.traffic import Traffic

__all__ = ["JobRunner", "Jobs", "Prepared"]

_log = logging.getLogger(__name__)

_ENDED_KEPT = 50
_GIVE_UP_S = 24 * 3600.0
"""A job that nobody waits for and that found no source for a day (seconds) is given up."""

_LOOK_S = 5.0
"""Waiting jobs try early at most so often (seconds), however many peers come and go."""

_TOLD_S = 60.0
"""For who waits to have been told that their job became another's (seconds)."""

_LAST_SAVE_S = 2.0
"""How long the last writing of the list may take when the agent stops (seconds)."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose commit is known. Requests with equal `key` are one job: all that changes the result is in it."""

    key: tuple[object, ...]
    title: str


class JobRunner(Protocol):
    """What fetches. Both raise EdgecdnError, and stop cleanly when cancelled."""

    async def prepare(self, request: FetchRequest) -> Prepared: ...
    async def run(self, request: FetchRequest, prepared: Prepared, listener: Listener) -> Fetched: ...


class Jobs:
    """All fetches; `run` is its service. `retry_s`: first and longest pause of a job that nobody waits for."""

    def __init__(
        self,
        runner: JobRunner,
        store: JobStore,
        traffic: Traffic,
        *,
        most_at_once: int = 8,
        retry_s: tuple[float, float] = (5.0, 300.0),
        look_s: float = _LOOK_S,
    ) -> None:
        self._runner = runner
        self._store = store
        self._traffic = traffic
        self._room = asyncio.Semaphore(most_at_once)
        self._retry_s = retry_s
        self._look_s = look_s
        self._news = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._active: dict[str, Job] = {}
        self._by_key: dict[tuple[object, ...], Job] = {}
        self._merged: Lately[str] = Lately(_TOLD_S)
        self._ended: deque[JobInfo] = deque(maxlen=_ENDED_KEPT)
        self._changed = asyncio.Event()
        self._saves = itertools.count(1)
        self.ready = asyncio.Event()

    @property
    def running(self) -> int:
        """How many are not over."""
        return len(self._active)

    def infos(self) -> tuple[JobInfo, ...]:
        """Those that are not over, then the last that ended, newest first."""
        return (*(job.info() for job in self._active.values()), *reversed(self._ended))

    async def run(self) -> None:
        """Go on with what is stored, take requests; until cancelled, which stops every fetch where it is."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for stored in await asyncio.to_thread(self._store.load):
                    _log.info("job goes on job=%s model=%s", stored.id, stored.request.model)
                    self._begin(Job(stored.request, stored.id))
                group.create_task(self._keep_looking(), name="jobs look again")
                self.ready.set()
                try:
                    await self._keep_stored()
                finally:  # before the fetches are stopped: nothing is begun among them
                    self._group = None
                    self.ready.clear()
        finally:
            unfinished = self._stored()
            for job in self._active.values():
                job.end(job.state, Outcome())
            self._active.clear()
            self._by_key.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_SAVE_S):
                    await asyncio.to_thread(self._store.save, unfinished, next(self._saves))

    def ask(self, request: FetchRequest) -> Asker:
        """Have it fetched; the caller reads the asker and leaves in the end. Raises AgentNotRunning while stopping."""
        if self._group is None:
            raise AgentNotRunning(" (it is starting or stopping)")
        asker = Asker()
        job = Job(request)
        job.join(asker)
        self._begin(job)
        return asker

    def leave(self, asker: Asker) -> None:
        """Wait no more; the job goes on."""
        if (job := self._active.get(asker.job_id)) is not None:
            job.leave(asker.id)

    def look_again(self) -> None:
        """There may be sources that were not there: fetches that wait for one try soon, not when their pause ends."""
        self._news.set()

    async def _keep_looking(self) -> None:
        """At once after the first news; what comes soon after that is looked at together."""
        while True:
            await self._news.wait()
            self._news.clear()
            for job in self._active.values():
                if job.state is JobState.WAITING:
                    job.joined.set()
            await asyncio.sleep(self._look_s)

    def cancel(self, job_id: str, asker_id: str = "") -> Cancelled | None:
        """Leave, and stop the job unless others wait for it; None when there is no such job.

        Of a job that became another's the other is meant: who asked may not have been told yet.
        """
        while (job := self._active.get(job_id)) is None:
            became = self._merged.get(job_id)
            if became is None:
                return None
            job_id = became
        leaving = job.askers.get(asker_id)
        others = len(job.askers) - (leaving is not None)
        if others:
            job.leave(asker_id)
            if leaving is not None:
                leaving.end(Outcome(error=Interrupted(" The fetch goes on for others who wait for it.")))
            return Cancelled(cancelled=False, others=others)
        job.state = JobState.CANCELLED
        self._changed.set()
        self._forget_key(job)  # who asks from now on gets a job of their own
        assert job.task is not None
        job.task.cancel()
        return Cancelled(cancelled=True, others=0)

    def _begin(self, job: Job) -> None:
        assert self._group is not None
        self._active[job.id] = job
        self._changed.set()
        job.task = self._group.create_task(self._live(job), name=f"job {job.id}")
        job.task.add_done_callback(partial(self._stopped, job))

    async def _live(self, job: Job) -> None:
        """From request to end. Cancelled, it is over or stays stored: `_stopped` knows which."""
        outcome = await self._attempts(job)
        if outcome is not None:
            self._finish(job, outcome)

    def _stopped(self, job: Job, task: asyncio.Task[None]) -> None:
        """The end of a job's task; one that a user cancelled may not even have begun."""
        if task.cancelled() and job.state is JobState.CANCELLED and job.id in self._active:
            self._finish(job, Outcome(error=Interrupted(" The fetch was cancelled.")))

    async def _attempts(self, job: Job) -> Outcome | None:
        """Try until it ends; None when another job took over."""
        pause_s = self._retry_s[0]
        while True:
            try:
                return await self._attempt(job)
            except Unreachable as error:
                if job.askers or job.info().seconds > _GIVE_UP_S:
                    return Outcome(error=error)
                job.state, job.detail = JobState.WAITING, error.message
                _log.warning("job waits for a source job=%s again_in_s=%s reason=%s", job.id, pause_s, error)
            except EdgecdnError as error:
                return Outcome(error=error)
            except Exception as error:  # noqa: BLE001 - it ends this job, not the others
                _log.exception("job failed unexpectedly job=%s", job.id)
                return Outcome(error=error)
            job.joined.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await job.joined.wait()
            pause_s = min(2 * pause_s, self._retry_s[1])

    async def _attempt(self, job: Job) -> Outcome | None:
        job.state, job.detail = JobState.PREPARING, ""
        prepared = await self._runner.prepare(job.request)
        self._forget_key(job)  # of an earlier attempt
        other = self._by_key.get(prepared.key, job)
        if other is not job:
            self._merge(job, other)
            return None
        job.key, job.title = prepared.key, prepared.title
        self._by_key[prepared.key] = job
        if self._room.locked():
            job.state = JobState.QUEUED
            job.tell(Waiting("Other fetches of the agent come first."))
        async with self._room:
            job.state = JobState.RUNNING
            fetched = await self._runner.run(job.request, prepared, lambda event: self._heard(job, event))
            return Outcome(fetched)

    def _heard(self, job: Job, event: Event) -> None:
        if isinstance(event, BytesReceived):
            self._traffic.received(event.kind, event.source, event.count)
        job.tell(event)

    def _merge(self, job: Job, other: Job) -> None:
        """Those who wait for `job` now wait for `other`, which fetches the same."""
        for asker in job.askers.values():
            other.join(asker)
        job.askers.clear()
        self._active.pop(job.id, None)
        self._merged.put(job.id, other.id)
        self._changed.set()

    def _finish(self, job: Job, outcome: Outcome) -> None:
        if job.state is not JobState.CANCELLED:
            job.state = JobState.DONE if outcome.error is None else JobState.FAILED
        if outcome.error is None:
            _log.info("job done job=%s title=%s", job.id, job.title)
        else:
            _log.warning("job ended job=%s title=%s state=%s reason=%s", job.id, job.title, job.state, outcome.error)
        self._active.pop(job.id, None)
        self._forget_key(job)
        job.end(job.state, outcome)
        self._ended.append(job.info())
        self._changed.set()

    def _forget_key(self, job: Job) -> None:
        if job.key is not None and self._by_key.get(job.key) is job:
            del self._by_key[job.key]

    def _stored(self) -> list[StoredJob]:
        return [StoredJob(j.id, j.request) for j in self._active.values() if j.state is not JobState.CANCELLED]

    async def _keep_stored(self) -> None:
        """The one writer of the list: after every change, the newest state."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await asyncio.to_thread(self._store.save, self._stored(), next(self._saves))
