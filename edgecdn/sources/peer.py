"""Another agent of the lab as a source: what it says to have, by ranges over HTTP.

A peer is asked with a session of its own: never with a token, through a proxy, or after a redirect.
Where it gives a piece tree that agrees with what it said before, every whole piece is checked against
it before a byte of the piece is passed on; a peer that breaks its own word is told apart at once. The
tree is the peer's own claim, so the digest of the whole file still decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
from yarl import URL

from edgecdn.digest import Digest
from edgecdn.errors import BadInput
from edgecdn.events import Kind
from edgecdn.lan_wire import (
    AGENT_HEADER,
    BASE_PATH,
    MOST_ANSWER_BYTES,
    MOST_DIGESTS,
    MOST_HELLO_BYTES,
    PROTOCOL,
    PROTOCOL_HEADER,
    Asker,
    BlobState,
    encode_have_query,
    encode_rotten,
    parse_have_answer,
    parse_refusal,
)
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.piecetree import HASH_BYTES, PieceTree, piece_bytes
from edgecdn.sources import Offer
from edgecdn.sources.answers import check_body, check_identity, refuse_status
from edgecdn.sources.faults import Broken, Misbehaved, Missing, SourceFault, WrongPiece
from edgecdn.spans import Span
from edgecdn.version import VERSION

__all__ = ["PeerSource", "peer_session"]

_CONNECT_S = 2.0
"""A machine on the same network answers in milliseconds."""

_SILENCE_S = 5.0
"""No byte for so long is a fault: other peers, or the hubs, go on."""

_ASK_S = 10.0
"""For a whole answer to a have-query or a tree."""

_READ_BUFFER_BYTES = 256 << 10
"""Measured on loopback: 64 KiB to 4 MiB are all alike (1 to 2 GB/s, 0.4 GB/s with each piece checked)."""

_MOST_HELD_BYTES = 64 << 20
"""Small files taken in advance, of one peer in one job; the others are asked for one by one."""

_LARGEST_CHECKED_PIECE_BYTES = 4 << 20
"""A piece is held in memory until it is checked; blobs beyond 128 GiB have larger ones and go unchecked here."""


@dataclass(slots=True)
class _PeerOffer:
    entry: FileEntry
    state: BlobState
    tree: PieceTree | None = None
    tree_asked: asyncio.Lock = field(default_factory=asyncio.Lock)
    tree_known: bool = False

    @property
    def has_pieces(self) -> bool:
        """Whether checking its pieces is worth a request for the tree: not for a file of a single one."""
        length = piece_bytes(self.entry.size)
        return bool(self.state.root) and length < self.entry.size and length <= _LARGEST_CHECKED_PIECE_BYTES


def peer_session() -> aiohttp.ClientSession:
    """A session for all peers of a job; the caller closes it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
        headers={"User-Agent": f"edgecdn/{VERSION}", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=_READ_BUFFER_BYTES,
        trust_env=False,
    )


class PeerSource:
    """One peer, at `base` (its LAN server). The session is the caller's; `me` tells the peer who asks."""

    kind = Kind.LAN
    connections = 4

    def __init__(self, session: aiohttp.ClientSession, name: str, base: URL, me: Asker) -> None:
        self.name = f"peer {name}"
        self._session = session
        self._base = str(base).rstrip("/") + BASE_PATH
        self._headers = {PROTOCOL_HEADER: str(PROTOCOL), AGENT_HEADER: str(me)}

    async def offer(self, manifest: Manifest, wanted: Sequence[FileEntry]) -> Mapping[Digest, Offer]:
        """What the peer says to have complete; small files come with the answer."""
        del manifest  # peers know files by digest alone
        by_digest = {entry.digest: entry for entry in wanted}
        digests = list(by_digest)
        found: dict[Digest, Offer] = {}
        room_bytes = _MOST_HELD_BYTES
        for start in range(0, len(digests), MOST_DIGESTS):
            asked = digests[start : start + MOST_DIGESTS]
            for digest, state in (await self._have(asked, inline=room_bytes > 0)).items():
                room_bytes -= len(state.data or b"")
                entry = by_digest.get(digest)
                if entry is not None and state.complete and state.size == entry.size:
                    found[digest] = _PeerOffer(entry, _true(entry, state))
        return found

    async def read(self, offer: Offer, span: Span) -> AsyncGenerator[bytes, None]:
        """The bytes of `span`; see `Source.read`. Whole pieces inside it were checked."""
        assert isinstance(offer, _PeerOffer)
        if not len(span):
            return
        if offer.state.data is not None:
            yield offer.state.data[span.start : span.stop]
            return
        tree = await self._tree(offer)
        async for piece in self._ranged(offer, span) if tree is None else self._checked(offer, tree, span):
            yield piece

    async def close(self) -> None:
        """Nothing of its own is open."""

    async def _have(self, digests: Sequence[Digest], *, inline: bool) -> Mapping[Digest, BlobState]:
        body = encode_have_query(digests, inline=inline)
        async with self._ask("POST", "have", body) as response:
            answer = await _whole(response, MOST_ANSWER_BYTES)
        try:
            return parse_have_answer(answer)
        except BadInput as error:
            raise Misbehaved(f"answers nonsense ({error})") from error

    async def _tree(self, offer: _PeerOffer) -> PieceTree | None:
        """Its piece tree, asked for once; None where there is none or none can be had."""
        async with offer.tree_asked:
            if not offer.tree_known and offer.has_pieces:
                try:
                    offer.tree = await self._ask_tree(offer)
                except Missing:
                    offer.tree = None
            offer.tree_known = True
            return offer.tree

    async def _ask_tree(self, offer: _PeerOffer) -> PieceTree:
        size = offer.entry.size
        most = HASH_BYTES * -(-size // piece_bytes(size))
        async with self._ask("GET", f"trees/{offer.entry.digest.hex}") as response:
            layer = await _whole(response, most)
        try:
            tree = PieceTree.parse(size, layer)
        except BadInput as error:
            raise Misbehaved(f"gives a piece tree that is none ({error})") from error
        if (await asyncio.to_thread(lambda: tree.root)).hex() != offer.state.root:
            raise Misbehaved("gives a piece tree that is not the one it spoke of")
        return tree

    async def _checked(self, offer: _PeerOffer, tree: PieceTree, span: Span) -> AsyncGenerator[bytes, None]:
        """The bytes of `span`: whole pieces once they are checked, the ends of others as they come."""
        size, length = offer.entry.size, piece_bytes(offer.entry.size)
        held = bytearray()
        at = span.start
        async for data in self._ranged(offer, span):
            held += data
            while held:
                index = at // length
                whole = Span(index * length, min(size, (index + 1) * length))
                if whole.start < span.start or whole.stop > span.stop:
                    part = bytes(held[: whole.stop - at])
                elif len(held) >= len(whole):
                    part = bytes(held[: len(whole)])
                    if not await asyncio.to_thread(tree.matches, index, part):
                        await self._tell_rotten(offer.entry.digest, index)
                        raise WrongPiece(f"gave a piece ({index}) that is not what it said itself to have")
                else:
                    break
                del held[: len(part)]
                at += len(part)
                yield part

    async def _tell_rotten(self, digest: Digest, piece: int) -> None:
        """Have the peer look at its copy; whether it does is its own affair."""
        with suppress(SourceFault):
            async with self._ask("POST", "rotten", encode_rotten(digest, piece)):
                pass

    async def _ranged(self, offer: _PeerOffer, span: Span) -> AsyncGenerator[bytes, None]:
        """The bytes of `span` as they come; exactly so many."""
        entry = offer.entry
        ranged = len(span) < entry.size
        headers = {"Range": f"bytes={span.start}-{span.stop - 1}"} if ranged else {}
        async with self._ask("GET", f"blobs/{entry.digest.hex}", headers=headers) as response:
            check_identity(response.headers, entry, None)
            if check_body(response.status, response.headers, span, entry.size, ranged=ranged):
                raise Misbehaved("gives the whole file where a part was asked for")
            left = len(span)
            async for piece in response.content.iter_any():
                left -= len(piece)
                if left < 0:
                    raise Misbehaved("sent more bytes than were asked for")
                if piece:
                    yield piece
            if left:
                raise Broken("ended its answer early")

    @asynccontextmanager
    async def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One good answer of the peer. Raises a SourceFault for any other."""
        url = URL(f"{self._base}/{path}", encoded=True)
        sent = {**self._headers, **(headers or {})}
        try:
            async with self._session.request(method, url, data=body, headers=sent, allow_redirects=False) as response:
                await _refuse(response)
                yield response
        except TimeoutError as error:
            raise Broken(f"gave no byte for {_SILENCE_S:.0f} s") from error
        except aiohttp.ClientPayloadError as error:
            raise Broken("ended its answer early") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Broken(f"cannot be reached ({type(error).__name__})") from error


def _true(entry: FileEntry, state: BlobState) -> BlobState:
    """The state without bytes that are not the file's: those are asked for again, and judged as any."""
    if state.data is None or Digest.of(entry.digest.kind, state.data) == entry.digest:
        return state
    raise Misbehaved(f"has other bytes for {entry.path}")


async def _refuse(response: aiohttp.ClientResponse) -> None:
    if response.status == 426:
        try:
            said = parse_refusal(await _whole(response, MOST_HELLO_BYTES))
        except BadInput:
            said = "speaks another protocol"
        raise Missing(said)
    refuse_status(response.status, response.headers, datetime.now(tz=UTC))


async def _whole(response: aiohttp.ClientResponse, most: int) -> bytes:
    """A body of `most` bytes at most, soon."""
    if (response.content_length or 0) > most:
        raise Misbehaved(f"announced an answer of {response.content_length} bytes")
    received = bytearray()
    async with asyncio.timeout(_ASK_S):
        async for piece in response.content.iter_any():
            received += piece
            if len(received) > most:
                raise Misbehaved("answers more than was asked for")
    return bytes(received)
