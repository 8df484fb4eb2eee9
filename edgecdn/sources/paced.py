"""A source that is taken from at a pace: bytes are asked for no faster than the limit lets them be used."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from edgecdn.digest import Digest
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.pace import Pace
from edgecdn.sources import Offer, Source
from edgecdn.spans import Span

__all__ = ["PacedSource"]


class PacedSource:
    """`inner`, held back by `pace`, which others may share. What is not read yet waits in the sockets."""

    def __init__(self, inner: Source, pace: Pace) -> None:
        self._inner = inner
        self._pace = pace

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def kind(self) -> Kind:
        return self._inner.kind

    @property
    def connections(self) -> int:
        return self._inner.connections

    async def offer(self, manifest: Manifest, wanted: Sequence[FileEntry]) -> Mapping[Digest, Offer]:
        return await self._inner.offer(manifest, wanted)

    async def read(self, offer: Offer, span: Span) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._inner.read(offer, span)) as pieces:
            async for piece in pieces:
                await self._pace.take(len(piece))
                yield piece

    async def close(self) -> None:
        await self._inner.close()
