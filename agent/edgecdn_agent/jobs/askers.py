"""One who waits for a job: gets its events, as few lines as tell all, however slowly they are read.

The job only adds to a table (it never waits); bytes of one source are summed there, and the reader takes
the table at most ten times a second.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace

from edgecdn.events import BytesDiscarded, BytesReceived, Event, FetchPlanned, Waiting
from edgecdn.pipeline import Fetched

__all__ = ["Asker", "Outcome"]

_EVERY_S = 0.1
"""Shortest time between two takes: ten lines a second of each source are more than eyes can read."""

_MOST_PENDING = 1000
"""Events kept for a slow reader; the oldest that are no counts and no plan go first."""

_KEPT = (BytesReceived, BytesDiscarded, FetchPlanned)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended for who waits: with a result, with an error, or (neither) the agent stops."""

    fetched: Fetched | None = None
    error: BaseException | None = None


class Asker:
    """The job writes with `put`, `move`, `end`; one reader calls `take`."""

    def __init__(self) -> None:
        self.id = secrets.token_hex(8)
        self.job_id = ""
        self.outcome: Outcome | None = None
        self._pending: dict[object, Event] = {}
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._not_before = 0.0

    def put(self, event: Event) -> None:
        """Have the reader get it; never waits."""
        match event:
            case BytesReceived(source=source, kind=kind) | BytesDiscarded(source=source, kind=kind):
                key: object = (type(event), source, kind)
                before = self._pending.get(key)
                if isinstance(before, (BytesReceived, BytesDiscarded)):
                    event = replace(event, count=event.count + before.count)
            case Waiting():
                key = Waiting
                self._pending.pop(key, None)  # the newest, and after what came before it
            case _:
                key = next(self._numbers)
        self._pending[key] = event
        if len(self._pending) > _MOST_PENDING:
            self._drop_one()
        self._wake.set()

    def move(self, job_id: str) -> None:
        """It now waits for this job."""
        self.job_id = job_id
        self._wake.set()

    def end(self, outcome: Outcome) -> None:
        """Nothing comes any more; the first end counts."""
        self.outcome = self.outcome or outcome
        self._wake.set()

    async def take(self, limit_s: float) -> list[Event]:
        """What came since the last take; waits for it up to the limit, then empty. Look at `outcome` after it."""
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._wake.wait()
        if self.outcome is None and (early_s := self._not_before - loop.time()) > 0:
            await asyncio.sleep(early_s)
        self._not_before = loop.time() + _EVERY_S
        self._wake.clear()
        events = list(self._pending.values())
        self._pending.clear()
        return events

    def _drop_one(self) -> None:
        oldest = next((key for key, event in self._pending.items() if not isinstance(event, _KEPT)), None)
        self._pending.pop(next(iter(self._pending)) if oldest is None else oldest)
