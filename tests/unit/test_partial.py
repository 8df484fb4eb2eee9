"""Partial files: written in any order, resumed, started again when they are not what was journaled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from edgecdn.cache.partial import PartialFile, PartialVanished, SmallFile, journal_name, journaled_bytes
from edgecdn.cache.safedir import SafeDir
from edgecdn.digest import Digest
from edgecdn.errors import CacheRefused
from edgecdn.spans import UNIT_BYTES, Span, invert, journal_unit
from tests.unit.made import MIB, lfs_file

DATA = Random(5).randbytes(3 * MIB + 5)
ENTRY = lfs_file("m", DATA)
SIZE = ENTRY.size


@dataclass
class Place:
    """Where partial files and their journals lie."""

    blobs: SafeDir
    state: SafeDir

    def open(self, digest: Digest = ENTRY.digest, size: int = SIZE) -> PartialFile:
        return PartialFile(self.blobs.sub(), self.state, digest, size)  # which closes its folder

    def files(self) -> list[str]:
        return self.blobs.names() + self.state.names()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with SafeDir.at(tmp_path / "blobs", create=True) as blobs, SafeDir.at(tmp_path / "state", create=True) as state:
        yield Place(blobs, state)


def _write(part: PartialFile | SmallFile, span: Span) -> None:
    middle = (span.start + span.stop) // 2
    part.write(span.start, [DATA[span.start : middle], DATA[middle : span.stop]])


def _content(part: PartialFile) -> bytes:
    view = memoryview(bytearray(SIZE))
    assert part.read_into(view, 0) == SIZE
    return bytes(view)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_any_pieces(place: Place, seed: int) -> None:
    chance = Random(seed)
    cuts = sorted({0, SIZE, *(chance.randrange(SIZE) for _ in range(9))})
    spans = [Span(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    chance.shuffle(spans)
    part = place.open()
    there = bytearray(SIZE)
    for span in spans:
        _write(part, span)
        there[span.start : span.stop] = b"\1" * len(span)
        gap = there.find(0)
        assert part.prefix() == (SIZE if gap < 0 else gap // part.unit * part.unit)
    assert part.prefix() == SIZE
    assert _content(part) == DATA
    part.close()


def test_the_prefix_ends_at_the_first_gap(place: Place) -> None:
    part = place.open()
    unit = part.unit
    _write(part, Span(unit, 2 * unit))
    assert part.prefix() == 0
    _write(part, Span(0, unit - 1))
    assert part.prefix() == 0
    _write(part, Span(unit - 1, unit))
    assert part.prefix() == part.prefix(unit) == 2 * unit
    _write(part, Span(SIZE - 5, SIZE))
    assert part.prefix() == 2 * unit
    assert part.have == [Span(0, unit), Span(unit, 2 * unit), Span(SIZE - 5, SIZE)]
    part.close()


def test_parts_of_units_are_known_to_the_byte(place: Place) -> None:
    part = place.open()
    unit = part.unit
    _write(part, Span(5, 9))
    _write(part, Span(unit - 2, unit + 3))
    ends = {4: 4, 5: 9, 8: 9, 9: 9, unit - 1: unit, unit: unit + 3, unit + 3: unit + 3, SIZE: SIZE}
    assert {n: part.part_end(n) for n in ends} == ends
    _write(part, Span(0, 5))
    assert [part.part_end(n) for n in (0, 4)] == [9, 9]
    _write(part, Span(9, unit - 2))
    assert (part.is_whole(0), part.is_whole(1), part.part_end(0)) == (True, False, 0)  # `prefix` tells of whole ones
    part.drop_parts()
    assert part.part_end(unit) == unit
    part.close()


def test_resumed_with_the_units_that_were_whole(place: Place) -> None:
    part = place.open()
    unit = part.unit
    _write(part, Span(unit, 2 * unit))
    _write(part, Span(0, unit - 1))
    name = part.name
    part.close()
    again = place.open()
    assert again.name == name
    assert again.have == [Span(unit, 2 * unit)]
    assert journaled_bytes(place.blobs, place.state, ENTRY.digest, SIZE) == unit
    for span in (Span(0, unit), Span(2 * unit, SIZE)):
        _write(again, span)
    assert _content(again) == DATA
    again.close()


def test_what_is_forgotten_is_missing_again_also_after_a_restart(place: Place) -> None:
    part = place.open()
    _write(part, Span(0, SIZE))
    part.forget([Span(MIB, 2 * MIB)])
    part.forget([Span(3 * MIB, SIZE)])
    assert part.prefix() == MIB
    part.close()
    again = place.open()
    assert invert(again.have, SIZE) == [Span(MIB, 2 * MIB), Span(3 * MIB, SIZE)]
    again.close()


def _replaced(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize(
    "harm",
    [
        Path.unlink,
        _replaced,
        lambda path: os.truncate(path, 1),
        lambda path: os.truncate(path, SIZE + 1),
    ],
    ids=["removed", "replaced", "shorter", "longer"],
)
def test_a_file_that_is_not_the_one_journaled_starts_again(place: Place, harm: object) -> None:
    part = place.open()
    _write(part, Span(0, 2 * MIB))
    part.close()
    assert callable(harm)
    assert journaled_bytes(place.blobs, place.state, ENTRY.digest, SIZE) == 2 * MIB
    harm(place.blobs.path / part.name)
    assert journaled_bytes(place.blobs, place.state, ENTRY.digest, SIZE) == 0
    again = place.open()
    assert again.have == []
    assert again.name != part.name
    again.close()


def test_a_journal_of_another_size_starts_again(place: Place) -> None:
    part = place.open()
    _write(part, Span(0, 2 * MIB))
    part.close()
    other = place.open(size=SIZE + MIB)
    assert other.have == []
    other.close()


def test_a_link_in_its_place_is_not_followed(place: Place, tmp_path: Path) -> None:
    """FAULTS 3."""
    part = place.open()
    part.close()
    path = place.blobs.path / part.name
    target = tmp_path / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    before = target.read_bytes()
    try:
        again = place.open()
    except CacheRefused:
        pass
    else:
        assert again.name != part.name
        again.close()
    assert target.read_bytes() == before


def test_vanishing_is_noticed(place: Place) -> None:
    part = place.open()
    part.check_present()
    (place.blobs.path / part.name).unlink()
    with pytest.raises(PartialVanished):
        part.check_present()
    (place.blobs.path / part.name).write_bytes(b"other")
    with pytest.raises(PartialVanished):
        part.check_present()
    part.close(discard=True)
    assert place.files() == []


def test_closing_keeps_discards_or_publishes(place: Place) -> None:
    part = place.open()
    part.close()
    part.close()
    assert place.files() == [part.name, journal_name(ENTRY.digest)]
    place.open().close(published=True)
    assert place.files() == [part.name]
    place.open().close(discard=True)
    assert place.files() == [part.name]


def test_units_are_small_where_the_file_is_and_divide_what_ranges_are_cut_at() -> None:
    sizes = [MIB + 1, 90 * MIB, 512 * MIB - 1, 512 * MIB, 1 << 44]
    units = [journal_unit(size) for size in sizes]
    assert units == sorted(units)
    assert units[-2:] == [UNIT_BYTES, UNIT_BYTES]
    assert all(UNIT_BYTES % unit == 0 for unit in units)
    assert units[0] >= 1 << 16


def test_a_small_file_is_whole_or_nothing() -> None:
    small = SmallFile(ENTRY.digest, 100)
    small.write(50, [DATA[50:60], DATA[60:100]])
    assert small.prefix() == 0
    small.write(0, [DATA[:50]])
    assert small.prefix() == 100
    assert bytes(small.data) == DATA[:100]
    small.forget([Span(0, 100)])
    assert small.prefix() == 0
    view = memoryview(bytearray(64))
    assert SmallFile(ENTRY.digest, 0).prefix() == 0
    assert small.read_into(view, 90) == 10
    assert bytes(view[:10]) == DATA[90:100]
