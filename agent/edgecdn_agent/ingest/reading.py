"""Reading from the line when it is our turn: a run is asked of the coordinator, and each unit given on as it comes."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import aclosing, suppress

from edgecdn.events import Kind
from edgecdn.sources.faults import SourceFault
from edgecdn.spans import Span
from edgecdn.transfer.carrier import Giver, Line
from edgecdn_agent.ingest.deciding import Ask, coordinator_of, is_idle, streams_of
from edgecdn_agent.ingest.link import IngestClient
from edgecdn_agent.ingest.session import Session
from edgecdn_agent.ingest.units import Units
from edgecdn_agent.ingest.wire import LeaseAnswer, LeaseAsk
from edgecdn_agent.lab.peers import Peers

__all__ = ["Reading"]

_log = logging.getLogger(__name__)

_ASK_OTHER_S = 0.05
"""When the one that was named, or is next, is asked for a lease."""

_UNANSWERED_S = 1.0
"""A coordinator that does not answer is done without for so long."""

_PUT_OFF_S, _USELESS_S = 5.0, 60.0
"""A coordinator that grants nothing for so long, while nobody reads, is done without for so long."""

_MOST_WAIT_S = 10.0
"""We wait no longer, whatever a coordinator says: it may be gone by then."""

_STALE_S = 0.25
"""When a lease is asked for again after one that is of no use."""

_FAILED_S = 1.0
"""When a lease is asked for again after the line failed."""


class Reading:
    """One job's runs from the line."""

    def __init__(
        self,
        session: Session,
        line: Line,
        units: Units,
        peers: Peers,
        link: IngestClient,
        clock: Callable[[], float],
    ) -> None:
        self._session = session
        self._world = session.world
        self._line = line
        self._units = units
        self._peers = peers
        self._link = link
        self._clock = clock
        self._runs: set[asyncio.Task[None]] = set()
        self._deaf: dict[str, float] = {}
        self._idle: tuple[str, float] | None = None
        """Who grants nothing while nobody reads, and since when."""
        self._next_ask_s = 0.0
        self.moved_s = 0.0
        """When the line gave something last."""
        self.failed = ""
        """What the line failed with last."""

    def begin(self, group: asyncio.TaskGroup, now_s: float) -> None:
        """Ask for a run, if it is time to."""
        session = self._session
        if now_s < self._next_ask_s or self._world.is_complete:
            return
        most = streams_of(self._world, session.policy, blobs=session.blobs.lab())
        giver = self._line.giver()
        if len(self._runs) >= most or giver is None:
            return
        task = group.create_task(self._run(giver))
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)
        # One question at a time: the answer to this one may be that there is nothing to ask for.
        self._next_ask_s = math.inf

    def stop(self) -> None:
        """End what is under way."""
        for task in self._runs:
            task.cancel()

    async def _run(self, giver: Giver) -> None:
        answer = await self._ask(giver)
        now_s = self._clock()
        if answer.run is None:
            self._next_ask_s = now_s + min(_MOST_WAIT_S, answer.wait_s if answer.wait_s is not None else _ASK_OTHER_S)
            return
        start, stop = answer.run
        if stop > self._world.cut.count or start in self._world.mine:  # it came meanwhile, or is a bad joke
            self._next_ask_s = now_s + _STALE_S
            await self._give_back(start, stop)
            return
        self._next_ask_s = now_s
        units = set(range(start, stop))
        own = [lease for lease in self._world.leases if lease.member == self._world.me and lease.stop == stop]
        lease = own[0] if own else self._world.lease(self._world.me, start, stop, now_s)
        self._world.fetching |= units
        self._session.reads([*self._session.reading, (start, stop)])
        self._session.wake()
        try:
            if not await self._read(giver, start, stop):
                await self._give_back(start, stop)
        except SourceFault as fault:
            _log.info("a run is given back units=%d-%d reason=%s", start, stop, fault)
            self.failed = f"{giver.name} {fault}"
            self._next_ask_s = self._clock() + _FAILED_S
            await self._give_back(start, stop)
        finally:
            self._world.end(lease)
            self._world.fetching -= units
            self._session.reads([run for run in self._session.reading if run != (start, stop)])
            self._session.wake()

    async def _ask(self, giver: Giver) -> LeaseAnswer:
        world, now_s = self._world, self._clock()
        deaf = frozenset(member for member, until_s in self._deaf.items() if until_s > now_s)
        first = coordinator_of(world, deaf | self._session.useless())
        reading, from_holder = len(self._session.reading), giver.kind is Kind.LAN
        if first == world.me:
            return self._session.grant(
                Ask(world.me, len(self._world.offered), self._session.rate, reading, from_holder)
            )
        peer = self._peers.get(first)
        if peer is None:
            self._deaf[first] = now_s + _UNANSWERED_S
            return LeaseAnswer(wait_s=_ASK_OTHER_S)
        ask = LeaseAsk(
            backlog=len(self._world.offered), rate=self._session.rate, reading=reading, from_holder=from_holder
        )
        try:
            answer = await self._link.ask(peer, world.digest, ask)
        except SourceFault as fault:
            _log.info("a coordinator does not answer member=%s reason=%s", first[:8], fault)
            self._deaf[first] = self._clock() + _UNANSWERED_S
            return LeaseAnswer(wait_s=_ASK_OTHER_S)
        self._check_use(first, answer)
        return answer

    def _check_use(self, first: str, answer: LeaseAnswer) -> None:
        """Do without a coordinator that puts us off while nobody reads: it has to grant, after a moment."""
        now_s = self._clock()
        policy = self._session.policy
        is_full = len(self._world.offered) > policy.backlog_units
        if answer.run is not None or is_full or not is_idle(self._world, policy, now_s):
            self._idle = None
        elif self._idle is None or self._idle[0] != first:
            self._idle = first, now_s
        elif now_s - self._idle[1] > _PUT_OFF_S:
            _log.warning("a coordinator grants nothing member=%s", first[:8])
            self._session.useless_until_s[first] = now_s + _USELESS_S
            self._idle = None

    async def _read(self, giver: Giver, start: int, stop: int) -> bool:
        """The run, unit by unit; False: it ended early, as others have brought what was to come."""
        cut, unit, held = self._world.cut, start, bytearray()
        span = Span(cut.span(start).start, cut.span(stop - 1).stop)
        began_s = self._clock()
        try:
            async with aclosing(self._line.read(giver, span)) as pieces:
                async for piece in pieces:
                    held += piece
                    self.moved_s = self._clock()
                    while unit < stop and len(held) >= (length := len(cut.span(unit))):
                        data = bytes(held[:length])
                        del held[:length]
                        await self._units.take(unit, data, giver, read=giver.kind is not Kind.LAN)
                        now_s = self._clock()
                        self._rate(length / max(now_s - began_s, 1e-3))
                        began_s = now_s
                        unit += 1
                    if unit < stop and self._is_brought(unit):
                        return False
        finally:
            if unit == start:  # not even one: a slow line must not look like one that nobody has measured
                self._rate(max(1.0, len(held) / max(self._clock() - began_s, 1e-3)))
        return True

    def _is_brought(self, unit: int) -> bool:
        """Whether others have a unit by now that we were to read: the lease was taken to be overdue."""
        return unit in self._world.mine or unit in self._world.holders

    def _rate(self, bytes_s: float) -> None:
        self._session.rate = bytes_s if not self._session.rate else 0.7 * self._session.rate + 0.3 * bytes_s

    async def _give_back(self, start: int, stop: int) -> None:
        first = coordinator_of(self._world)
        peer = self._peers.get(first)
        if first == self._world.me:
            self._session.free(self._world.me, start, stop)
        elif peer is not None:
            with suppress(SourceFault):
                await self._link.give_back(peer, self._world.digest, start, stop)
