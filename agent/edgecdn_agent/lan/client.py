"""What an agent asks its peers over HTTP, beside ranges of blobs: who has what, piece trees, refs, manifests.

Every answer is bounded, checked by `edgecdn.lan_wire`, and may be a lie; a peer that fails or answers
nonsense has nothing, and that is all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from edgecdn.cache.trees import decode_tree
from edgecdn.digest import Digest
from edgecdn.errors import EdgecdnError
from edgecdn.lan_wire import (
    AGENT_HEADER,
    BASE_PATH,
    MOST_ANSWER_BYTES,
    MOST_HELLO_BYTES,
    PROTOCOL,
    PROTOCOL_HEADER,
    Asker,
    BlobState,
    encode_have_query,
    encode_rotten,
    parse_have_answer,
    parse_ref,
)
from edgecdn.manifest import Manifest
from edgecdn.names import CommitId, RepoId, Revision
from edgecdn.piecetree import PieceTree, piece_count
from edgecdn_agent.lab.peers import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["LanClient", "peer_url"]

_log = logging.getLogger(__name__)

_ANSWER_S = 3.0
"""A peer on the same switch answers in milliseconds; one that takes longer is asked later, or not at all."""

_LARGE_ANSWER_S = 20.0
_MOST_MANIFEST_BYTES = 64 << 20


def peer_url(peer: Peer) -> URL:
    """Where a peer's LAN server is."""
    host = f"[{peer.host}]" if ":" in peer.host else peer.host
    return URL(f"http://{host}:{peer.lan_port}", encoded=True)


class LanClient:
    """Asks peers. The session is the caller's; no method raises for what a peer does."""

    def __init__(self, session: aiohttp.ClientSession, me: Asker) -> None:
        self._session = session
        self._headers = {PROTOCOL_HEADER: str(PROTOCOL)}
        self.introduce(me)

    def introduce(self, me: Asker) -> None:
        """Say from now on who asks, and where it is itself reached."""
        self._headers[AGENT_HEADER] = str(me)

    async def have(self, peer: Peer, digests: Sequence[Digest]) -> Mapping[Digest, BlobState]:
        """What it claims to have of some blobs."""
        body = encode_have_query(digests, inline=False)
        answer = await self._ask(peer, "POST", "/have", MOST_ANSWER_BYTES, body)
        try:
            return {} if answer is None else parse_have_answer(answer)
        except EdgecdnError as error:
            _log.info("%s answered nonsense: %s", peer.name, error)
            return {}

    async def who_has(self, peers: Iterable[Peer], digest: Digest) -> list[tuple[Peer, BlobState]]:
        """Which of `peers` claim to have a blob, or part of it."""
        asked = list(peers)
        answers = await asyncio.gather(*(self.have(peer, [digest]) for peer in asked))
        return [(peer, said[digest]) for peer, said in zip(asked, answers, strict=True) if digest in said]

    async def tree(self, peer: Peer, digest: Digest, size: int) -> PieceTree | None:
        """The piece tree it claims for a blob. Asking has its swarm ready to give the blob."""
        most = 32 * piece_count(size)
        layer = await self._ask(peer, "GET", f"/trees/{digest.hex}", most, limit_s=_LARGE_ANSWER_S)
        try:
            return None if layer is None else PieceTree.parse(size, layer)
        except EdgecdnError as error:
            _log.info("%s gave a piece tree that is none: %s", peer.name, error)
            return None

    async def wake(self, peer: Peer, digest: Digest) -> None:
        """Have its swarm ready to give a blob whose tree is known already."""
        await self._ask(peer, "HEAD", f"/trees/{digest.hex}", 0)

    async def rotten(self, peer: Peer, digest: Digest, piece: int) -> None:
        """Tell it that its copy of a blob is wrong."""
        await self._ask(peer, "POST", "/rotten", MOST_HELLO_BYTES, encode_rotten(digest, piece))

    async def ref(self, peer: Peer, repo: RepoId, revision: Revision) -> CommitId | None:
        """The commit a revision stands for there."""
        answer = await self._ask(peer, "GET", f"/refs/{_repo_path(repo)}/{revision}", MOST_HELLO_BYTES)
        try:
            return None if answer is None else parse_ref(answer)
        except EdgecdnError:
            return None

    async def manifest(self, peer: Peer, repo: RepoId, commit: CommitId) -> Manifest | None:
        """The listing it claims for a commit."""
        path = f"/manifests/{_repo_path(repo)}/{commit.hex}"
        answer = await self._ask(peer, "GET", path, _MOST_MANIFEST_BYTES, limit_s=_LARGE_ANSWER_S)
        try:
            return None if answer is None else await asyncio.to_thread(decode_tree, answer, repo, commit)
        except EdgecdnError as error:
            _log.info("%s gave a listing that is none: %s", peer.name, error)
            return None

    async def _ask(
        self, peer: Peer, method: str, path: str, most: int, body: bytes | None = None, *, limit_s: float = _ANSWER_S
    ) -> bytes | None:
        """The body of a good answer; None for anything else."""
        try:
            async with asyncio.timeout(limit_s), self._request(peer, method, path, body) as response:
                if response.status not in (200, 204) or (response.content_length or 0) > most:
                    return None
                received = bytearray()
                async for piece in response.content.iter_any():
                    received += piece
                    if len(received) > most:
                        return None
                return bytes(received)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            _log.debug("%s did not answer %s: %s", peer.name, path, error or type(error).__name__)
            return None

    @asynccontextmanager
    async def _request(
        self, peer: Peer, method: str, path: str, body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = URL(f"{peer_url(peer)}{BASE_PATH}{path}")
        async with self._session.request(
            method, url, data=body, headers=self._headers, allow_redirects=False
        ) as response:
            yield response


def _repo_path(repo: RepoId) -> str:
    return f"{repo.type.value}/{repo.name}"
