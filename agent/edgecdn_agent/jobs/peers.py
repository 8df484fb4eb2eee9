"""The lab of one fetch: peers as sources, the swarm as carrier, and what peers say of names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import aiohttp

from edgecdn.manifest import Manifest
from edgecdn.names import CommitId, RepoId, Revision
from edgecdn.pace import Pace
from edgecdn.resolve import Claim
from edgecdn.sources import Source
from edgecdn.sources.paced import PacedSource
from edgecdn.sources.peer import PeerSource
from edgecdn.transfer.carrier import Carrier
from edgecdn_agent.lab.peers import Peer, PeerChanged, PeerEvent, PeerJoined, Peers
from edgecdn_agent.lan.client import LanClient, peer_url

__all__ = ["JobLab", "LabNames"]

_MOST_KEPT = 1024
"""Sources kept for peers that are gone, in case they come back."""


class JobLab:
    """What `edgecdn.transfer.carrier.Lab` asks for, out of the registry of peers."""

    def __init__(self, peers: Peers, session: aiohttp.ClientSession, pace: Pace, carrier: Carrier) -> None:
        self.carrier = carrier
        self._peers = peers
        self._session = session
        self._pace = pace
        self._made: dict[str, tuple[Peer, Source]] = {}

    def sources(self) -> list[Source]:
        return [self._source(peer) for peer in self._peers.all()]

    def watch(self, joined: Callable[[Source], None]) -> Callable[[], None]:
        def heard(event: PeerEvent) -> None:
            if isinstance(event, PeerJoined | PeerChanged):
                joined(self._source(event.peer))

        return self._peers.subscribe(heard)

    def _source(self, peer: Peer) -> Source:
        """One for each peer, as long as it is where it was."""
        of, source = self._made.pop(peer.id, (None, None))
        if of is None or source is None or _where(of) != _where(peer):
            source = PacedSource(PeerSource(self._session, peer.name, peer_url(peer), self._peers.me), self._pace)
        self._made[peer.id] = peer, source
        if len(self._made) > _MOST_KEPT:
            del self._made[next(iter(self._made))]  # the one that was longest not heard of
        return source


def _where(peer: Peer) -> tuple[str, str, int]:
    return peer.name, peer.host, peer.lan_port


class LabNames:
    """What `edgecdn.resolve.LabIndex` asks for: each peer's word, none of which can be checked."""

    def __init__(self, peers: Peers, lan: LanClient) -> None:
        self._peers = peers
        self._lan = lan

    async def claims(self, repo: RepoId, revision: Revision) -> Sequence[Claim]:
        """The commits peers say a revision stands for, the most named first."""
        peers = self._peers.all()
        said = await asyncio.gather(*(self._commit(peer, repo, revision) for peer in peers))
        names: dict[CommitId, list[str]] = {}
        for peer, commit in zip(peers, said, strict=True):
            if commit is not None:
                names.setdefault(commit, []).append(peer.name)
        found = [Claim(commit, tuple(who)) for commit, who in names.items()]
        return sorted(found, key=lambda claim: -len(claim.peers))

    async def manifest(self, repo: RepoId, commit: CommitId) -> Manifest | None:
        """The listing of a commit most peers agree on."""
        answers = await asyncio.gather(*(self._lan.manifest(peer, repo, commit) for peer in self._peers.all()))
        given = [manifest for manifest in answers if manifest is not None]
        return max(given, key=given.count, default=None)

    async def _commit(self, peer: Peer, repo: RepoId, revision: Revision) -> CommitId | None:
        if revision.commit is None:
            return await self._lan.ref(peer, repo, revision)
        known = await self._lan.manifest(peer, repo, revision.commit)
        return None if known is None else revision.commit
