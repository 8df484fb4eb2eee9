"""Having one incoming file carried: the carrier's view of it, and the counting of what lands."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from edgecdn.cache.partial import PartialFile
from edgecdn.events import Kind
from edgecdn.manifest import Manifest
from edgecdn.plan.board import Board
from edgecdn.plan.state import Blob
from edgecdn.spans import Span
from edgecdn.to_its_end import to_its_end
from edgecdn.transfer.carrier import Cargo, Carrier, Giver, Line
from edgecdn.transfer.incoming import Incoming

__all__ = ["Carriage", "Carriages", "make_cargo"]


_CARRIED = 3
"""Files carried at a time: more would only share the same link and end later each."""

_LEASES_END_S = 0.02

_WIND_DOWN_S = 5.0
"""So long requests under way may go on to the end of a unit before a carrier takes over: parts of units are lost."""

_SETTLE_S = 3.0
"""So long (seconds) the sources may go on with units that readers know in part, before a carrier drops those."""


class Carriages:
    """All files of one transfer that a carrier is tried for.

    `line_of` makes the line of a file; `offered` tells whether any source has it; `received`, `discarded` and `tell`
    are told what moves and what users should know.
    """

    def __init__(
        self,
        carrier: Carrier,
        board: Board,
        line_of: Callable[[Blob], Line],
        offered: Callable[[Blob], bool],
        received: Callable[[Giver, int], None],
        discarded: Callable[[Counter[str]], None],
        tell: Callable[[str], None],
        wake: Callable[[], None],
    ) -> None:
        self._carrier = carrier
        self._board = board
        self._line_of = line_of
        self._offered = offered
        self._received = received
        self._discarded = discarded
        self._tell = tell
        self._wake = wake
        self._room = asyncio.Semaphore(_CARRIED)
        self._all: dict[Incoming, Carriage] = {}

    @property
    def is_busy(self) -> bool:
        """Whether the carrier brings something now: then sources that fail are not all there is."""
        return any(carriage.busy.locked() for carriage in self._all.values())

    async def carry(self, manifest: Manifest, blob: Blob, incoming: Incoming) -> None:
        """Let the carrier bring what it can of a file, while the sources bring the rest. Raises SystemFailed."""
        cargo = make_cargo(
            self._carrier, manifest, incoming, self._line_of(blob), self._received, self._discarded,
            lambda: self._offered(blob), self._tell,
        )  # fmt: skip
        carriage = Carriage(self._carrier, cargo, self._board, blob, incoming, self._discarded, self._wake)
        self._all[incoming] = carriage
        await carriage.run(self._room)

    async def looked_at_again(self, incoming: Incoming) -> bool:
        """Whether the carrier found what of a file was wrong, and brought that anew."""
        carriage = self._all.get(incoming)
        return carriage is not None and incoming.standing is None and await carriage.looked_at_again()

    def done(self, incoming: Incoming) -> None:
        """It is published, or begun anew."""
        carriage = self._all.pop(incoming, None)
        if carriage is not None:
            self._carrier.left(carriage.cargo)

    def close(self) -> None:
        """The transfer has ended, one way or another."""
        for incoming in list(self._all):
            self.done(incoming)


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
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    """The carrier brings something of it, at first or in a dispute: never both."""
    given_up: bool = False

    async def run(self, room: asyncio.Semaphore) -> None:
        """The carrier first; then the sources, until it is called for again. Cancelled when the file is complete."""
        again = True
        while again and self.incoming.missing():
            async with room, self.busy:
                before = self.incoming.missing()
                if self._is_over():
                    return
                if not before:  # a dispute ended meanwhile
                    break
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

    async def looked_at_again(self) -> bool:
        """Whether the carrier found what was wrong, and brought that anew. If not, it has no more to do with it."""
        async with self.busy:
            self.given_up = self.given_up or not await self.carrier.disputed(self.cargo)
        return not self.given_up

    def _is_over(self) -> bool:
        """A dispute has begun meanwhile, and one source is to stand for all of it; or it is done."""
        return self.given_up or self.incoming.standing is not None or self.blob not in self.board.blobs

    def _to_sources(self) -> None:
        self.incoming.arrival.tell_parts(on=True)
        self.board.begin_anew(self.blob)
        self.board.restart(self.blob, self.incoming.missing())
        self.wake()

    async def _from_sources(self) -> None:
        """End their requests, if they may at the ends of units: what they brought is kept to the byte."""
        self.board.wind_down(self.blob)
        with suppress(TimeoutError):
            async with asyncio.timeout(_WIND_DOWN_S):
                await self._ended()
        self.board.hold(self.blob)
        await self._ended()

    async def _ended(self) -> None:
        """Until no request is under way."""
        while self.blob.leases:
            self.wake()
            await asyncio.sleep(_LEASES_END_S)


def make_cargo(
    carrier: Carrier,
    manifest: Manifest,
    incoming: Incoming,
    line: Line,
    received: Callable[[Giver, int], None],
    forgotten: Callable[[Counter[str]], None],
    alternatives: Callable[[], bool],
    tell: Callable[[str], None],
) -> Cargo:
    """An incoming file as a carrier sees it.

    `received` is told of bytes that landed, `forgotten` of those of others that are dropped; `tell` says a
    sentence to the user.
    """
    part = incoming.part
    assert isinstance(part, PartialFile)

    itself = Giver(carrier.name, carrier.kind)

    async def landed(spans: Sequence[Span]) -> None:
        await incoming.landed(spans, carrier.name)
        received(itself, sum(map(len, spans)))

    async def put(start: int, data: bytes, giver: Giver) -> None:
        # What a peer passes on is not its own: in a dispute nobody is to blame for it but the carrier as a whole.
        async def write() -> None:
            await incoming.write(start, [data], carrier.name if giver.kind is Kind.LAN else giver.name)
            received(giver, len(data))

        await to_its_end(write())

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
        put,
        line,
        alternatives,
        tell,
        incoming.set_tree,
    )
