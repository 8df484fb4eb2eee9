"""The units of one blob as they come: what each is, where it is written, and that it is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgecdn.piecetree import PieceTree, part_layer, part_node
from edgecdn.spans import invert
from edgecdn.transfer.carrier import Cargo, Giver
from edgecdn_agent.ingest.session import Session

__all__ = ["Units", "hash_here"]


async def hash_here(session: Session, cargo: Cargo) -> list[int]:
    """Have the session know what all units are that are in the file now; which these are."""
    cut = session.cut
    lacking = {unit for span in invert(sorted(cargo.have()), cut.size) for unit in cut.touched(span)}
    here = [unit for unit in range(cut.count) if unit not in lacking]

    def layer_of(unit: int) -> bytes:
        span = cut.span(unit)
        data = bytearray(len(span))
        cargo.read(memoryview(data), span.start)
        return part_layer(cut.size, data)

    for unit in here:
        if unit not in session.layers:
            session.layers[unit] = await asyncio.to_thread(layer_of, unit)
    return here


class Units:
    """Those of one job's file. `moved_s`: when the last of them came."""

    def __init__(self, session: Session, cargo: Cargo, clock: Callable[[], float]) -> None:
        self._session = session
        self._cut = session.cut
        self._cargo = cargo
        self._clock = clock
        self._layers: dict[int, bytes] = {}
        self._placing: set[int] = set()
        self.moved_s = clock()

    async def prepare(self) -> None:
        """Look at what is here already, and say so; what is less than a unit comes again."""
        cut, have = self._cut, sorted(self._cargo.have())
        lacking = {unit for span in invert(have, cut.size) for unit in cut.touched(span)}
        parts = [span for span in have if not lacking.isdisjoint(cut.touched(span))]
        if parts:
            await self._cargo.forget(parts)
        here = await hash_here(self._session, self._cargo)
        self._layers = {unit: self._session.layers[unit] for unit in here}
        self._session.began([(unit, self._node_over(self._layers[unit])) for unit in here])
        self.moved_s = self._clock()

    async def take(self, unit: int, data: bytes, giver: Giver, *, read: bool, node: bytes | None = None) -> bool:
        """A unit has come: write it, and say that it is here. False: it is not what it should be, `node`.

        `read`: it came from the line. Raises NoSpace, ReadOnlyStore.
        """
        layer = await asyncio.to_thread(part_layer, self._cut.size, data)
        true = self._node_over(layer)
        if node is not None and true != node:
            return False
        if unit in self._session.world.mine or unit in self._placing:
            return True  # it came from the line and from a member
        self._placing.add(unit)
        try:
            self._layers[unit] = layer
            if len(self._layers) == self._cut.count:
                layers = [self._layers[index] for index in range(self._cut.count)]
                self._cargo.whole(PieceTree(self._cut.size, b"".join(layers)))
            await self._cargo.put(self._cut.span(unit).start, data, giver)
            self.moved_s = self._clock()
            self._session.layers[unit] = layer
            self._session.got(unit, true, read=read)
        finally:
            self._placing.discard(unit)
        return True

    def _node_over(self, layer: bytes) -> bytes:
        return part_node(self._cut.size, layer, self._cut.unit)
