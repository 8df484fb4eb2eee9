"""Pieces of a torrent and spans of a file: what an earlier run left is checked, what was written is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from edgecdn.piecetree import PieceTree, piece_bytes
from edgecdn.spans import Span
from edgecdn.transfer.carrier import Cargo

__all__ = ["check_earlier", "join_pieces", "pieces_within", "right_pieces"]


_FEW_PIECES = 4
_FEW_SHARE = 8
"""Wrong pieces that are put down to a crash or a bad disk: so many, or this part of what is here."""


def join_pieces(pieces: Iterable[int], size: int) -> list[Span]:
    """The spans that pieces of a blob of `size` bytes cover, joined where they touch."""
    length = piece_bytes(size)
    spans: list[Span] = []
    for index in sorted(pieces):
        span = Span(index * length, min((index + 1) * length, size))
        if spans and spans[-1].stop == span.start:
            span = Span(spans.pop().start, span.stop)
        spans.append(span)
    return spans


def pieces_within(have: Sequence[Span], size: int) -> list[int]:
    """The pieces of which every byte is in the sorted, disjoint spans `have`, neighbours joined or not."""
    length = piece_bytes(size)
    joined: list[Span] = []
    for span in have:
        if joined and joined[-1].stop >= span.start:
            joined[-1] = Span(joined[-1].start, span.stop)
        else:
            joined.append(span)
    found: list[int] = []
    for span in joined:
        first = -(-span.start // length)
        last = span.stop // length if span.stop < size else -(-size // length)
        found += range(first, last)
    return found


async def check_earlier(cargo: Cargo, tree: PieceTree, known: AbstractSet[int] = frozenset()) -> list[bool] | None:
    """Which pieces are in the file; None: too many of those here are not what the tree says, so it is not used.

    An earlier run's bytes may be anybody's, and what we tell the swarm we have, it gives to others. But a tree is
    a claim, and a false one no reason to throw away what is here: only a few wrong pieces are forgotten for it, and
    pieces of which but a part is here. `known` were found right before.
    """
    length = piece_bytes(tree.size)
    here = set(pieces_within(cargo.have(), tree.size))
    right = known | await asyncio.to_thread(right_pieces, cargo, tree, here - known)
    if len(here - right) > max(_FEW_PIECES, len(here) // _FEW_SHARE):
        return None
    good = right & here
    odd = [
        span
        for span in cargo.have()
        if any(index not in good for index in range(span.start // length, -(-span.stop // length)))
    ]
    if odd:
        await cargo.forget(odd)
    there = set(pieces_within(cargo.have(), tree.size))
    return [index in there for index in range(tree.pieces)]


def right_pieces(cargo: Cargo, tree: PieceTree, pieces: Iterable[int]) -> set[int]:
    """Those of `pieces` that the file has as the tree says. Blocks: a second for each GB and a half."""
    length = piece_bytes(tree.size)
    buffer = memoryview(bytearray(length))
    right: set[int] = set()
    for index in sorted(pieces):
        view = buffer[: min(length, tree.size - index * length)]
        if cargo.read(view, index * length) == len(view) and tree.matches(index, view):
            right.add(index)
    return right
