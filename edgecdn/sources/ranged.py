"""Reading spans of a file by HTTP from a server that may redirect to signed storage addresses.

The address the first answer leads to is remembered, so that later ranges go straight there; when
it is no longer accepted (its signature expired) the server is asked again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from yarl import URL

from edgecdn.manifest import FileEntry
from edgecdn.names import CommitId
from edgecdn.sources.answers import check_body, check_identity, refuse_status
from edgecdn.sources.faults import Broken, Denied, Misbehaved, Missing, NoRanges
from edgecdn.sources.http import ByteClient
from edgecdn.spans import Span

__all__ = ["HTTP_LIMIT_BYTES", "RangedOffer", "read_ranged"]

HTTP_LIMIT_BYTES = 50_000_000_000
"""Files larger than this may be refused by a hub's plain HTTP storage (docs/protocol.md)."""

_TOO_LARGE = frozenset({400, 403, 413, 416})


@dataclass(slots=True)
class RangedOffer:
    """One file at one server.

    `commit`: what its answers must speak of (None: it has no commits). `direct`: where the last
    redirect led. `whole_only`: it ignores Range.
    """

    entry: FileEntry
    commit: CommitId | None
    url: URL
    direct: URL | None = None
    whole_only: bool = False


class _Expired(Broken):
    """A remembered storage address is refused: worth one fresh signature."""


async def read_ranged(client: ByteClient, offer: RangedOffer, span: Span) -> AsyncGenerator[bytes, None]:
    """The bytes of `span`; see `Source.read`."""
    if not len(span):
        return
    ranged = not offer.whole_only and len(span) < offer.entry.size
    headers = {"Range": f"bytes={span.start}-{span.stop - 1}"} if ranged else {}
    remembered = offer.direct
    try:
        async with client.get(remembered or offer.url, headers) as (response, hops):
            for answer in (*hops, response):
                if answer.url.origin() == offer.url.origin():
                    check_identity(answer.headers, offer.entry, offer.commit)
            _refuse(response, offer, fresh=remembered is None)
            skip = check_body(response.status, response.headers, span, offer.entry.size, ranged=ranged)
            if hops:
                offer.direct = response.url
            async for piece in _body(response, skip, len(span)):
                yield piece
    except NoRanges:
        offer.whole_only = True
        raise
    except _Expired:
        if offer.direct == remembered:  # another request may have got a fresh one meanwhile
            offer.direct = None
        raise


def _refuse(response: aiohttp.ClientResponse, offer: RangedOffer, *, fresh: bool) -> None:
    at_server = response.url.origin() == offer.url.origin()
    try:
        refuse_status(response.status, response.headers, datetime.now(tz=UTC))
    except (Denied, Missing, Misbehaved) as fault:
        if not fresh:
            raise _Expired(f"no longer accepts its storage address ({fault})") from fault
        if offer.entry.size > HTTP_LIMIT_BYTES and response.status in _TOO_LARGE:
            raise Missing(f"refuses so large a file by plain HTTP ({fault})") from fault
        if at_server or isinstance(fault, Misbehaved):
            raise
        raise Misbehaved(f"sends to {response.url.host}, which refuses ({fault})") from fault


async def _body(response: aiohttp.ClientResponse, skip: int, wanted: int) -> AsyncGenerator[bytes, None]:
    """Exactly `wanted` bytes of the body after the first `skip`; Broken when too short, Misbehaved when too long."""
    exact = skip == 0
    async for piece in response.content.iter_any():
        data = piece[skip:] if skip else piece
        skip = max(0, skip - len(piece))
        if len(data) > wanted:
            if exact:
                raise Misbehaved("sent more bytes than were asked for")
            data = data[:wanted]
        wanted -= len(data)
        if data:
            yield data
        if not wanted and not exact:
            return
    if wanted:
        raise Broken("ended its answer early")
