"""Having one incoming file carried: the carrier's view of it, and the counting of what lands."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgecdn.cache.partial import PartialFile
from edgecdn.manifest import Manifest
from edgecdn.plan.board import Board
from edgecdn.plan.state import Blob
from edgecdn.spans import Span
from edgecdn.transfer.carrier import Cargo, Carrier
from edgecdn.transfer.incoming import Incoming

__all__ = ["Carriage", "make_cargo"]


_LEASES_END_S = 0.02

_SETTLE_S = 3.0
"""So long (seconds) the sources may go on with units that readers know in part, before a carrier drops those."""


@dataclass(slots=True)
class Carriage:
    """One file between its carrier and the sources: only one of both brings it at a time, and nothing is lost."""

    carrier: Carrier
    cargo: Cargo
    board: Board
    blob: Blob
    incoming: Incoming
    discarded: Callable[[Counter[str]], None]
    wake: Callable[[], None]

    async def run(self, room: asyncio.Semaphore) -> None:
        """The carrier first; then the sources, until it is called for again. Cancelled when the file is complete."""
        again = True
        while again and self.incoming.missing():
            async with room:
                before = self.incoming.missing()
                self.discarded(await self.incoming.drop_parts())
                again = await self.carrier.carry(self.cargo)
            if self.incoming.missing() == before:
                self.incoming.want_tree()
            if self._is_over():
                return
            self._to_sources()
            if again:
                await self.carrier.called_for(self.cargo)
                await self.incoming.settle_parts(_SETTLE_S)
                if self._is_over():
                    return
                await self._from_sources()
        if self.blob.held:  # the last bytes came while it was being taken from them
            self._to_sources()

    def _is_over(self) -> bool:
        """A dispute has begun meanwhile, and one source stands for all of it; or it is done."""
        return self.incoming.standing is not None or self.blob not in self.board.blobs

    def _to_sources(self) -> None:
        self.incoming.arrival.tell_parts(on=True)
        self.board.begin_anew(self.blob)
        self.board.restart(self.blob, self.incoming.missing())
        self.wake()

    async def _from_sources(self) -> None:
        """End their requests; what they brought is kept to the byte."""
        self.board.hold(self.blob)
        while self.blob.leases:
            self.wake()
            await asyncio.sleep(_LEASES_END_S)


def make_cargo(
    carrier: Carrier,
    manifest: Manifest,
    incoming: Incoming,
    received: Callable[[int], None],
    forgotten: Callable[[Counter[str]], None],
    alternatives: Callable[[], bool],
    tell: Callable[[str], None],
) -> Cargo:
    """An incoming file as a carrier sees it.

    `received(count)` is told of bytes that landed, `forgotten` of those of others that are dropped;
    `tell` says a sentence to the user.
    """
    part = incoming.part
    assert isinstance(part, PartialFile)

    async def landed(spans: Sequence[Span]) -> None:
        await incoming.landed(spans, carrier.name)
        received(sum(map(len, spans)))

    async def forget(spans: Sequence[Span]) -> None:
        forgotten(await incoming.forget(spans))

    path = part.folder.stable_path / part.name
    return Cargo(
        manifest,
        incoming.entry,
        path,
        lambda: part.have,
        part.read_into,
        forget,
        landed,
        alternatives,
        tell,
        incoming.set_tree,
    )
