"""The lab as one carrier: a blob that several machines take is taken together, one that others take by the swarm in it.

Who is alone leaves a blob to the sources, which use more of the line than one machine of many would, and is
called for when somebody else wants the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing, suppress
from random import Random

from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import BadInput, EdgecdnError
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry
from edgecdn.names import RepoId
from edgecdn.piecetree import PieceTree
from edgecdn.spans import UNIT_BYTES
from edgecdn.transfer.carrier import Cargo
from edgecdn_agent.ingest.book import Book
from edgecdn_agent.ingest.disputes import false_givers, given_by
from edgecdn_agent.ingest.link import IngestClient, StreamFault
from edgecdn_agent.ingest.session import Session
from edgecdn_agent.ingest.taking import Taking
from edgecdn_agent.ingest.units import hash_here
from edgecdn_agent.ingest.world import Presence
from edgecdn_agent.lab.peers import Peer, Peers
from edgecdn_agent.swarm.carrier import SwarmCarrier

__all__ = ["LabCarrier"]

_log = logging.getLogger(__name__)

_MEET_S = 0.5
"""How long peers may take to say whether they take a blob too; on one switch they answer in milliseconds."""

_RESTS_S, _MOST_RESTS_S = 15.0, 240.0
"""Where nobody brought anything for long, and others still take it, it is tried again after so long, doubling."""

_MUTE_S = 30.0
"""How long a peer that did not answer in time is not waited for: files may be many."""

_MANY_HOLDERS = 2
"""Machines that have a blob, from which the swarm is the better way to it."""

_TURNS = 3
"""How often what readers gave is looked at again."""


class LabCarrier:
    """A `Carrier`. `may_share` tells whether a repo's bytes may be given away: who takes together gives too."""

    kind = Kind.LAN

    def __init__(
        self,
        swarm: SwarmCarrier,
        book: Book,
        link: IngestClient,
        peers: Peers,
        may_share: Callable[[RepoId], bool],
        chance: Random | None = None,
    ) -> None:
        self.name = swarm.name
        self._swarm = swarm
        self._book = book
        self._link = link
        self._peers = peers
        self._may_share = may_share
        self._chance = chance or Random()
        self._by_swarm: set[Digest] = set()
        self._mute: dict[str, float] = {}
        """Peers that answer late, and until when they are not asked."""
        self._doubtful: dict[Digest, Session] = {}
        """Blobs that others must find out about, until they are verified: who said what of them."""

    def takes(self, entry: FileEntry) -> bool:
        """Files of several units: a smaller one is soon here, however often it comes."""
        return entry.digest.kind is DigestKind.SHA256 and entry.size > UNIT_BYTES

    async def carry(self, cargo: Cargo) -> bool:
        """See `edgecdn.transfer.carrier.Carrier`."""
        entry = cargo.entry
        if not self._may_share(cargo.manifest.repo):
            return False
        if await self._is_for_the_swarm(entry):
            self._book.leave(entry.digest, cargo.path)
            return await self._by_the_swarm(cargo)
        try:
            session = await self._book.begin(cargo.manifest.repo, entry.digest, entry.size, cargo.path)
        except OSError as error:
            _log.info("not taken together digest=%s reason=%s", entry.digest.hex[:12], error)
            return False
        if session is None:
            return False
        try:
            return await self._carry(cargo, session)
        except BaseException as error:
            self._book.end(entry.digest)
            if isinstance(error, EdgecdnError) or not isinstance(error, Exception):
                raise
            _log.exception("taking together failed digest=%s", entry.digest.hex[:12])
            return False  # the sources go on: a fetch must not fail for it

    async def _carry(self, cargo: Cargo, session: Session) -> bool:
        entry = cargo.entry
        if session.joined.is_set() or await self._others_take(entry.digest) or session.joined.is_set():
            if await Taking(session, cargo, self._peers, self._link).run():
                return False
            session.rest()
        elif self._swarm.takes(entry):
            await self._by_the_swarm(cargo)
        return True

    async def _by_the_swarm(self, cargo: Cargo) -> bool:
        """Where others take it by the swarm; else it is told when they do."""
        again = await self._swarm.carry(cargo)
        if again:
            self._by_swarm.add(cargo.entry.digest)
        return again

    async def _is_for_the_swarm(self, entry: FileEntry) -> bool:
        """Whether several machines have it, and none takes it together with others by now.

        Of many holders the swarm takes from each at once. Of one, a crowd has it hardly later together, with no tree
        to wait for: measured with 8 takers on 100 Mbit/s, 1.25 x bytes / link, bare libtorrent 1.22.
        """
        if not self._swarm.takes(entry) or not self._peers.all():
            return False
        try:
            async with asyncio.timeout(_MEET_S):
                if await self._swarm.holders(entry) < _MANY_HOLDERS:
                    return False
        except TimeoutError:
            return False
        return not await self._others_take(entry.digest, are_at_it=True)

    async def called_for(self, cargo: Cargo) -> None:
        """When somebody else takes it too: together, or by the swarm."""
        digest = cargo.entry.digest
        session = self._book.of(digest, cargo.path)
        waits: list[asyncio.Future[object]] = [asyncio.get_running_loop().create_future()]  # forever
        if session is not None:
            waits.append(asyncio.ensure_future(self._is_joined(session, cargo)))
        if digest in self._by_swarm:
            self._by_swarm.discard(digest)
            waits.append(asyncio.ensure_future(self._swarm.called_for(cargo)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._book.leave(digest, cargo.path)
            raise
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _is_joined(self, session: Session, cargo: Cargo) -> None:
        """Return when others take it too: not before it has rested, where nothing came of them."""
        if session.rests:
            await asyncio.sleep(min(_MOST_RESTS_S, _RESTS_S * 2 ** (session.rests - 1)))
        while not session.joined.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_RESTS_S):
                    await session.joined.wait()
            # Whoever listens may have become a peer since; one that is none counts for nothing.
            if session.is_listened_to and await self._others_take(session.world.digest):
                break
        await hash_here(session, cargo)  # while the sources still give: then nothing has to wait for it

    async def disputed(self, cargo: Cargo) -> bool:
        """See `edgecdn.transfer.carrier.Carrier`."""
        digest = cargo.entry.digest
        session = self._book.of(digest, cargo.path)
        if session is None:
            return False
        session.disputes += 1
        try:
            found = session.disputes <= _TURNS and await self._replaced(cargo, session)
        except EdgecdnError:
            raise
        except Exception:  # noqa: BLE001 - logged; others find out: a fetch must not fail for it
            _log.exception("a dispute failed digest=%s", digest.hex[:12])
            found = False
        if not found:  # what is here of it is not as we said: others must not get it of us
            self._doubtful[digest] = session
            self._book.end(digest)
        return found

    async def _replaced(self, cargo: Cargo, session: Session) -> bool:
        """Whether what false readers gave was found, and came anew."""
        world = session.world
        false = await false_givers(world, cargo, self._chance)
        if not false:
            return False
        wrong = given_by(world, false)
        readers = false & set(world.readers.values())
        for member in readers:
            cargo.tell(f"{self._named(member)} gave wrong bytes of {cargo.entry.path}; they are asked for again.")
        for member in readers & world.members.keys():
            world.leave(member, Presence.BARRED, session.clock())
        await cargo.forget([world.cut.span(unit) for unit in wrong])
        session.lost(wrong)
        return await Taking(session, cargo, self._peers, self._link).run()

    def built(self, entry: FileEntry, tree: PieceTree) -> None:
        """Remember the tree; who said to have read something else from the line is banned."""
        self._swarm.built(entry, tree)
        session = self._book.get(entry.digest) or self._doubtful.pop(entry.digest, None)
        for member in () if session is None else session.liars(tree):
            self._peers.ban(member, f"read {entry.digest.hex[:12]} from the line and announced other bytes")
        self._book.keep(entry.digest)

    def left(self, cargo: Cargo) -> None:
        """Its job has ended."""
        self._doubtful.pop(cargo.entry.digest, None)
        self._book.leave(cargo.entry.digest, cargo.path)

    async def _others_take(self, digest: Digest, *, are_at_it: bool = False) -> bool:
        """Whether one of the peers takes it together with others, or (not `are_at_it`) would with us."""
        now_s = asyncio.get_running_loop().time()
        peers = [peer for peer in self._peers.all() if self._mute.get(peer.id, 0.0) <= now_s]
        asked = {asyncio.ensure_future(self._takes(peer, digest, are_at_it)): peer for peer in peers}
        try:
            async with asyncio.timeout(_MEET_S):
                for answer in asyncio.as_completed(asked):
                    if await answer:
                        return True
        except TimeoutError:
            late = [peer.id for task, peer in asked.items() if not task.done()]
            still = {peer: until_s for peer, until_s in self._mute.items() if until_s > now_s}
            self._mute = still | dict.fromkeys(late, now_s + _MUTE_S)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return False

    async def _takes(self, peer: Peer, digest: Digest, are_at_it: bool) -> bool:
        try:
            async with aclosing(self._link.stream(peer, digest)) as lines:
                async for told in lines:
                    return not told.done and not (are_at_it and told.preparing)
        except (StreamFault, BadInput) as error:
            _log.debug("not taken by name=%s why=%s", peer.name, type(error).__name__)
        return False

    def _named(self, member: str) -> str:
        peer = self._peers.get(member)
        return f"A machine that left ({member[:8]})" if peer is None else peer.name
