"""What the board decides when all goes well: who fetches which bytes, and when a dearer source joins."""

from __future__ import annotations

import pytest

from edgecdn.events import Kind
from edgecdn.plan.board import ENOUGH_RATE, GRACE_S, Board
from edgecdn.plan.state import Lease
from edgecdn.spans import SEGMENT_BYTES, Span
from tests.unit.made import MIB, add, finish, grant_all, new_board, sized

LAN_AND_ORIGIN = {"peer": (Kind.LAN, 2), "hub": (Kind.ORIGIN, 4)}


def _names(leases: list[Lease]) -> list[str]:
    return [lease.source.name for lease in leases]


def _trickle(board: Board, leases: list[Lease], bytes_per_s: float, start: float, stop: float) -> list[Lease]:
    """Have `leases` bring bytes together, in steps of 0.5 s; returns what else was granted meanwhile."""
    others: list[Lease] = []
    now = start
    while now < stop:
        now += 0.5
        for lease in leases:
            board.received(lease, int(bytes_per_s * 0.5 / len(leases)), now)
        board.review(now)
        others += grant_all(board, now)
    return others


def test_leases_are_exclusive_and_lowest_first() -> None:
    board = new_board(hub=(Kind.ORIGIN, 4))
    add(board, "a", 500 * MIB)
    leases = grant_all(board, 0.0)
    assert [lease.start for lease in leases] == [0, 16 * MIB, 32 * MIB, 48 * MIB]
    assert all(lease.remaining == SEGMENT_BYTES for lease in leases)
    finish(board, leases[1], 1.0)
    following = grant_all(board, 1.0)
    assert [lease.start for lease in following] == [64 * MIB]


def test_what_a_request_did_not_bring_is_free_again_and_comes_first() -> None:
    board = new_board(hub=(Kind.ORIGIN, 4))
    add(board, "a", 500 * MIB)
    first, second, *_ = grant_all(board, 0.0)
    board.received(first, 3 * MIB, 1.0)
    board.end(first, 3 * MIB)
    again = board.grant(1.0)
    assert again is not None
    assert (again.start, again.stop) == (3 * MIB, 16 * MIB)
    finish(board, second, 1.0)


def test_only_what_is_missing_is_asked_for() -> None:
    board = new_board(hub=(Kind.ORIGIN, 4))
    missing = [Span(40 * MIB, 41 * MIB), Span(5 * MIB, 6 * MIB)]
    blob = board.add_blob(sized("a", 50 * MIB), missing, ["hub"])
    assert [(x.start, x.stop) for x in grant_all(board, 0.0)] == [(5 * MIB, 6 * MIB), (40 * MIB, 41 * MIB)]
    assert not blob.free
    assert not blob.complete
    for lease in list(blob.leases):
        finish(board, lease, 1.0)
    assert blob.complete


def test_two_large_files_side_by_side() -> None:
    board = new_board(hub=(Kind.ORIGIN, 4))
    a, b, c = (add(board, name, 1024 * MIB) for name in "abc")
    grant_all(board, 0.0)
    assert (len(a.leases), len(b.leases), len(c.leases)) == (2, 2, 0)


def test_many_small_files_use_every_connection() -> None:
    board = new_board(hub=(Kind.ORIGIN, 4))
    blobs = [add(board, f"{n}", 1000) for n in range(9)]
    leases = grant_all(board, 0.0)
    assert [lease.blob for lease in leases] == blobs[:4]
    for lease in leases:
        finish(board, lease, 0.1)
        board.remove(lease.blob)
    assert [lease.blob for lease in grant_all(board, 0.1)] == blobs[4:8]


def test_segments_shrink_at_the_end() -> None:
    board = new_board(hub=(Kind.ORIGIN, 4))
    add(board, "a", 40 * MIB)
    lengths = [lease.remaining // MIB for lease in grant_all(board, 0.0)]
    assert lengths[0] == 5  # an eighth of what is left: four connections, twice
    assert lengths == sorted(lengths, reverse=True)
    small = new_board(hub=(Kind.ORIGIN, 4))
    add(small, "a", 7 * MIB)
    assert [lease.remaining // MIB for lease in grant_all(small, 0.0)] == [2, 2, 2, 1]


def test_what_came_back_counts_when_segments_are_cut() -> None:
    board = new_board(hub=(Kind.ORIGIN, 4))
    add(board, "a", 500 * MIB)
    for now in range(20):
        leases = grant_all(board, float(now))
        assert [lease.remaining for lease in leases] == [SEGMENT_BYTES] * 4
        for lease in leases:
            board.end(lease, lease.start)


def test_mirror_and_origin_cost_the_same() -> None:
    board = new_board(hub=(Kind.ORIGIN, 2), mirror=(Kind.MIRROR, 2))
    add(board, "a", 500 * MIB)
    assert sorted(_names(grant_all(board, 0.0))) == ["hub", "hub", "mirror", "mirror"]


def test_the_faster_of_one_kind_is_asked_first() -> None:
    board = new_board(slow=(Kind.ORIGIN, 1), fast=(Kind.ORIGIN, 1))
    add(board, "a", 500 * MIB)
    slow, fast = grant_all(board, 0.0)
    board.received(slow, MIB, 1.0)
    board.received(fast, 8 * MIB, 1.0)
    board.end(slow, slow.position)
    board.end(fast, fast.position)
    assert _names(grant_all(board, 1.0)) == ["fast", "slow"]


@pytest.mark.parametrize("grows", [True, False])
def test_connections_follow_what_they_bring(grows: bool) -> None:
    board = new_board(a=(Kind.ORIGIN, 64))
    add(board, "f", 40_000 * MIB)
    now = 0.0
    leases = grant_all(board, now)
    first = len(leases)
    while now < 10.0:
        now += 0.1
        for lease in leases:
            board.received(lease, 10_000 if grows else 10_000 * first // len(leases), now)
        board.review(now)
        leases += grant_all(board, now)
    assert board.sources["a"].window.size == (64 if grows else first)


class TestCheaperFirst:
    """No byte of a dearer source while the cheaper ones are enough."""

    def test_a_fast_lan_is_never_helped(self) -> None:
        board = new_board(**LAN_AND_ORIGIN)
        add(board, "a", 500 * MIB)
        leases = grant_all(board, 0.0)
        assert _names(leases) == ["peer", "peer"]
        assert _trickle(board, leases, ENOUGH_RATE + 20_000, 0.0, 12.0) == []

    def test_a_silent_lan_is_helped_after_the_grace(self) -> None:
        board = new_board(**LAN_AND_ORIGIN)
        add(board, "a", 500 * MIB)
        grant_all(board, 100.0)
        assert grant_all(board, 100.0 + GRACE_S) == []
        assert set(_names(grant_all(board, 100.1 + GRACE_S))) == {"hub"}

    def test_a_lan_that_falls_silent_is_helped_after_the_grace(self) -> None:
        board = new_board(**LAN_AND_ORIGIN)
        add(board, "a", 500 * MIB)
        leases = grant_all(board, 0.0)
        assert _trickle(board, leases, 4 * ENOUGH_RATE, 0.0, 10.0) == []
        assert grant_all(board, 10.0 + GRACE_S) == []
        assert set(_names(grant_all(board, 10.1 + GRACE_S))) == {"hub"}

    @pytest.mark.parametrize("bytes_per_s", [125_000, ENOUGH_RATE * 9 // 10])
    def test_a_slow_lan_is_helped(self, bytes_per_s: int) -> None:
        """FAULTS 14: a peer of 1 Mbit/s."""
        board = new_board(**LAN_AND_ORIGIN)
        add(board, "a", 500 * MIB)
        leases = grant_all(board, 0.0)
        assert _trickle(board, leases, bytes_per_s, 0.0, GRACE_S) == []
        assert "hub" in _names(_trickle(board, leases, bytes_per_s, GRACE_S, 11.0))

    def test_a_short_dip_brings_no_dearer_source(self) -> None:
        board = new_board(**LAN_AND_ORIGIN)
        add(board, "a", 500 * MIB)
        leases = grant_all(board, 0.0)
        assert _trickle(board, leases, 4 * ENOUGH_RATE, 0.0, 10.0) == []
        assert _trickle(board, leases, 100_000, 10.0, 13.0) == []

    def test_what_the_lan_lacks_is_asked_of_the_origin_at_once(self) -> None:
        board = new_board(**LAN_AND_ORIGIN)
        add(board, "a", 100 * MIB)
        alone = add(board, "b", 100 * MIB, "hub")
        leases = grant_all(board, 0.0)
        assert {x.blob for x in leases if x.source.name == "hub"} == {alone}

    def test_a_lan_that_waits_or_is_gone_holds_nobody_up(self) -> None:
        board = new_board(**LAN_AND_ORIGIN)
        add(board, "a", 500 * MIB)
        board.busy(board.sources["peer"], 30.0, 0.0)
        assert set(_names(grant_all(board, 0.0))) == {"hub"}
        other = new_board(**LAN_AND_ORIGIN)
        add(other, "a", 500 * MIB)
        other.drop(other.sources["peer"], "lies")
        assert set(_names(grant_all(other, 0.0))) == {"hub"}

    def test_every_kind_in_turn(self) -> None:
        board = new_board(hub=(Kind.ORIGIN, 1), peer=(Kind.LAN, 1), folder=(Kind.CACHE, 1))
        add(board, "a", 500 * MIB)
        assert _names(grant_all(board, 0.0)) == ["folder"]
        assert _names(grant_all(board, GRACE_S + 0.1)) == ["peer"]
        assert _names(grant_all(board, 2 * GRACE_S)) == []
        assert _names(grant_all(board, 2 * GRACE_S + 0.2)) == ["hub"]


def test_the_last_unit_of_a_trickling_request_goes_to_a_faster_source() -> None:
    board = new_board(slow=(Kind.ORIGIN, 1), fast=(Kind.ORIGIN, 1))
    add(board, "a", 4 * MIB)
    slow, fast = sorted(grant_all(board, 0.0), key=lambda lease: lease.source.name, reverse=True)
    now = 0.0
    for _ in range(2):
        for _ in range(4):
            now += 0.5
            board.received(slow, 5_000, now)
            board.received(fast, fast.remaining // 4 or fast.remaining, now)
        finish(board, fast, now)
        (fast,) = grant_all(board, now)
        assert fast.source.name == "fast"
    assert (fast.start, fast.stop) == (slow.position, MIB)
    assert slow.revoked
