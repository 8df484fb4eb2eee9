"""The blobs that are taken together here: found by the LAN server, kept a while after they are whole."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from edgecdn.digest import Digest
from edgecdn.names import RepoId
from edgecdn_agent.ingest.deciding import Policy
from edgecdn_agent.ingest.session import Blobs, Session, Stage
from edgecdn_agent.ingest.world import UnitMap, World
from edgecdn_agent.lab.peers import Peers

__all__ = ["Book"]

_log = logging.getLogger(__name__)

_LINGERS_S = 60.0
"""How long members that are behind are served from a blob that is whole here."""

_LOOKS_S = 5.0


class Book:
    """Sessions by digest. `run` closes those that nobody needs any more."""

    def __init__(
        self,
        peers: Peers,
        may_share: Callable[[RepoId], bool],
        policy: Policy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._peers = peers
        self._may_share = may_share
        self._policy = policy
        self._clock = clock
        self._sessions: dict[Digest, Session] = {}
        self._whole_s: dict[Digest, float] = {}

    def get(self, digest: Digest) -> Session | None:
        """The one of a blob, where it is taken together or may be, as long as its repo may be shared."""
        session = self._sessions.get(digest)
        return session if session is not None and self._may_share(session.repo) else None

    def of(self, digest: Digest, path: Path) -> Session | None:
        """The one of a blob whose bytes are in this file."""
        session = self._sessions.get(digest)
        return session if session is not None and session.path == path else None

    async def begin(self, repo: RepoId, digest: Digest, size: int, path: Path) -> Session | None:
        """Take part in a blob whose bytes are, or will be, in the file at `path`. Raises OSError.

        None: another job takes it already, for another repo.
        """
        known = self._sessions.get(digest)
        if known is not None and known.stage is not Stage.WHOLE:
            if known.path != path:
                return None
            known.begin_anew()
            return known
        fd = await _open(path)
        self.end(digest)
        world = World(digest, UnitMap(size), self._peers.me.id, self._clock())
        made = Session(world, repo, path, self._policy, Blobs(self._ours, self._lab), self._is_peer, self._clock)
        made.serve_from(fd)
        self._sessions[digest] = made
        return made

    def keep(self, digest: Digest) -> None:
        """It is whole and verified: members that are behind still get it of us."""
        session = self._sessions.get(digest)
        if session is not None and session.stage is Stage.WHOLE:
            self._whole_s[digest] = self._clock()

    def leave(self, digest: Digest, path: Path) -> None:
        """The job that brought the file at `path` has ended: what was not kept is taken no more."""
        session = self._sessions.get(digest)
        if session is not None and session.path == path and digest not in self._whole_s:
            self.end(digest)

    def end(self, digest: Digest) -> None:
        """It is taken no more."""
        self._whole_s.pop(digest, None)
        session = self._sessions.pop(digest, None)
        if session is not None:
            session.end()

    async def run(self) -> None:
        """Close what was whole long enough, or is listened to by nobody; until cancelled, when all are closed."""
        try:
            while True:
                await asyncio.sleep(_LOOKS_S)
                now_s = self._clock()
                for digest, whole_s in list(self._whole_s.items()):
                    if now_s - whole_s > _LINGERS_S or not self._sessions[digest].is_listened_to:
                        self.end(digest)
        finally:
            for digest in list(self._sessions):
                self.end(digest)

    def _ours(self) -> int:
        """How many we take together with others now."""
        return sum(session.stage is Stage.TAKING for session in self._sessions.values())

    def _lab(self) -> int:
        """How many are taken together now, as far as we know."""
        worlds = [session.world for session in self._sessions.values() if session.stage is Stage.TAKING]
        told = [member.blobs for world in worlds for member in world.here() if not member.is_done]
        return max([1, len(worlds), *told])

    def _is_peer(self, member: str, host: str) -> bool:
        """Whether it is who it says to be, as far as an address tells."""
        peer = self._peers.get(member)
        return peer is not None and host in (peer.host, *peer.addresses)


async def _open(path: Path) -> int:
    """A descriptor of a file. A thread cannot be stopped: what it opens after we were cancelled is closed."""
    opening = asyncio.ensure_future(asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise


def _close(opened: asyncio.Future[int]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        os.close(opened.result())
