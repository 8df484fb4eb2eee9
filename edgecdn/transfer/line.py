"""The line: the sources of one file as a carrier asks them, range by range, when it decides itself what is asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from edgecdn.digest import Digest
from edgecdn.events import Kind
from edgecdn.plan.board import Board, cost_of
from edgecdn.plan.state import Blob, SourceState
from edgecdn.sources import Offer, Source
from edgecdn.sources.faults import Broken, Missing, SourceFault
from edgecdn.spans import Span
from edgecdn.transfer.carrier import Giver

__all__ = ["SourceLine"]

_FAILS = 3
"""So many failures in a row, and one that has to wait is done without."""


class SourceLine:
    """The sources that offer `blob`. `offers` is by source, then by digest; `faulted` is told of every failure.

    `answering`: peers have not all said yet what they have, and may soon.
    """

    def __init__(
        self,
        board: Board,
        blob: Blob,
        sources: Mapping[str, Source],
        offers: Mapping[str, Mapping[Digest, Offer]],
        faulted: Callable[[SourceState, Blob, SourceFault], None],
        answering: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._board = board
        self._blob = blob
        self._sources = sources
        self._offers = offers
        self._faulted = faulted
        self._answering = answering
        self._clock = clock

    def giver(self) -> Giver | None:
        """See `edgecdn.transfer.carrier.Line`: of equally dear ones the one that failed, then gave least.

        A cheaper one that failed a moment ago, or has not said yet what it has, is waited for a little.
        """
        now, blob = self._clock(), self._blob
        offering = [
            state
            for state in self._board.sources.values()
            if state.dropped is None
            and blob.entry.digest in self._offers.get(state.name, ())
            and blob in state.offered
            and blob not in state.whole_only
            and (now >= state.blocked_until or state.failures < _FAILS)
        ]
        cheapest = min((cost_of(state.kind) for state in offering), default=None)
        if cheapest is None or (cheapest > cost_of(Kind.LAN) and self._answering()):
            return None
        able = [state for state in offering if cost_of(state.kind) == cheapest and now >= state.blocked_until]
        best = min(able, key=lambda state: (state.failures, state.good_bytes), default=None)
        return None if best is None else Giver(best.name, best.kind)

    async def read(self, giver: Giver, span: Span) -> AsyncGenerator[bytes, None]:
        """See `edgecdn.transfer.carrier.Line`."""
        state = self._board.sources[giver.name]
        try:
            offer = self._offers.get(giver.name, {}).get(self._blob.entry.digest)
            if offer is None:
                raise Missing("has it no more")
            left = len(span)
            async with aclosing(self._sources[giver.name].read(offer, span)) as pieces:
                async for piece in pieces:
                    left -= len(piece)
                    self._board.gave(state, len(piece), self._clock())
                    yield piece
            if left:
                raise Broken("ended its answer early")
        except SourceFault as fault:
            self._faulted(state, self._blob, fault)
            raise
