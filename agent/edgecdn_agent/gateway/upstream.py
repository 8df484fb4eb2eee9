"""The bytes of a file from its hub, for one caller alone: with that caller's token, unverified, kept nowhere.

A hub may send to its storage, by the rules of `edgecdn.sources.reach` and without the token; the signed
address it gives is remembered for that caller, so that a reader of many ranges does not ask each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import quote

from yarl import URL

from edgecdn.settings import Settings
from edgecdn.sources.faults import Broken, SourceFault
from edgecdn.sources.http import ByteClient, Credentials, RememberingResolver
from edgecdn.sources.ranged import RangedOffer, read_ranged
from edgecdn.spans import Span
from edgecdn.token_owner import token_key, token_owner
from edgecdn_agent.deliver.delivery import Wanted

__all__ = ["Relay"]

_MOST_CALLERS = 16
"""Callers whose connections are kept; a laboratory's machine has few."""

_MOST_OFFERS = 1024


@dataclass(slots=True)
class _Line:
    """One caller's connections. `users`: reads under way."""

    client: ByteClient
    users: int = 0
    is_kept: bool = True
    offers: OrderedDict[URL, RangedOffer] = field(default_factory=OrderedDict)


class Relay:
    """Streams from the configured hubs. Close it at the end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._owner = token_owner(settings.hub_endpoints, settings.hub_token_for)
        self._resolver = RememberingResolver()
        self._lines: OrderedDict[str, _Line] = OrderedDict()

    @asynccontextmanager
    async def open(self, wanted: Wanted, span: Span | None) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of `span` (None: all) of a file: exactly so many. Raises SourceFault, here or while they are read.

        The next hub is asked when one gives none; the first piece is there before this is entered.
        """
        wants = span or Span(0, wanted.entry.size)
        async with self._line(wanted.token) as line:
            reading, first = await self._begin(line, wanted, wants)
            async with aclosing(reading):
                yield _with_first(first, reading)

    async def close(self) -> None:
        """Close all connections."""
        while self._lines:
            _, line = self._lines.popitem()
            await line.client.close()

    async def _begin(self, line: _Line, wanted: Wanted, span: Span) -> tuple[AsyncGenerator[bytes, None], bytes]:
        fault: SourceFault = Broken("is not asked (HF_HUB_OFFLINE is set)")
        for endpoint in self._endpoints(wanted):
            offer = self._offer(line, endpoint, wanted)
            for _ in range(2):  # twice: a remembered address may have expired
                remembered = offer.direct
                reading = read_ranged(line.client, offer, span)
                try:
                    return reading, await anext(reading, b"")
                except SourceFault as error:
                    fault = error
                    if remembered is None:
                        break
        raise fault

    def _endpoints(self, wanted: Wanted) -> Sequence[str]:
        """A caller's own file only comes from the hub its token is for."""
        if self._settings.offline:
            return ()
        if wanted.hub or not wanted.page:
            return ()
        endpoints = self._settings.hub_endpoints
        return endpoints if wanted.token is None or self._owner is None else (self._owner,)

    def _offer(self, line: _Line, endpoint: str, wanted: Wanted) -> RangedOffer:
        commit = wanted.manifest.commit
        base = f"{endpoint}/{wanted.manifest.repo.url_path}/resolve/{commit}/"
        url = URL(base + quote(str(wanted.entry.path)), encoded=True)
        offer = line.offers.get(url)
        if offer is None:
            offer = line.offers[url] = RangedOffer(wanted.entry, commit, url)
            if len(line.offers) > _MOST_OFFERS:
                line.offers.popitem(last=False)
        return offer

    @asynccontextmanager
    async def _line(self, token: str | None) -> AsyncIterator[_Line]:
        """The caller's connections; they outlive a read, unless other callers came meanwhile."""
        key = token_key(token)
        line = self._lines.get(key)
        if line is None:
            own = [Credentials(self._owner, token)] if token and self._owner else []
            line = self._lines[key] = _Line(ByteClient(own, resolver=self._resolver))
        self._lines.move_to_end(key)
        line.users += 1
        try:
            await self._let_go()
            yield line
        finally:
            line.users -= 1
            if not line.is_kept and not line.users:
                await line.client.close()

    async def _let_go(self) -> None:
        while len(self._lines) > _MOST_CALLERS:
            _, line = self._lines.popitem(last=False)
            line.is_kept = False
            if not line.users:
                await line.client.close()


async def _with_first(first: bytes, reading: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    if first:
        yield first
    async for piece in reading:
        yield piece
