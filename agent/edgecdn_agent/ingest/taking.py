"""Taking part: listen to the others, take units of them, read runs from the line when it is our turn.

What is done next is decided by `deciding`; here it is done, and the world is told what came of it. Runs while a
job has the file, and leaves nothing behind when it is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import Random

from edgecdn.events import Kind
from edgecdn.sources.faults import Broken, Busy, SourceFault
from edgecdn.transfer.carrier import Cargo, Giver
from edgecdn.transfer.outcome import most_telling
from edgecdn_agent.ingest.deciding import Pull, next_pull, overdue
from edgecdn_agent.ingest.link import IngestClient
from edgecdn_agent.ingest.listening import Listening
from edgecdn_agent.ingest.reading import Reading
from edgecdn_agent.ingest.session import Session
from edgecdn_agent.ingest.units import Units
from edgecdn_agent.ingest.world import Member
from edgecdn_agent.lab.peers import Peers

__all__ = ["Taking"]

_log = logging.getLogger(__name__)

_TICK_S = 0.1
"""How often time alone is looked at: leases that are overdue, waits that are over."""

_PAUSE_S, _MOST_PAUSE_S = 0.001, 0.04
"""For each member: many say something new all the time, and to look at it each time would be all we do."""

_FIRST_BLOCK_S = 0.5
_LONGEST_BLOCK_S = 8.0
"""How long a member that failed to give is left alone, doubling."""

_MOST_FAILURES = 5
"""So many in a row, and what a member says to have counts as not there."""

_TELLS_S = 4.0
"""Nothing came of anybody for so long: users wonder."""

_GIVES_UP_S = 10.0
"""Nothing came of the lab, and not a byte of our own line, for so long: the sources had better go on."""


class Taking:
    """One job's part in one session. `run` once; True from it: all units are here."""

    def __init__(
        self,
        session: Session,
        cargo: Cargo,
        peers: Peers,
        link: IngestClient,
        clock: Callable[[], float] = time.monotonic,
        chance: Random | None = None,
    ) -> None:
        self._session = session
        self._world = session.world
        self._cargo = cargo
        self._peers = peers
        self._link = link
        self._clock = clock
        self._chance = chance or Random()
        self._is_told = False
        self._units = Units(session, cargo, clock)
        self._listening = Listening(session, peers, link, clock)
        self._reading = Reading(session, cargo.line, self._units, peers, link, clock)
        self._pulls: set[asyncio.Task[None]] = set()

    async def run(self) -> bool:
        """Until all of it is here, or nobody brings anything. Raises NoSpace, ReadOnlyStore."""
        try:
            async with asyncio.TaskGroup() as group:
                self._listening.start(group)
                await self._units.prepare()
                done = await self._until_done(group)
                self._listening.stop()
                self._reading.stop()
                for task in self._pulls:
                    task.cancel()
        except BaseExceptionGroup as failures:
            raise most_telling(failures) from failures
        finally:
            self._listening.stop()
            self._session.reads([])
        return done

    async def _until_done(self, group: asyncio.TaskGroup) -> bool:
        session = self._session
        while not self._world.is_complete:
            session.changed.clear()
            now_s = self._clock()
            if now_s - max(self._units.moved_s, self._reading.moved_s) > _GIVES_UP_S:
                _log.info("taken together no further digest=%s", self._world.digest.hex[:12])
                return False
            self._tell_of_silence(now_s)
            for lease in overdue(self._world, session.policy, now_s):
                self._world.take_away(lease)
            self._begin_pulls(group, now_s)
            self._reading.begin(group, now_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await session.changed.wait()
            await asyncio.sleep(min(_MOST_PAUSE_S, len(self._world.members) * _PAUSE_S))
        return True

    def _tell_of_silence(self, now_s: float) -> None:
        """Once for each time that nothing comes."""
        silent_s = now_s - max(self._units.moved_s, self._reading.moved_s)
        if silent_s < _TELLS_S:
            self._is_told = False
        elif not self._is_told:
            self._is_told = True
            why = f" ({self._reading.failed})" if self._reading.failed else ""
            path = self._cargo.entry.path
            self._cargo.tell(f"Nothing of {path} comes over the line{why}, and the lab has no more of it yet.")

    def _begin_pulls(self, group: asyncio.TaskGroup, now_s: float) -> None:
        while (pull := next_pull(self._world, self._session.policy, now_s, self._chance)) is not None:
            self._world.fetching.add(pull.unit)
            self._world.members[pull.member].pulls += 1
            # What it is said to be now: until the task begins, nobody may say to have it any more.
            task = group.create_task(self._pull(pull, self._world.nodes[pull.unit]))
            self._pulls.add(task)
            task.add_done_callback(partial(self._pulled, pull))

    async def _pull(self, pull: Pull, expected: bytes) -> None:
        member, unit, world = self._world.members[pull.member], pull.unit, self._world
        try:
            peer = self._peers.get(pull.member)
            if peer is None:
                raise Broken("left")
            began_s = self._clock()
            data = await self._link.unit(peer, world.digest, unit, len(world.cut.span(unit)))
            member.gave(len(data) / max(self._clock() - began_s, 1e-3))
            giver = Giver(f"peer {peer.name}", Kind.LAN)
            if await self._units.take(unit, data, giver, read=False, node=expected):
                member.failures = 0
            else:
                self._listening.bar(member.id, f"gave a unit ({unit}) that is not what it said itself to have")
        except Busy:  # many want what it just read: it is no fault of its own
            member.blocked_until_s = self._clock() + self._session.policy.busy_s * (0.5 + self._chance.random())
        except SourceFault as fault:
            self._failed(member, unit, fault)

    def _pulled(self, pull: Pull, task: asyncio.Task[None]) -> None:
        """Over, one way or another: also where it was cancelled before it began."""
        self._pulls.discard(task)
        self._world.members[pull.member].pulls -= 1
        self._world.fetching.discard(pull.unit)
        self._session.wake()

    def _failed(self, member: Member, unit: int, fault: SourceFault) -> None:
        _log.info("a unit does not come member=%s unit=%d reason=%s", member.id[:8], unit, fault)
        member.failures += 1
        pause_s = min(_LONGEST_BLOCK_S, _FIRST_BLOCK_S * 2 ** (member.failures - 1))
        member.blocked_until_s = self._clock() + pause_s
        if member.failures >= _MOST_FAILURES:
            self._listening.bar(member.id, "does not give what it says to have")
