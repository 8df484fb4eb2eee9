"""What the board decides when sources stall, lie, ask for pauses or go."""

from __future__ import annotations

from edgecdn.events import Kind
from edgecdn.spans import Span
from tests.unit.made import MIB, add, finish, grant_all, new_board

TWO_HUBS = {"a": (Kind.ORIGIN, 1), "b": (Kind.MIRROR, 1)}


class TestSplit:
    """The tail of a slow request goes to who is free."""

    def test_a_stalled_request_goes_to_another_source_whole(self) -> None:
        board = new_board(**TWO_HUBS)
        blob = add(board, "f", 2 * MIB, "a")
        (stalled,) = grant_all(board, 0.0)
        board.received(stalled, 1000, 0.5)
        board.offer(board.sources["b"], blob)
        assert board.grant(2.4) is None
        taken = board.grant(2.5)
        assert taken is not None
        assert (taken.source.name, taken.start, taken.stop) == ("b", 1000, 2 * MIB)
        assert stalled.revoked
        assert stalled.remaining == 0
        board.end(stalled, stalled.position)
        assert blob.free == []
        finish(board, taken, 3.0)
        assert blob.complete

    def test_a_stalled_request_never_goes_to_its_own_source(self) -> None:
        board = new_board(a=(Kind.ORIGIN, 4))
        add(board, "f", MIB)
        (stalled,) = grant_all(board, 0.0)
        for now in (2.0, 5.0, 19.0, 600.0):
            assert board.grant(now) is None
        assert not stalled.revoked

    def test_a_slow_request_is_shared_so_that_both_end_together(self) -> None:
        board = new_board(**TWO_HUBS)
        blob = add(board, "f", 100 * MIB)
        slow, fast = grant_all(board, 0.0)
        blob.free.clear()  # the end of the file: nothing is left but these two
        for n in range(1, 11):
            board.received(slow, MIB // 10, n / 10)
            board.received(fast, 3 * MIB // 10 if n < 10 else fast.remaining, n / 10)
        board.end(fast, fast.stop)
        before = slow.stop
        shared = board.grant(1.0)
        assert shared is not None
        assert shared.source is fast.source
        assert (slow.stop, before) == (shared.start, shared.stop)
        assert shared.start % MIB == 0
        assert shared.remaining > 2 * slow.remaining > 0
        assert not slow.revoked

    def test_a_request_that_ends_within_a_second_is_left_alone(self) -> None:
        board = new_board(**TWO_HUBS)
        blob = add(board, "f", 2 * MIB, "a")
        (lease,) = grant_all(board, 0.0)
        board.offer(board.sources["b"], blob)
        board.received(lease, int(1.2 * MIB), 1.0)
        assert board.grant(1.0) is None

    def test_a_free_connection_of_the_same_source_shares_a_long_request(self) -> None:
        board = new_board(a=(Kind.ORIGIN, 2))
        blob = add(board, "f", 64 * MIB)
        first, second = grant_all(board, 0.0)
        blob.free.clear()
        board.received(first, MIB, 1.0)
        finish(board, second, 1.0)
        shared = board.grant(1.0)
        assert shared is not None
        assert shared.start == first.stop
        assert abs(shared.remaining - first.remaining) <= 2 * MIB  # equal shares, cut at a unit

    def test_a_dearer_source_does_not_share_while_the_cheaper_are_enough(self) -> None:
        board = new_board(peer=(Kind.LAN, 1), hub=(Kind.ORIGIN, 1))
        blob = add(board, "f", 200 * MIB)
        (lease,) = grant_all(board, 0.0)
        blob.free.clear()
        for n in range(1, 21):
            board.received(lease, 300_000, n / 2)
            assert board.grant(n / 2) is None


class TestPauses:
    """When a source is asked again."""

    def test_a_told_pause_is_kept(self) -> None:
        board = new_board(a=(Kind.ORIGIN, 4))
        blob = add(board, "f", 500 * MIB)
        leases = grant_all(board, 0.0)
        board.busy(board.sources["a"], 7.0, 1.0)
        for lease in leases:
            board.end(lease, lease.start)
        assert blob.free == [Span(0, 500 * MIB)]
        assert board.grant(7.99) is None
        retry = board.next_try_at(1.0)
        assert retry is not None
        assert 8.0 <= retry <= 8.7
        assert board.grant(retry) is not None
        assert board.sources["a"].window.size == 2

    def test_four_answers_of_one_crowd_halve_the_window_once(self) -> None:
        board = new_board(a=(Kind.ORIGIN, 4))
        add(board, "f", 500 * MIB)
        for lease in grant_all(board, 0.0):
            board.busy(lease.source, 3.0, 1.0)
            board.end(lease, lease.start)
        assert board.sources["a"].window.size == 2
        assert board.sources["a"].failures == 1

    def test_a_reset_after_progress_costs_no_pause(self) -> None:
        """FAULTS 15: a connection that is reset every MiB."""
        board = new_board(a=(Kind.ORIGIN, 1))
        add(board, "f", 20 * MIB)
        now = 0.0
        for n in range(20):
            (lease,) = grant_all(board, now)
            assert lease.start == n * MIB
            now += 0.1
            board.received(lease, MIB, now)
            board.broken(lease.source, now)
            board.end(lease, lease.position)
        assert board.next_try_at(now) is None

    def test_a_source_that_only_breaks_is_asked_later_and_later(self) -> None:
        board = new_board(a=(Kind.ORIGIN, 1))
        add(board, "f", 20 * MIB)
        now, waits = 10.0, []
        for _ in range(9):
            (lease,) = grant_all(board, now)
            board.broken(lease.source, now)
            board.end(lease, lease.start)
            assert board.grant(now) is None
            retry = board.next_try_at(now)
            assert retry is not None
            waits.append(retry - now)
            now = retry
        assert 0.25 <= waits[0] <= 0.5
        assert 15.0 <= waits[-1] <= 30.0
        assert max(waits[:3]) < min(waits[5:])

    def test_connections_that_break_together_count_as_one_failure(self) -> None:
        board = new_board(a=(Kind.ORIGIN, 4))
        add(board, "f", 500 * MIB)
        for lease in grant_all(board, 10.0):
            board.broken(lease.source, 11.0)
            board.end(lease, lease.start)
        assert board.sources["a"].failures == 1

    def test_three_wrong_answers_end_a_source(self) -> None:
        board = new_board(**TWO_HUBS)
        add(board, "f", 20 * MIB)
        source = board.sources["a"]
        assert [board.misbehaved(source, "portal", now) for now in (0.0, 10.0, 20.0)] == [False, False, True]
        assert source.dropped == "portal"
        assert {x.source.name for x in grant_all(board, 99.0)} == {"b"}

    def test_the_first_reason_for_a_drop_stays(self) -> None:
        board = new_board(**TWO_HUBS)
        board.drop(board.sources["a"], "first")
        board.drop(board.sources["a"], "second")
        assert board.sources["a"].dropped == "first"


class TestLacking:
    """Files that a source does not have, or not in parts."""

    def test_an_excluded_file_is_asked_elsewhere_and_else_an_orphan(self) -> None:
        board = new_board(**TWO_HUBS)
        blob = add(board, "f", 20 * MIB)
        board.exclude(board.sources["a"], blob)
        assert {x.source.name for x in grant_all(board, 0.0)} == {"b"}
        assert board.orphans() == []
        board.exclude(board.sources["b"], blob)
        assert board.orphans() == [blob]

    def test_a_file_under_way_is_no_orphan_until_its_request_ends(self) -> None:
        board = new_board(a=(Kind.ORIGIN, 1))
        blob = add(board, "f", MIB)
        (lease,) = grant_all(board, 0.0)
        board.drop(board.sources["a"], "gone")
        assert board.orphans() == []
        board.end(lease, lease.start)
        assert board.orphans() == [blob]
        assert board.next_try_at(0.0) is None

    def test_a_file_that_comes_only_whole_is_asked_for_once_and_not_shared(self) -> None:
        board = new_board(a=(Kind.ORIGIN, 4), b=(Kind.MIRROR, 1))
        blob = add(board, "f", 100 * MIB, "a")
        board.whole_only(board.sources["a"], blob)
        (lease,) = grant_all(board, 0.0)
        assert lease.whole
        assert (lease.start, lease.stop) == (0, 100 * MIB)
        board.offer(board.sources["b"], blob)
        assert grant_all(board, 100.0) == []

    def test_who_gives_only_whole_files_takes_no_share(self) -> None:
        board = new_board(**TWO_HUBS)
        blob = add(board, "f", MIB, "a")
        grant_all(board, 0.0)
        board.offer(board.sources["b"], blob)
        board.whole_only(board.sources["b"], blob)
        assert board.grant(60.0) is None

    def test_restart_asks_one_source_alone(self) -> None:
        board = new_board(**TWO_HUBS)
        blob = add(board, "f", 8 * MIB)
        while not blob.complete:
            for lease in grant_all(board, 0.0):
                finish(board, lease, 1.0)
        board.restart(blob, [Span(0, 2 * MIB), Span(6 * MIB, 8 * MIB)], only=board.sources["b"])
        asked: list[tuple[str, int, int]] = []
        while not blob.complete:
            for lease in grant_all(board, 2.0):
                asked.append((lease.source.name, lease.start, lease.stop))
                finish(board, lease, 3.0)
        assert asked == [("b", 0, 2 * MIB), ("b", 6 * MIB, 8 * MIB)]

    def test_a_removed_file_leaves_nothing_behind(self) -> None:
        board = new_board(a=(Kind.ORIGIN, 4))
        gone = add(board, "f", 100 * MIB)
        board.whole_only(board.sources["a"], gone)
        leases = grant_all(board, 0.0)
        board.remove(gone)
        for lease in leases:
            board.end(lease, lease.start)
        assert board.orphans() == []
        assert not board.sources["a"].whole_only
        assert board.grant(1.0) is None
        kept = add(board, "g", 8 * MIB)
        assert sum(x.remaining for x in grant_all(board, 1.0)) == 8 * MIB
        assert kept.free == []
