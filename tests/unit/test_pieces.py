"""Pieces and spans: what an earlier run left is told to the swarm only where it is right, and never more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edgecdn.piecetree import piece_bytes
from edgecdn.spans import Span, invert, journal_unit
from edgecdn.transfer.carrier import Cargo, Giver
from edgecdn_agent.swarm.pieces import check_earlier, join_pieces, pieces_within
from tests.agent.cache_machine import tree_of
from tests.unit.made import lfs_file, manifest_of

PIECE = piece_bytes(1)
MOST = 9 * PIECE
sizes = st.integers(1, MOST) | st.sampled_from([1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE - 1])


def _covered(spans: Sequence[Span]) -> set[int]:
    """Sampled bytes of spans: the first and last of each 16 KiB."""
    marks = {mark for k in range(0, MOST + 1, 16 << 10) for mark in (k, k - 1)}
    return {mark for mark in marks if any(span.start <= mark < span.stop for span in spans)}


@st.composite
def some_pieces(draw: st.DrawFn) -> tuple[int, list[int]]:
    size = draw(sizes)
    return size, draw(st.lists(st.integers(0, -(-size // PIECE) - 1), unique=True))


@st.composite
def some_spans(draw: st.DrawFn) -> tuple[int, list[Span]]:
    """Sorted and disjoint, neighbours joined or not, ends anywhere or at journal units."""
    size = draw(sizes)
    ends = st.integers(0, size) | st.integers(0, size // (64 << 10)).map(lambda n: n * (64 << 10)) | st.just(size)
    cuts = sorted(draw(st.lists(ends, unique=True, max_size=20)))
    spans = [Span(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    keep = draw(st.lists(st.booleans(), min_size=len(spans), max_size=len(spans)))
    return size, [span for span, kept in zip(spans, keep, strict=True) if kept]


@given(some_pieces())
def test_joined_pieces_cover_exactly_themselves(chosen: tuple[int, list[int]]) -> None:
    size, pieces = chosen
    spans = join_pieces(pieces, size)
    assert spans == sorted(spans)
    assert all(a.stop < b.start for a, b in zip(spans, spans[1:], strict=False)), "joined where they touch"
    assert sum(map(len, spans)) == sum(min(PIECE, size - index * PIECE) for index in pieces)
    assert pieces_within(spans, size) == sorted(pieces)


@given(some_spans())
def test_pieces_within_are_those_of_which_every_byte_is_there(chosen: tuple[int, list[Span]]) -> None:
    size, have = chosen
    missing = invert(have, size)
    found = pieces_within(have, size)
    for index in range(-(-size // PIECE)):
        start, stop = index * PIECE, min((index + 1) * PIECE, size)
        lacking = any(gap.start < stop and gap.stop > start for gap in missing)
        assert (index in found) != lacking
    assert found == sorted(set(found))


@given(some_spans())
def test_it_does_not_matter_how_spans_are_cut(chosen: tuple[int, list[Span]]) -> None:
    size, have = chosen
    cut = [Span(a, min(a + 4096, span.stop)) for span in have for a in range(span.start, span.stop, 4096)]
    assert pieces_within(cut, size) == pieces_within(have, size)
    assert _covered(join_pieces(pieces_within(have, size), size)) <= _covered(have)


@dataclass
class _Partial:
    """A partial file in memory, as a cargo shows it."""

    data: bytearray
    true: bytes
    have: set[int] = field(default_factory=set)

    @property
    def unit(self) -> int:
        return journal_unit(len(self.true))

    def spans(self) -> list[Span]:
        return [Span(n * self.unit, min((n + 1) * self.unit, len(self.true))) for n in sorted(self.have)]

    def read(self, view: memoryview, start: int) -> int:
        part = self.data[start : start + len(view)]
        view[: len(part)] = part
        return len(part)

    async def forget(self, spans: Sequence[Span]) -> None:
        for span in spans:
            assert span in self.spans(), "whole units of what is there"
            self.have.remove(span.start // self.unit)

    def cargo(self) -> Cargo:
        entry = lfs_file("m.safetensors", self.true)

        async def landed(_spans: Sequence[Span]) -> None:
            raise AssertionError("nothing arrives")

        return Cargo(
            manifest_of(entry), entry, Path("unused"), self.spans, self.read, self.forget, landed, _no_put, _NoLine(),
            lambda: True, lambda _text: None, lambda _tree: None,
        )  # fmt: skip


async def _no_put(_start: int, _data: bytes, _giver: Giver) -> None:
    raise AssertionError("nothing arrives")


class _NoLine:
    def giver(self) -> Giver | None:
        return None

    async def read(self, giver: Giver, span: Span) -> AsyncGenerator[bytes, None]:
        raise AssertionError((giver, span))
        yield b""


@given(st.data())
def test_right_pieces_are_told_and_parts_of_pieces_forgotten(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 4 * PIECE))
    true = bytes(range(251)) * (size // 251 + 1)
    true = true[:size]
    partial = _Partial(bytearray(true), true)
    units = -(-size // partial.unit)
    partial.have = set(data.draw(st.lists(st.integers(0, units - 1), unique=True)))
    before = set(partial.have)
    rotten = data.draw(st.lists(st.integers(0, size - 1), max_size=3))
    for at in rotten:
        partial.data[at] ^= 1
    tree = tree_of(true)
    told = asyncio.run(check_earlier(partial.cargo(), tree))
    assert told is not None, "at most three pieces are wrong"
    assert len(told) == tree.pieces
    for index, is_there in enumerate(told):
        start, stop = index * PIECE, min((index + 1) * PIECE, size)
        whole = all(unit in before for unit in range(start // partial.unit, -(-stop // partial.unit)))
        right = partial.data[start:stop] == true[start:stop]
        assert is_there == (whole and right)
    left = {index for index, is_there in enumerate(told) if is_there}
    assert pieces_within(partial.spans(), size) == sorted(left)
    assert all(span.start // PIECE in left for span in partial.spans()), "no unit is kept of a piece that is not told"


def test_a_tree_that_most_of_what_is_here_contradicts_is_not_used() -> None:
    true = bytes(range(251)) * (10 * PIECE // 251 + 1)
    true = true[: 10 * PIECE]
    partial = _Partial(bytearray(true), true)
    partial.have = set(range(-(-len(true) // partial.unit)))
    before = set(partial.have)
    assert asyncio.run(check_earlier(partial.cargo(), tree_of(bytes(10 * PIECE)))) is None
    assert partial.have == before, "nor is it a reason to throw anything away"


def test_nothing_there_is_nothing_read() -> None:
    partial = _Partial(bytearray(3 * PIECE), bytes(3 * PIECE))
    assert asyncio.run(check_earlier(partial.cargo(), tree_of(bytes(3 * PIECE)))) == [False] * 3
