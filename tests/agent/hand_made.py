"""A peer made by hand, for what no agent of ours would do: it says what a test wants, and its swarm gives what it wants."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from edgecdn.digest import Digest
from edgecdn.lan_wire import BASE_PATH, BlobState, encode_have_answer, parse_have_query
from edgecdn.piecetree import PieceTree
from edgecdn_agent.swarm.session import Swarm
from tests.agent.speaking_peer import SpeakingPeer

__all__ = ["HandMade", "hand_made", "lying_swarm", "pretended_taker"]

_OVER_LOOPBACK = [("127.0.0.0", "127.255.255.255")]


@dataclass
class HandMade(SpeakingPeer):
    """What it claims of blobs (`states`), and how it answers for their trees and bytes; requests are counted."""

    states: dict[Digest, BlobState] = field(default_factory=dict)
    trees: dict[Digest, bytes] = field(default_factory=dict)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    have_answer: bytes | None = None
    """Sent instead of the states."""
    endless_trees: bool = False
    sent_bytes: int = 0
    requests: list[str] = field(default_factory=list)

    def routes(self, app: web.Application) -> None:
        """What it answers beside the event stream."""
        app.router.add_post(f"{BASE_PATH}/have", self._have)
        app.router.add_get(f"{BASE_PATH}/trees/{{digest}}", self._tree)
        app.router.add_get(f"{BASE_PATH}/blobs/{{digest}}", self._blob)
        app.router.add_post(f"{BASE_PATH}/rotten", self._rotten)

    async def _have(self, request: web.Request) -> web.Response:
        self.requests.append("have")
        digests, _ = parse_have_query(await request.read())
        answer = self.have_answer or encode_have_answer({d: self.states[d] for d in digests if d in self.states})
        return web.Response(body=answer, content_type="application/json")

    async def _tree(self, request: web.Request) -> web.StreamResponse:
        self.requests.append("tree")
        if not self.endless_trees:
            return web.Response(body=self.trees[Digest.parse(request.match_info["digest"])])
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(1 << 20))
                self.sent_bytes += 1 << 20
        except ConnectionError:
            return response

    async def _blob(self, request: web.Request) -> web.Response:
        self.requests.append("blob")
        digest = Digest.parse(request.match_info["digest"])
        if digest not in self.blobs:
            return web.Response(status=404)
        data, asked = self.blobs[digest], request.http_range
        start, stop, _ = asked.indices(len(data))
        if asked.start is None:
            return web.Response(body=data, headers={"ETag": f'"{digest.hex}"'})
        about = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}", "ETag": f'"{digest.hex}"'}
        return web.Response(status=206, body=data[start:stop], headers=about)

    async def _rotten(self, request: web.Request) -> web.Response:
        self.requests.append("rotten")
        await request.read()
        return web.Response(status=204)


@asynccontextmanager
async def hand_made(**how: object) -> AsyncIterator[HandMade]:
    """It speaks until the end of the block."""
    peer = HandMade(**how)  # type: ignore[arg-type]  # the fields of HandMade
    await peer.start()
    try:
        yield peer
    finally:
        peer.speaks.set()
        await peer.kill()


@asynccontextmanager
async def pretended_taker(told: list[str], digest: Digest, tree: PieceTree) -> AsyncIterator[HandMade]:
    """It says that it takes a blob too, so that nobody who takes it is alone; its swarm port refuses all.

    Its address is added to `told`, like `AgentLab.others`.
    """
    with socket.socket() as refuses:
        refuses.bind(("127.0.0.1", 0))
        fields = {"swarm_port": refuses.getsockname()[1]}
        async with hand_made(id="d" * 32, name="taker too", beat_s=1.0, fields=fields) as peer:
            peer.states = {digest: BlobState(tree.size, complete=False, root=tree.root.hex())}
            told.append(peer.address)
            yield peer


@asynccontextmanager
async def lying_swarm(digest: Digest, right: bytes, wrong: bytes, tree: PieceTree, folder: Path) -> AsyncIterator[int]:
    """A swarm (its port) that gives `wrong` bytes for a tree of `right` ones.

    An honest session looks at each piece before it gives it for the first time; so the bytes are changed after that.
    """
    liar, first = Swarm(), Swarm()
    folder.mkdir(parents=True)
    path, partial = folder / digest.hex, folder / "partial"
    path.write_bytes(right)
    with partial.open("wb") as file:
        file.truncate(tree.size)
    try:
        for swarm in (liar, first):
            await swarm.start("127.0.0.1", 0)
            swarm.set_reach(_OVER_LOOPBACK)
        liar.seed(digest, tree, folder, lambda _: None)
        taking = first.download(digest, tree, partial, [False] * tree.pieces, lambda _: None, lambda _: None)
        taking.connect("127.0.0.1", liar.port)
        async with asyncio.timeout(10):
            await taking.done.wait()
        await first.close()
        with path.open("r+b") as file:
            file.write(wrong)
        yield liar.port
    finally:
        for swarm in (liar, first):
            await swarm.close()
