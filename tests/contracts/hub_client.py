"""A hub and a client of its bytes, for tests of what only HTTP can get wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from edgecdn.events import Kind as SourceKind
from edgecdn.manifest import FileEntry
from edgecdn.sources import Offer
from edgecdn.sources.http import ByteClient, Credentials
from edgecdn.sources.hub import HubSource
from edgecdn.spans import Span
from tests.contracts.test_sources import CONTENTS, REPO, entry_of, manifest_of
from tests.hub import Signer, TestHub, make_repo

PATH = "sub/model.safetensors"
DATA = CONTENTS[PATH]
ENTRY = entry_of(REPO.commits[REPO.main].files[PATH], sha256=False)
SMALL = entry_of(REPO.commits[REPO.main].files["config.json"], sha256=False)
PART = Span(1000, 200_000)
TOKEN = "hf_OnlyForContractTests"


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Client:
    """A hub, and a source that asks it."""

    hub: TestHub
    byte_client: ByteClient
    clock: Clock

    async def offer(
        self, entry: FileEntry = ENTRY, repo: str = "org/name", endpoint: str = ""
    ) -> tuple[HubSource, Offer]:
        source = HubSource(endpoint or self.hub.url, SourceKind.ORIGIN, self.byte_client, connections=4)
        offers = await source.offer(manifest_of(repo, [entry]), [entry])
        return source, offers[entry.digest]

    async def read(self, span: Span = PART, entry: FileEntry = ENTRY, **where: str) -> bytes:
        return await read(*await self.offer(entry, **where), span)


async def read(source: HubSource, offer: Offer, span: Span) -> bytes:
    async with asyncio.timeout(20):
        return b"".join([piece async for piece in source.read(offer, span)])


@asynccontextmanager
async def hub_client() -> AsyncIterator[Client]:
    """A hub with CDN, whose signatures last 60 s of a made-up clock, and a client with its token."""
    clock = Clock()
    gated = make_repo("org/gated", {}, gated="manual")
    private = make_repo("org/private", {}, private=True)
    for repo in (gated, private):
        repo.commits, repo.branches = REPO.commits, REPO.branches
    signer = Signer(lifetime_s=60, clock=clock)
    async with TestHub([REPO, gated, private], tokens=[TOKEN], signer=signer, cdn_host="localhost") as hub:
        made = ByteClient([Credentials(hub.url, TOKEN)])
        yield Client(hub, made, clock)
        await made.close()
