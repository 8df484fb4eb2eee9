"""The gateway's metadata, put together: everything is made here, and closed here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from edgecdn.resolve import LabIndex
from edgecdn.settings import Settings
from edgecdn_agent.gateway.access import Access
from edgecdn_agent.gateway.api import Api
from edgecdn_agent.gateway.finder import Finder
from edgecdn_agent.gateway.hubs import Hubs
from edgecdn_agent.gateway.listings import Listings
from edgecdn_agent.gateway.local import Local
from edgecdn_agent.gateway.memory import Memory
from edgecdn_agent.gateway.metadata import Metadata
from edgecdn_agent.gateway.routes import Blobs, GatewayParts
from edgecdn_agent.gateway.single import SingleFlight
from edgecdn_agent.gateway.upstream import Relay
from edgecdn_agent.holdings.sharing import SharingRule

__all__ = ["Gate"]


class Gate:
    """`finder` and `relay` are for those who give the bytes; `run` is the service of all of it.

    `lab`, `accept_lab`: what peers say of names is taken while no hub answers.
    """

    def __init__(
        self,
        settings: Settings,
        rule: SharingRule,
        lab: LabIndex | None = None,
        *,
        accept_lab: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._single = single = SingleFlight()
        self._hubs = hubs = Hubs(settings, clock)
        self.metadata = Metadata(hubs, Memory(clock=clock), single)
        self.local = Local(settings, lab, accept_lab=accept_lab)
        self.access = Access(rule, hubs, single, self.local.vouched, clock)
        self.listings = Listings(self.metadata, self.local, single)
        self.finder = Finder(self.access, self.listings)
        self.api = Api(self.metadata, self.access, self.listings, self.local)
        self.relay = Relay(settings)
        self.ready = single.ready

    def parts(self, blobs: Blobs) -> GatewayParts:
        """What `add_gateway` needs; `blobs` gives the bytes."""
        return GatewayParts(self.finder, blobs, self.api, self.metadata)

    async def run(self) -> None:
        """Keep questions that nobody waits for any more; until cancelled. Nothing is left open then."""
        try:
            await self._single.run()
        finally:
            async with asyncio.timeout(5):
                await self._hubs.close()
                await self.relay.close()
