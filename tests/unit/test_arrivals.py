"""Arrivals: what readers are told of a file while it comes, and what is taken back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecdn.cache.partial import PartialFile, SmallFile
from edgecdn.cache.safedir import SafeDir
from edgecdn.changes import Changes
from edgecdn.errors import Unreachable
from edgecdn.spans import Span
from edgecdn.transfer.arrivals import Arrival, Arrivals, StandingFile
from edgecdn.transfer.incoming import Incoming, WorkThreads
from tests.unit.made import MIB, REPO, lfs_file

DATA = os.urandom(4 * MIB)
ENTRY = lfs_file("m.bin", DATA)
LIMIT_S = 10.0


@pytest.fixture
def threads() -> Iterator[WorkThreads]:
    made = WorkThreads.start()
    yield made
    made.stop()


def _partial(base: Path) -> PartialFile:
    return PartialFile(
        SafeDir.at(base / "blobs", create=True), SafeDir.at(base / "state", create=True), ENTRY.digest, ENTRY.size
    )


async def test_no_change_between_the_look_and_the_wait_is_missed() -> None:
    changes = Changes()
    waiting = changes.next()  # as of now
    changes.tell()
    async with asyncio.timeout(LIMIT_S):
        await waiting
        tasks = [asyncio.ensure_future(changes.next()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        changes.tell()
        await asyncio.gather(*tasks[1:])
    assert tasks[0].cancelled()


async def test_bytes_are_read_as_they_come(tmp_path: Path, threads: WorkThreads) -> None:
    arrivals = Arrivals()
    with arrivals.bring(REPO, ENTRY) as arrival:
        incoming = Incoming(ENTRY, _partial(tmp_path), threads, arrival)
        unit = incoming.part.unit
        assert [arrival.reach(n) for n in (0, 7)] == [0, 7]
        changed = arrival.changed()
        await incoming.write(0, [DATA[: 2 * unit - 1]], "one")
        await changed
        end = 2 * unit - 1
        assert [arrival.reach(n) for n in (0, 7, unit, unit + 7, end, end + 1)] == [end] * 5 + [end + 1]
        await incoming.write(3 * unit + 5, [DATA[3 * unit + 5 : 5 * unit + 1]], "one")
        assert [arrival.reach(n) for n in (0, 3 * unit, 3 * unit + 5, 4 * unit + 1)] == [
            end,
            3 * unit,
            5 * unit + 1,
            5 * unit + 1,
        ]
        await incoming.write(3 * unit, [DATA[3 * unit : 3 * unit + 5]], "one")
        await incoming.write(end, [DATA[end : 3 * unit]], "two")
        assert [arrival.reach(n) for n in (0, 5 * unit)] == [5 * unit + 1] * 2
        assert arrival.done_bytes == 5 * unit + 1
        fd = arrival.open()
        incoming.part.close()
        assert os.pread(fd, unit, 3 * unit) == DATA[3 * unit : 4 * unit]
        os.close(fd)
        with pytest.raises(FileNotFoundError):
            arrival.open()
    assert arrivals.is_empty


async def test_parts_that_a_reader_knows_are_taken_back_when_they_are_dropped(
    tmp_path: Path, threads: WorkThreads
) -> None:
    with Arrivals().bring(REPO, ENTRY) as arrival:
        incoming = Incoming(ENTRY, _partial(tmp_path), threads, arrival)
        unit = incoming.part.unit
        await incoming.write(0, [DATA[: unit + 9]], "one")
        await incoming.write(3 * unit, [DATA[3 * unit : 3 * unit + 5]], "one")
        assert arrival.reach(0) == unit + 9
        assert await incoming.drop_parts() == {"one": 14}
        assert (arrival.mark, arrival.reach(0)) == (1, unit)
        await incoming.write(unit, [DATA[unit : unit + 9]], "two")
        await incoming.forget([Span(0, unit)])  # the carrier does that: it is still its turn
        assert (arrival.mark, arrival.reach(unit)) == (2, unit)
        arrival.tell_parts(on=True)
        assert arrival.reach(unit) == unit + 9
        incoming.part.close()


async def test_parts_that_no_reader_knows_are_dropped_without_a_word(tmp_path: Path, threads: WorkThreads) -> None:
    with Arrivals().bring(REPO, ENTRY) as arrival:
        incoming = Incoming(ENTRY, _partial(tmp_path), threads, arrival)
        unit = incoming.part.unit
        await incoming.write(0, [DATA[: unit + 9]], "one")
        assert arrival.reach(0) == unit + 9
        await incoming.write(unit + 9, [DATA[unit + 9 : 2 * unit + 9]], "one")  # whole, what was known in part
        assert await incoming.drop_parts() == {"one": 9}
        assert (arrival.mark, arrival.reach(0)) == (0, 2 * unit)
        incoming.part.close()


async def test_before_parts_are_dropped_those_that_are_known_become_whole(tmp_path: Path, threads: WorkThreads) -> None:
    with Arrivals().bring(REPO, ENTRY) as arrival:
        incoming = Incoming(ENTRY, _partial(tmp_path), threads, arrival)
        unit = incoming.part.unit
        await incoming.write(0, [DATA[:9]], "one")
        assert arrival.reach(0) == 9
        settling = asyncio.ensure_future(incoming.settle_parts(LIMIT_S))
        await asyncio.sleep(0)
        await incoming.write(9, [DATA[9 : unit - 1]], "one")
        assert (arrival.reach(0), settling.done()) == (0, False)
        await incoming.write(unit - 1, [DATA[unit - 1 : unit + 1]], "one")
        async with asyncio.timeout(LIMIT_S / 2):
            await settling
        await incoming.drop_parts()
        assert (arrival.mark, arrival.reach(0)) == (0, unit)
        await incoming.settle_parts(0.0)
        incoming.part.close()


@pytest.mark.parametrize("known", [True, False])
async def test_what_is_not_journaled_is_taken_back_when_another_transfer_goes_on(
    tmp_path: Path, threads: WorkThreads, known: bool
) -> None:
    arrivals = Arrivals()
    with arrivals.watch(REPO, ENTRY) as watched:
        with arrivals.bring(REPO, ENTRY) as arrival:
            first = Incoming(ENTRY, _partial(tmp_path), threads, arrival)
            unit = first.part.unit
            await first.write(0, [DATA[: unit + 9]], "one")
            assert not known or arrival.reach(0) == unit + 9
            first.part.close()
        with arrivals.bring(REPO, ENTRY) as arrival:
            resumed = Incoming(ENTRY, _partial(tmp_path), threads, arrival)
            assert (watched.reach(0), watched.mark) == (unit, int(known))
            resumed.part.close()


async def test_what_is_forgotten_is_taken_back_first(tmp_path: Path, threads: WorkThreads) -> None:
    with Arrivals().bring(REPO, ENTRY) as arrival:
        incoming = Incoming(ENTRY, _partial(tmp_path), threads, arrival)
        unit = incoming.part.unit
        await incoming.write(0, [DATA[: 4 * unit]], "one")
        assert arrival.reach(0) == 4 * unit
        seen: list[tuple[int, int]] = []
        real = incoming.part.forget

        def forget(spans: object) -> None:
            seen.append((arrival.mark, arrival.reach(0)))
            real(spans)  # type: ignore[arg-type]

        incoming.part.forget = forget  # type: ignore[method-assign]
        await incoming.forget([Span(unit, 2 * unit)])
        assert seen == [(1, 0)]
        assert (arrival.mark, arrival.reach(0), arrival.reach(2 * unit)) == (1, unit, 4 * unit)
        await incoming.suspect([Span(0, unit)], "two", build_tree=False)
        assert seen[1:] == [(2, 0)]
        assert (arrival.mark, arrival.reach(0)) == (2, 0)
        incoming.part.close()


async def test_a_small_file_is_not_read_before_it_is_published(threads: WorkThreads) -> None:
    small = lfs_file("config.json", b"{}")
    with Arrivals().bring(REPO, small) as arrival:
        incoming = Incoming(small, SmallFile(small.digest, small.size), threads, arrival)
        await incoming.write(0, [b"{}"], "one")
        assert (arrival.reach(0), arrival.done_bytes) == (0, 0)
        with pytest.raises(FileNotFoundError):
            arrival.open()
        seen = Path(__file__).stat()
        assert not arrival.is_proven(seen)
        arrival.publish(seen)
        assert arrival.done_bytes == 2
        assert arrival.is_proven(seen)
        assert not arrival.is_proven(Path(__file__).parent.stat())


async def test_it_goes_on_with_the_same_file_and_not_with_another(tmp_path: Path, threads: WorkThreads) -> None:
    arrivals = Arrivals()
    with arrivals.watch(REPO, ENTRY) as watched:
        with arrivals.bring(REPO, ENTRY) as arrival:
            assert arrival is watched
            first = Incoming(ENTRY, _partial(tmp_path), threads, arrival)
            await first.write(0, [DATA[:MIB]], "one")
            first.part.close()
        assert arrivals.get(ENTRY.digest) is None
        assert (watched.reach(0), watched.mark) == (0, 0)
        with arrivals.bring(REPO, ENTRY) as arrival:
            resumed = Incoming(ENTRY, _partial(tmp_path), threads, arrival)
            assert (watched.reach(0), watched.mark) == (MIB, 0)
            assert arrivals.get(ENTRY.digest) is watched
            held = watched.open()  # so that the inode's number is not used again
            resumed.part.close(discard=True)
            anew = Incoming(ENTRY, _partial(tmp_path), threads, arrival)
            assert (watched.reach(0), watched.mark) == (0, 1)
            os.close(held)
            anew.part.close()


async def test_why_it_failed_is_remembered_for_those_who_wait() -> None:
    arrivals = Arrivals()
    with arrivals.watch(REPO, ENTRY) as watched:
        with pytest.raises(Unreachable), arrivals.bring(REPO, ENTRY):
            raise Unreachable("nobody")
        assert isinstance(watched.error, Unreachable)
        with arrivals.bring(REPO, ENTRY):
            assert watched.error is None


async def test_a_standing_file_is_read_as_long_as_it_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA)

    def find() -> int | None:
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None

    arrival = Arrival(REPO, ENTRY)
    arrival.show(StandingFile(path.stat(), find))
    assert (arrival.reach(5), arrival.done_bytes) == (len(DATA), len(DATA))
    fd = arrival.open()
    assert os.pread(fd, 10, 5) == DATA[5:15]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        arrival.open()
    path.write_bytes(DATA)
    with pytest.raises(FileNotFoundError):
        arrival.open()
    os.close(fd)
    arrival.take_back()
    assert (arrival.mark, arrival.reach(5)) == (1, 5)
