"""Rooms: one lock for all fetches of a process, one bringer for each file, nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edgecdn.batches import Batches
from edgecdn.cache.locks import FileLock
from edgecdn.cache.safedir import SafeDir
from edgecdn.rooms import LOCK_NAME, Room, Rooms
from tests.unit.made import sized

A, B = (sized(path, 10).digest for path in ("a", "b"))
LIMIT_S = 10.0


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SafeDir]:
    with SafeDir.at(tmp_path / "state", create=True) as made:
        yield made


def _is_free(state: SafeDir) -> bool:
    lock = FileLock(state, LOCK_NAME)
    free = lock.try_acquire()
    lock.release()
    return free


def _never() -> None:
    pytest.fail("there was nobody to wait for")


async def test_the_lock_is_held_from_the_first_to_the_last(state: SafeDir) -> None:
    rooms = Rooms()
    async with rooms.enter(state, _never) as one:
        assert not _is_free(state)
        async with rooms.enter(state, _never) as two:
            assert one is two
            assert not one.is_lonely
        assert one.is_lonely
        assert not _is_free(state)
    assert _is_free(state)
    assert rooms.is_empty


async def test_the_lock_outlives_the_folder_it_was_taken_in(tmp_path: Path, state: SafeDir) -> None:
    rooms = Rooms()
    left = asyncio.Event()

    async def first(inside: asyncio.Event) -> None:
        with SafeDir.at(tmp_path / "state") as own:
            async with rooms.enter(own, _never):
                inside.set()
                await left.wait()

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        inside = asyncio.Event()
        group.create_task(first(inside))
        await inside.wait()
        async with rooms.enter(state, _never):
            left.set()
            while not next(iter(rooms._rooms.values())).is_lonely:
                await asyncio.sleep(0)
            assert not _is_free(state)
    assert _is_free(state)


async def test_another_process_is_waited_for_and_told_of_once(state: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecdn.rooms._LOCK_POLL_S", 0.001)
    other = FileLock(state, LOCK_NAME)
    assert other.try_acquire()
    rooms, told = Rooms(), []
    waits = asyncio.Event()

    def waiting() -> None:
        told.append(1)
        waits.set()

    async def enter() -> None:
        async with rooms.enter(state, waiting):
            assert not _is_free(state)

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        cancelled = group.create_task(enter())
        await waits.wait()
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert rooms.is_empty
        waits.clear()
        group.create_task(enter())
        await waits.wait()
        await asyncio.sleep(0.01)
        other.release()
    assert len(told) == 2
    assert rooms.is_empty
    assert _is_free(state)


async def test_the_loop_goes_on_and_a_lock_taken_for_who_left_is_given_back(
    state: SafeDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, real = threading.Event(), threading.Event(), FileLock.try_acquire

    def slow(lock: FileLock) -> bool:
        began.set()
        assert go_on.wait(LIMIT_S)
        return real(lock)

    monkeypatch.setattr(FileLock, "try_acquire", slow)
    rooms = Rooms()

    async def enter() -> None:
        async with rooms.enter(state, _never):
            pass

    async with asyncio.timeout(LIMIT_S):
        task = asyncio.ensure_future(enter())
        assert await asyncio.to_thread(began.wait, LIMIT_S)  # the loop is not held up
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait([task])
    assert task.cancelled()
    assert rooms.is_empty
    monkeypatch.setattr(FileLock, "try_acquire", real)
    assert _is_free(state)


async def test_who_waits_looks_again_when_a_claim_ends() -> None:
    room = Room()
    with room.claims() as one, room.claims() as two:
        assert one.take(A)
        assert one.take(B)
        assert one.take(A)
        assert not two.take(A)
        waiting = asyncio.ensure_future(room.any_free([A, B]))
        await asyncio.sleep(0)
        one.release(B)
        async with asyncio.timeout(LIMIT_S):
            assert await waiting == {B}
        two.release(A)  # not its own
        assert not two.take(A)
    with room.claims() as three:
        assert three.take(A)
        assert three.take(B)


async def test_a_claim_ends_however_its_fetch_does() -> None:
    room = Room()
    taken = asyncio.Event()

    async def fetch() -> None:
        with room.claims() as mine:
            assert mine.take(A)
            taken.set()
            await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(fetch())
    await taken.wait()
    task.cancel()
    async with asyncio.timeout(LIMIT_S):
        assert await room.any_free([A]) == {A}


async def test_who_hurries_is_heard_also_before_the_transfer() -> None:
    room = Room()
    heard: list[object] = []
    with room.claims() as mine:
        room.hurry(A)  # nobody's
        mine.take(A)
        mine.take(B)
        room.hurry(A)
        mine.tell_hurry(heard.append)
        assert heard == [A]
        room.hurry(B)
        assert heard == [A, B]
        mine.tell_hurry(None)
        room.hurry(B)
    assert heard == [A, B]


async def test_what_waits_is_done_together() -> None:
    batches: Batches[int] = Batches()
    done: list[list[int]] = []
    go_on = asyncio.Event()

    async def work(items: Sequence[int]) -> None:
        done.append(list(items))
        await go_on.wait()

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        for item in range(4):
            group.create_task(batches.do("same", [item], work))
        group.create_task(batches.do("other", [9], work))
        await asyncio.sleep(0)
        go_on.set()
    assert sorted(map(sorted, done)) == [[0, 1, 2, 3], [9]] or [0] in done
    assert sorted(item for batch in done for item in batch) == [0, 1, 2, 3, 9]


async def test_each_of_a_batch_gets_its_own_error() -> None:
    batches: Batches[int] = Batches()

    async def work(items: Sequence[int]) -> None:
        if 2 in items:
            raise ValueError("two")

    results = await asyncio.gather(*(batches.do("same", [n], work) for n in range(4)), return_exceptions=True)
    assert [str(result) for result in results] == ["None", "None", "two", "None"]


async def test_one_that_is_cancelled_leaves_the_others_whole() -> None:
    batches: Batches[int] = Batches()
    done: list[int] = []
    began, go_on = asyncio.Event(), asyncio.Event()

    async def work(items: Sequence[int]) -> None:
        began.set()
        await go_on.wait()
        done.extend(items)

    async with asyncio.timeout(LIMIT_S):
        first = asyncio.ensure_future(batches.do("same", [1], work))
        await began.wait()
        waiting, leaving = (asyncio.ensure_future(batches.do("same", [n], work)) for n in (2, 3))
        await asyncio.sleep(0)
        first.cancel()
        leaving.cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait([first, waiting, leaving])
    assert first.cancelled()
    assert leaving.cancelled()
    assert waiting.exception() is None
    assert sorted(done) == [1, 2]
