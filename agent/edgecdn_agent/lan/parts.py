"""What the LAN server needs of the rest of the agent, and nothing more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from edgecdn.digest import Digest
from edgecdn.lan_wire import Asker, BlobState, Hello
from edgecdn.names import CommitId, RepoId, Revision
from edgecdn.pace import Pace
from edgecdn.piecetree import PieceTree
from edgecdn_agent.holdings.held_files import Holding
from edgecdn_agent.lan.guard import Guard, Limits
from edgecdn_agent.lan.sender import BlobSender

__all__ = ["Extension", "LanParts", "Shelf", "Subscribe", "Tools"]

Subscribe = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes what to call after a change; returns what ends that."""


class Shelf(Protocol):
    """The files that are held; `Holdings` is one."""

    def shared(self, digest: Digest) -> Holding | None: ...
    async def tree(self, digest: Digest) -> PieceTree | None: ...
    def open(self, holding: Holding) -> int: ...
    def withdraw(self, digest: Digest) -> None: ...
    async def recheck(self, digest: Digest) -> bool: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What the server lends to an extension: who may have how much, and how files are sent."""

    guard: Guard
    limits: Limits
    sender: BlobSender
    sent: Callable[[str, Asker | None, int], None]


class Extension(Protocol):
    """Answers of another part of the agent, behind the same gate. What each costs it counts itself, with the guard."""

    def routes(self, tools: Tools) -> Iterable[web.RouteDef]:
        """Methods and paths below the base, from now on until `close`; asked for anew at each start."""

    def close(self) -> None:
        """End what goes on."""


async def _no_manifest(_repo: RepoId, _commit: CommitId) -> bytes | None:
    return None


async def _no_ref(_repo: RepoId, _revision: Revision) -> CommitId | None:
    return None


async def _nothing(_digest: Digest) -> None:
    """Where there is no swarm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanParts:
    """All of it. What is left out does nothing, knows nothing, allows everything."""

    shelf: Shelf
    hello: Callable[[], Hello]
    allows: Callable[[str], bool]
    """Whether an address may be served at all."""
    upload: Pace = field(default_factory=Pace)
    downloading: Callable[[], Mapping[Digest, BlobState]] = dict
    """What is on its way here, of repos that may be shared: not complete, but worth knowing."""
    manifest: Callable[[RepoId, CommitId], Awaitable[bytes | None]] = _no_manifest
    """The tree JSON of a commit of a repo that may be shared."""
    ref: Callable[[RepoId, Revision], Awaitable[CommitId | None]] = _no_ref
    told_peers: Callable[[], list[str]] = list
    """The peers this agent knows, `host:port`."""
    changes: Sequence[Subscribe] = ()
    """Where holdings and downloads tell that they changed."""
    peer_changes: Sequence[Subscribe] = ()
    """Where it is told that `told_peers` are other ones."""
    suggest: Callable[[str, int], None] = lambda _host, _port: None
    """An asker may be an agent at this address and port."""
    tree_asked: Callable[[Digest], Awaitable[object]] = _nothing
    """A peer is about to take this blob by the swarm: awaited before it is answered, so that the swarm has it."""
    sent: Callable[[str, Asker | None, int], None] = lambda _host, _asker, _count: None
    """So many bytes of blobs went to this address, and who it says it is."""
    extensions: Sequence[Extension] = ()
    """What else is answered."""
