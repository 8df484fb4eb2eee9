"""When all units are here and the blob is wrong: which reader gave something else than the line gives.

A few blocks of what each reader announced are read again from the line by ourselves, and compared with what is
in the file. Whoever is found wrong there is believed nothing: all it read comes again, shared out among the others,
who find the same. Who passed a unit on is not to blame: it could check no more than the node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from random import Random

from edgecdn.piecetree import LEAF_BYTES
from edgecdn.sources.faults import SourceFault
from edgecdn.spans import Span
from edgecdn.transfer.carrier import Cargo
from edgecdn_agent.ingest.world import UnitMap, World

__all__ = ["false_givers", "given_by", "samples"]

_log = logging.getLogger(__name__)

_EACH = 4
"""Blocks of each: one that changes all it reads is found by the first."""

_MOST = 64
"""In all: 1 MiB."""

_LIMIT_S = 30.0


def samples(world: World, chance: Random) -> list[tuple[str, Span]]:
    """Which blocks of which givers to look at: of who read a unit from the line, else of who told of it first."""
    by_giver: dict[str, list[int]] = {}
    for unit, giver in sorted((world.tellers | world.readers).items()):
        if giver != world.me:
            by_giver.setdefault(giver, []).append(unit)
    givers = list(by_giver) if len(by_giver) <= _MOST else chance.sample(sorted(by_giver), _MOST)
    each = min(_EACH, _MOST // max(1, len(givers)))
    return [
        (giver, _block(world.cut, unit, chance))
        for giver in givers
        for unit in chance.sample(by_giver[giver], min(each, len(by_giver[giver])))
    ]


async def false_givers(world: World, cargo: Cargo, chance: Random) -> set[str]:
    """Those whose blocks are not what the line gives us. Those that cannot be compared count as right."""
    found: set[str] = set()
    try:
        async with asyncio.timeout(_LIMIT_S):
            for giver, span in samples(world, chance):
                if giver not in found and not await _is_right(cargo, span):
                    _log.warning("a member gave something else than the line member=%s at=%d", giver[:8], span.start)
                    found.add(giver)
    except (SourceFault, TimeoutError) as error:
        _log.info("members could not be compared with the line reason=%s", error or "it took too long")
    return found


def given_by(world: World, false: set[str]) -> Sequence[int]:
    """The units that came over the line by one of these, or were first told of by them."""
    return [unit for unit, giver in (world.tellers | world.readers).items() if giver in false]


async def _is_right(cargo: Cargo, span: Span) -> bool:
    giver = cargo.line.giver()
    if giver is None:
        raise SourceFault("nobody gives it now")
    held = bytearray()
    async with aclosing(cargo.line.read(giver, span)) as pieces:
        async for piece in pieces:
            held += piece
    here = bytearray(len(span))
    await asyncio.to_thread(cargo.read, memoryview(here), span.start)
    return here == held


def _block(cut: UnitMap, unit: int, chance: Random) -> Span:
    span = cut.span(unit)
    start = span.start + LEAF_BYTES * chance.randrange(-(-len(span) // LEAF_BYTES))
    return Span(start, min(start + LEAF_BYTES, span.stop))
