"""Pieces of a torrent and spans of a file: what an earlier run left is checked, what was written is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from edgecdn.piecetree import PieceTree, piece_bytes
from edgecdn.spans import Span
from edgecdn.transfer.carrier import Cargo

__all__ = ["check_earlier", "join_pieces", "pieces_within"]


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


async def check_earlier(cargo: Cargo, tree: PieceTree) -> list[bool]:
    """Which pieces are in the file and right; whatever else an earlier run left there is forgotten.

    An earlier run's bytes may be anybody's. What we tell the swarm we have, it gives to others.
    """
    right = await asyncio.to_thread(_right_pieces, cargo, tree)
    have = cargo.have()
    length = piece_bytes(tree.size)
    wrong = [
        span
        for span in have
        if any(index not in right for index in range(span.start // length, -(-span.stop // length)))
    ]
    if wrong:
        await cargo.forget(wrong)
    there = set(pieces_within(cargo.have(), tree.size))
    return [index in there for index in range(tree.pieces)]


def _right_pieces(cargo: Cargo, tree: PieceTree) -> set[int]:
    length = piece_bytes(tree.size)
    buffer = memoryview(bytearray(length))
    right: set[int] = set()
    for index in pieces_within(cargo.have(), tree.size):
        view = buffer[: min(length, tree.size - index * length)]
        if cargo.read(view, index * length) == len(view) and tree.matches(index, view):
            right.add(index)
    return right
