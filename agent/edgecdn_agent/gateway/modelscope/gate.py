"""The ModelScope gateway, put together: everything is made here, and closed here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from edgecdn.digest import Digest
from edgecdn.names import RepoId
from edgecdn.settings import Settings
from edgecdn.spans import Span
from edgecdn_agent.deliver.delivery import Delivery, Wanted
from edgecdn_agent.gateway.modelscope.access import Access
from edgecdn_agent.gateway.modelscope.listings import Listings
from edgecdn_agent.gateway.modelscope.local import LocalListings
from edgecdn_agent.gateway.modelscope.metadata import Metadata
from edgecdn_agent.gateway.modelscope.public_answers import PublicAnswers
from edgecdn_agent.gateway.modelscope.relay import ModelScopeRelay
from edgecdn_agent.gateway.modelscope.routes import Blobs, Handler, ModelScopeParts, NotHeld
from edgecdn_agent.gateway.modelscope.upstream import Upstream
from edgecdn_agent.gateway.serving import BlobServer
from edgecdn_agent.gateway.stream import Origin
from edgecdn_agent.holdings.shelf import Holdings

__all__ = ["ModelScopeGate"]

_CLOSE_S = 5.0


class _NoOtherWay:
    """Instead of deliveries and of the origin, for files of which nothing may enter the cache."""

    def get(self, _digest: Digest) -> Delivery | None:
        return None

    def failed(self, _digest: Digest) -> None:
        return None

    @asynccontextmanager
    async def want(self, _wanted: Wanted) -> AsyncIterator[Delivery]:
        raise NotHeld
        yield

    @asynccontextmanager
    async def open(self, _wanted: Wanted, _span: Span | None) -> AsyncIterator[AsyncIterator[bytes]]:
        raise NotHeld
        yield


class ModelScopeGate:
    """`relay` is the origin of the `BlobServer` that gives bytes: ModelScope's for its files, `hubs` for all others.

    `is_public`: what the sharing rule knows of a repo on the Hugging Face hubs (None: nothing).
    """

    def __init__(
        self, settings: Settings, holdings: Holdings, is_public: Callable[[RepoId], bool | None], hubs: Origin
    ) -> None:
        self.upstream = upstream = Upstream(settings)
        self.relay = ModelScopeRelay(upstream, hubs)
        kept = PublicAnswers(settings.home)
        metadata, local = Metadata(upstream, kept), LocalListings(holdings, is_public)
        nowhere_else = _NoOtherWay()
        self._held = BlobServer(holdings, nowhere_else, nowhere_else)
        self._parts = ModelScopeParts(
            upstream=upstream,
            metadata=metadata,
            access=Access(upstream, kept),
            local=local,
            listings=Listings(metadata, local),
            held=self._held,
            relay=self.relay,
        )

    def extension(self, blobs: Blobs) -> Callable[[web.Application], None]:
        """Routes for the local listener, to be added before the Hugging Face gateway, which takes whatever is left."""
        return Handler(self._parts, blobs).add_to

    async def run(self) -> None:
        """Until cancelled; nothing is left open then."""
        try:
            await asyncio.Event().wait()
        finally:
            await self.close()

    async def close(self) -> None:
        """Close connections and threads."""
        self._held.close()
        async with asyncio.timeout(_CLOSE_S):
            await self.upstream.close()
