"""How long a fetch of very many files takes before its first byte: listing, checks, selection, inventory, plan."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from edgecdn.cache.catalog import Catalog
from edgecdn.digest import Digest
from edgecdn.events import Kind
from edgecdn.fileset import FileSet
from edgecdn.local_fetch import hub_indexes
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import ModelRef
from edgecdn.pipeline import Pipeline
from edgecdn.resolve import Resolver
from edgecdn.settings import load_settings
from edgecdn.sources import Offer
from edgecdn.spans import Span
from tests.hub import TestHub, make_repo, many_files

__all__ = ["measure"]


class _FirstByte(Exception):
    """Planning is over."""


class _Stopwatch:
    """A source that ends the job when its first byte is asked for."""

    name = "stopwatch"
    kind = Kind.ORIGIN
    connections = 8

    async def offer(self, manifest: Manifest, wanted: Sequence[FileEntry]) -> Mapping[Digest, Offer]:
        del manifest
        return {entry.digest: _Any(entry) for entry in wanted}

    async def read(self, offer: Offer, span: Span) -> AsyncGenerator[bytes, None]:
        raise _FirstByte
        yield b""

    async def close(self) -> None:
        """Nothing."""


class _Any:
    def __init__(self, entry: FileEntry) -> None:
        self.entry = entry


def measure() -> dict[int, float]:
    """Seconds by number of files; hub and client share the process, so this is an upper bound."""
    return {count: asyncio.run(_measure(count)) for count in (5_000, 10_000, 20_000)}


async def _measure(count: int) -> float:
    repo = make_repo("org/many", many_files(count), repo_type="dataset")
    with tempfile.TemporaryDirectory() as folder:
        async with TestHub([repo]) as hub:
            settings = load_settings(
                {
                    "EDGECDN_HUB_ENDPOINTS": hub.url,
                    "EDGECDN_HOME": f"{folder}/home",
                    "HF_HUB_CACHE": f"{folder}/hub",
                }
            )
            catalog = Catalog(Path(folder, "home"))
            resolver = Resolver(settings, hub_indexes(settings, None))
            pipeline = Pipeline(settings, resolver, lambda: [_Stopwatch()], catalog, lambda _event: None)
            started = time.monotonic()
            try:
                await pipeline.fetch(ModelRef.parse("datasets/org/many"), FileSet())
            except _FirstByte:
                return time.monotonic() - started
            finally:
                catalog.close()
    raise AssertionError("nothing was asked for")
