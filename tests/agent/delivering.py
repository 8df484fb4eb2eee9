"""Deliveries in the test's own process, beside fetches of the same agent: what they are made of."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgecdn.cache.catalog import Catalog
from edgecdn.events import Event
from edgecdn.fileset import FileSet
from edgecdn.local_fetch import FetchParts, open_pipeline
from edgecdn.manifest import Manifest
from edgecdn.names import ModelRef, RepoId
from edgecdn.pace import Pace
from edgecdn.pipeline import Fetched
from edgecdn.settings import Settings, load_settings
from edgecdn.sources import Source
from edgecdn.together import Together
from edgecdn_agent.deliver.bringing import Bringer
from edgecdn_agent.deliver.deliveries import Deliveries
from edgecdn_agent.deliver.delivery import Delivery, DeliveryState, Wanted
from edgecdn_agent.holdings.sharing import SharingRule
from edgecdn_agent.traffic import Traffic
from tests.hub import TestHub

LIMIT_S = 30.0
"""A safety net for every wait."""


class NoLab:
    """Nobody is there."""

    carrier = None

    def sources(self) -> list[Source]:
        return []

    def watch(self, _joined: Callable[[Source], None]) -> Callable[[], None]:
        return lambda: None


@dataclass
class Desk:
    """An agent's fetching parts."""

    settings: Settings
    together: Together
    catalog: Catalog
    deliveries: Deliveries
    rule: SharingRule
    published: list[RepoId] = field(default_factory=list)

    async def manifest(self, model: str) -> Manifest:
        """Of a repo's main branch."""
        async with open_pipeline(self.settings, FetchParts()) as pipeline:
            return (await pipeline.prepare(ModelRef.parse(model), FileSet())).resolved.manifest

    async def fetch(
        self, model: str, listener: Callable[[Event], None] | None = None, **files: Sequence[str]
    ) -> Fetched:
        """As a job of the agent does it."""
        parts = FetchParts(listener=listener, together=self.together)
        async with open_pipeline(self.settings, parts) as pipeline:
            chosen = {name: tuple(patterns) for name, patterns in files.items()}
            return await pipeline.fetch(ModelRef.parse(model), FileSet(**chosen))  # type: ignore[arg-type]

    def blob(self, wanted: Wanted) -> Path:
        """Where the finished file is."""
        return self.settings.cache_dir / wanted.manifest.repo.folder / "blobs" / wanted.entry.digest.hex

    def link(self, wanted: Wanted) -> Path:
        """Where a user finds it."""
        commit = wanted.manifest.commit.hex
        return self.settings.cache_dir / wanted.manifest.repo.folder / "snapshots" / commit / str(wanted.entry.path)

    def partials(self) -> list[Path]:
        """Files on their way."""
        return sorted(self.settings.cache_dir.glob("*/blobs/*.incomplete"))


@asynccontextmanager
async def desk(base: Path, hub: TestHub, *, grace_s: float = 30.0, **named: str) -> AsyncIterator[Desk]:
    """Deliveries that run; everything they had is given back at the end."""
    environment = {
        "EDGECDN_HOME": str(base / "home"),
        "HF_HUB_CACHE": str(base / "cache"),
        "EDGECDN_HUB_ENDPOINTS": hub.url,
        "EDGECDN_HUB_MODELSCOPE": "",
        "EDGECDN_FETCH_PATIENCE": "20s",
        **{f"EDGECDN_{name.upper()}": value for name, value in named.items()},
    }
    settings = load_settings(environment)
    catalog = Catalog(settings.home)
    together = Together(catalog=catalog)
    rule = SharingRule(settings, catalog)
    published: list[RepoId] = []
    bringer = Bringer(settings, NoLab, rule, Pace(), published.append, together)  # type: ignore[arg-type]
    deliveries = Deliveries(settings.cache_dir, bringer, together.arrivals, Traffic(), catalog, grace_s=grace_s)
    async with asyncio.TaskGroup() as group:
        service = group.create_task(deliveries.run())
        await deliveries.ready.wait()
        try:
            yield Desk(settings, together, catalog, deliveries, rule, published)
        finally:
            service.cancel()
    catalog.close()
    assert together.rooms.is_empty
    assert together.arrivals.is_empty


async def over(delivery: Delivery) -> Delivery:
    """It has ended, one way or the other."""
    return await until(delivery, lambda: delivery.state is not DeliveryState.ARRIVING)


async def until(delivery: Delivery, holds: Callable[[], bool]) -> Delivery:
    """Something became true of it."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():
            await delivery.changed()
    return delivery


def read(delivery: Delivery, start: int, stop: int) -> bytes:
    """Bytes of it, as they are now."""
    fd = delivery.open()
    try:
        return os.pread(fd, stop - start, start)
    finally:
        os.close(fd)
