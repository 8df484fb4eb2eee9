"""What the board decides of a file that somebody reads as it comes: little at a time, from the front."""

from __future__ import annotations

import pytest

from edgecdn.events import Kind
from edgecdn.plan.board import Board
from edgecdn.plan.quick import quick_stop
from edgecdn.plan.state import Blob, Lease
from edgecdn.spans import SEGMENT_BYTES
from tests.unit.made import MIB, add, finish, grant_all, new_board

LEAST = 128 << 10


def _front(blob: Blob) -> int:
    """Up to where everything has come."""
    starts = [lease.position for lease in blob.leases] + [span.start for span in blob.free]
    return min(starts, default=blob.entry.size)


def _line(board: Board, bytes_per_s: float, start: float, stop: float) -> float:
    """Have a line that all connections share bring bytes in steps of 0.1 s; returns when it ended."""
    now = start
    while now < stop and (leases := [x for s in board.sources.values() for x in s.leases]):
        now += 0.1
        for lease in leases:
            board.received(lease, min(lease.remaining, int(bytes_per_s * 0.1 / len(leases))), now)
            if not lease.remaining:
                board.end(lease, lease.stop)
        grant_all(board, now)
    return now


def test_it_begins_with_little_from_the_front() -> None:
    board = new_board(hub=(Kind.ORIGIN, 4))
    board.hurry(add(board, "a", 500 * MIB), 0.0)
    assert [(x.start, x.stop) for x in grant_all(board, 0.0)] == [(n * LEAST, (n + 1) * LEAST) for n in range(4)]


@pytest.mark.parametrize("bytes_per_s", [400_000, 5_000_000])
def test_what_can_be_read_follows_what_has_come(bytes_per_s: int) -> None:
    board = new_board(hub=(Kind.ORIGIN, 8))
    blob = add(board, "a", 500 * MIB)
    board.hurry(blob, 0.0)
    grant_all(board, 0.0)
    now = 0.0
    while now < 60.0:
        now = _line(board, bytes_per_s, now, now + 5.0)
        behind = blob.givers["hub"] - _front(blob)
        assert behind <= max(8 * LEAST, 5.0 * bytes_per_s), now
    assert _front(blob) > 0.8 * bytes_per_s * now


def test_it_grows_to_whole_segments_on_a_fast_line() -> None:
    board = new_board(hub=(Kind.ORIGIN, 8))
    blob = add(board, "a", 4000 * MIB)
    board.hurry(blob, 0.0)
    grant_all(board, 0.0)
    _line(board, 125e6, 0.0, 3.0)
    assert {lease.stop - lease.start for lease in blob.leases} == {SEGMENT_BYTES}


def test_the_others_have_long_requests_as_ever() -> None:
    board = new_board(hub=(Kind.ORIGIN, 4))
    hurried, other = add(board, "a", 500 * MIB), add(board, "b", 500 * MIB)
    board.hurry(hurried, 0.0)
    leases = grant_all(board, 0.0)
    assert leases[0].blob is hurried
    assert {x.remaining for x in leases if x.blob is hurried} == {LEAST}
    assert {x.remaining for x in leases if x.blob is other} == {SEGMENT_BYTES}


def test_requests_under_way_are_shortened_and_their_ends_are_asked_for_in_order() -> None:
    board = new_board(hub=(Kind.ORIGIN, 2))
    blob = add(board, "a", 500 * MIB)
    first, second = grant_all(board, 0.0)
    for lease in (first, second):
        board.received(lease, 10_000, 0.1)
        board.received(lease, 90_000, 1.0)
    board.hurry(blob, 1.0)
    board.hurry(blob, 1.0)  # whoever comes next changes nothing
    ends = [quick_stop(x.position, x.source, 1.0) for x in (first, second)]
    assert [first.stop, second.stop] == ends
    assert all(x.position < x.stop < x.start + 2 * MIB for x in (first, second))
    finish(board, first, 1.5)
    following = board.grant(1.5)
    assert following is not None
    assert following.start == ends[0]
    assert sum(map(len, blob.free)) + sum(x.remaining for x in blob.leases) + sum(blob.givers.values()) == 500 * MIB


def test_who_gives_only_whole_files_is_asked_for_all_of_it() -> None:
    board = new_board(hub=(Kind.ORIGIN, 4))
    blob = add(board, "a", 50 * MIB)
    board.whole_only(board.sources["hub"], blob)
    board.hurry(blob, 0.0)
    leases: list[Lease] = grant_all(board, 0.0)
    assert [x.remaining for x in leases] == [50 * MIB]
    again = new_board(hub=(Kind.ORIGIN, 4))
    late = add(again, "a", 50 * MIB)
    again.whole_only(again.sources["hub"], late)
    (lease,) = grant_all(again, 0.0)
    again.hurry(late, 0.0)
    assert lease.remaining == 50 * MIB
