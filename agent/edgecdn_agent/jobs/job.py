"""One fetch of the agent and those who wait for it: what is known so far, told to each who joins. No I/O."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from edgecdn.control import FetchRequest, JobInfo
from edgecdn.events import BlobPublished, BytesDiscarded, BytesReceived, Event, FetchPlanned, Kind, Note, Waiting
from edgecdn_agent.jobs.askers import Asker, Outcome
from edgecdn_agent.traffic import RateMeter

__all__ = ["Job", "JobState"]

_NOTES_KEPT = 10
"""Notes told again to who joins later."""


class JobState(StrEnum):
    """Where a job is in its life. WAITING: no source answered, it is tried again by itself."""

    PREPARING = "preparing"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Job:
    """A request on its way. `tell` is the listener of its fetch."""

    def __init__(self, request: FetchRequest, job_id: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.id = job_id or secrets.token_hex(6)
        self.request = request
        self.title = request.model
        self.key: tuple[object, ...] | None = None
        self.state = JobState.PREPARING
        self.detail = ""
        self.askers: dict[str, Asker] = {}
        self.joined = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._clock = clock
        self._began = clock()
        self._took_s: float | None = None
        self._plan: FetchPlanned | None = None
        self._waiting: Waiting | None = None
        self._notes: deque[Note] = deque(maxlen=_NOTES_KEPT)
        self._published = 0
        self._received: Counter[tuple[str, Kind]] = Counter()
        self._meters: dict[str, RateMeter] = {}

    def join(self, asker: Asker) -> None:
        """Somebody more waits for it, and hears first how far it is."""
        self.askers[asker.id] = asker
        asker.move(self.id)
        for event in self._so_far():
            asker.put(event)
        self.joined.set()

    def leave(self, asker_id: str) -> bool:
        """Somebody waits no more; whether they had."""
        return self.askers.pop(asker_id, None) is not None

    def tell(self, event: Event) -> None:
        """Remember it and pass it on to all who wait."""
        match event:
            case FetchPlanned():
                self._plan, self._published = event, 0
                self._received.clear()
            case BytesReceived(source=source, kind=kind, count=count):
                self._received[source, kind] += count
                self._meters.setdefault(source, RateMeter(self._clock)).add(count)
                self._waiting = None
            case BytesDiscarded(source=source, kind=kind, count=count):
                self._received[source, kind] -= count
            case BlobPublished():
                self._published += 1
            case Waiting():
                self._waiting = event
            case Note():
                self._notes.append(event)
        for asker in self.askers.values():
            asker.put(event)

    def end(self, state: JobState, outcome: Outcome) -> None:
        """It is over, for all who wait."""
        self.state = state
        self._took_s = self._clock() - self._began
        if outcome.error is not None:
            self.detail = str(outcome.error)
        for asker in self.askers.values():
            asker.end(outcome)
        self.askers.clear()

    def info(self) -> JobInfo:
        """As `edgecdn status` and `top` show it."""
        by_kind: Counter[str] = Counter()
        for (_, kind), count in self._received.items():
            by_kind[kind.value] += count
        came = sum(self._received.values())
        over = self._took_s is not None
        rates = {} if over else {s: rate for s, meter in self._meters.items() if (rate := meter.rate()) > 0}
        return JobInfo(
            id=self.id,
            title=self.title,
            state=self.state.value,
            askers=len(self.askers),
            done_bytes=came + (self._plan.bytes_here if self._plan else 0),
            total_bytes=self._plan.bytes_total if self._plan else 0,
            bytes_by_source=dict(by_kind),
            rates=rates,
            seconds=round(self._clock() - self._began if self._took_s is None else self._took_s, 3),
            detail=self.detail or (self._waiting.reason if self._waiting and not over else ""),
        )

    def _so_far(self) -> list[Event]:
        """What tells a newcomer the same as all the events since the start."""
        events: list[Event] = list(self._notes)
        if self._plan is not None:
            events.append(replace(self._plan, files_here=self._plan.files_here + self._published))
        events += [BytesReceived(s, kind, count) for (s, kind), count in self._received.items() if count > 0]
        if self._waiting is not None:
            events.append(self._waiting)
        return events
