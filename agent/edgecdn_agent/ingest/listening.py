"""Listening to the other members: whoever takes the blob, for as long as it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from edgecdn.errors import BadInput
from edgecdn_agent.ingest.link import Ended, IngestClient, NotThere, Silent
from edgecdn_agent.ingest.session import Session
from edgecdn_agent.ingest.wire import Told
from edgecdn_agent.ingest.world import Presence
from edgecdn_agent.lab.peers import Peer, PeerEvent, PeerJoined, Peers

__all__ = ["Listening"]

_log = logging.getLogger(__name__)

_AGAIN_S = 1.0
"""When one that went silent, or cut us, is called again."""

_CALLS = 3
"""How often one is called that does not answer and never did."""


class Listening:
    """One job's streams from all peers that take its blob. What they say is told to the session's world."""

    def __init__(self, session: Session, peers: Peers, link: IngestClient, clock: Callable[[], float]) -> None:
        self._session = session
        self._world = session.world
        self._peers = peers
        self._link = link
        self._clock = clock
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._unsubscribe: Callable[[], None] | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        """Call all peers, those that come later, and those that call us."""
        self._group = group
        self._unsubscribe = self._peers.subscribe(self._on_peer)
        self._session.on_listener = self._heard_from
        for peer in self._peers.all():
            self._listen(peer)

    def stop(self) -> None:
        """Listen to nobody any more. Safe to call twice."""
        self._group = self._session.on_listener = None
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        for stream in self._streams.values():
            stream.cancel()

    def bar(self, member: str, reason: str) -> None:
        """Use nothing of a member any more."""
        _log.warning("a member is not used any more member=%s reason=%s", member[:8], reason)
        self._world.leave(member, Presence.BARRED, self._clock())
        stream = self._streams.get(member)
        if stream is not None:
            stream.cancel()

    def _heard_from(self, member: str) -> None:
        """A peer listens to us: it takes part, so we listen to it."""
        peer = self._peers.get(member)
        if peer is not None:
            self._listen(peer)

    def _on_peer(self, event: PeerEvent) -> None:
        if isinstance(event, PeerJoined):
            self._listen(event.peer)

    def _listen(self, peer: Peer) -> None:
        known = self._world.members.get(peer.id)
        if self._group is None or peer.id in self._streams or (known and known.presence is Presence.BARRED):
            return
        task = self._group.create_task(self._follow(peer))
        self._streams[peer.id] = task
        task.add_done_callback(lambda _: self._streams.pop(peer.id, None))

    async def _follow(self, peer: Peer) -> None:
        """What one member says, until it leaves; one that went silent, or was cut off, is called again."""
        calls = 0
        while calls < _CALLS or self._presence(peer) is Presence.SILENT:
            calls += 1
            try:
                async with aclosing(self._link.stream(peer, self._world.digest)) as lines:
                    async for told in lines:
                        self._hear(peer, told)
                        calls = 0
            except NotThere:
                return self._left(peer, Presence.GONE)
            except Ended as ended:
                self._left(peer, Presence.GONE)
                if ended.refused:
                    return None
            except Silent:
                self._left(peer, Presence.SILENT)
            except BadInput as error:
                if peer.id in self._world.members:
                    self.bar(peer.id, f"says nonsense ({error})")
                return None
            await asyncio.sleep(_AGAIN_S)
        return None

    def _presence(self, peer: Peer) -> Presence | None:
        member = self._world.members.get(peer.id)
        return None if member is None else member.presence

    def _left(self, peer: Peer, how: Presence) -> None:
        member = self._world.members.get(peer.id)
        if member is not None and member.presence is Presence.HERE:
            _log.info("a member left name=%s how=%s", peer.name, how)
            self._world.leave(peer.id, how, self._clock())
            self._session.wake()

    def _hear(self, peer: Peer, told: Told) -> None:
        world, now_s = self._world, self._clock()
        member = world.members.get(peer.id)
        if member is not None and member.presence is Presence.BARRED:
            return  # what it said before it was cut
        if member is None or member.presence is not Presence.HERE:
            if told.size != world.cut.size:  # the first line of a stream says it
                return
            member = world.join(peer.id, now_s)
            self._session.joined.set()
        over = [] if told.leases is None else world.told_leases(peer.id, told.leases, now_s)
        for unit in told.lost:
            world.has_lost(peer.id, unit)
        for has in told.have:
            world.has(peer.id, has.unit, has.node, read=has.read, now_s=now_s)
            if has.read:
                self._session.claimed(peer.id, has.unit, has.node)
        world.over(peer.id, over)
        member.hear(now_s, preparing=told.preparing, done=told.done, rate=told.rate, blobs=told.blobs)
        self._session.wake()
