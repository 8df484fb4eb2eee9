"""Seeds of real holdings: loaded when asked for, withdrawn when they are gone, rotten or no longer to be shared."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgecdn.digest import Digest
from edgecdn.piecetree import piece_bytes
from edgecdn_agent.holdings.watch import CacheWatch
from edgecdn_agent.swarm import seeding as seeding_module
from edgecdn_agent.swarm.seeding import Seeding
from edgecdn_agent.swarm.session import Download, Swarm, Trouble
from tests.agent.cache_machine import DATA, PUBLIC, SECRET, CacheMachine, flip, tree_of
from tests.agent.speaking_peer import until
from tests.agent.test_swarm_session import swarms

TREE = tree_of(DATA)
PIECE = piece_bytes(len(DATA))


@dataclass
class Place:
    """A machine that seeds, and a session of somebody else."""

    machine: CacheMachine
    seeding: Seeding
    swarm: Swarm
    other: Swarm
    folder: Path
    now_s: float = 0.0

    async def put(self, data: bytes = DATA, **how: Any) -> Digest:
        """A verified blob whose tree is known."""
        digest = self.machine.put(data, **how)
        self.machine.catalog.set_tree(digest, tree_of(data))
        await self.machine.holdings.rescan()
        return digest

    def take(self, digest: Digest, troubles: list[Trouble] | None = None) -> Download:
        """Begin to take it."""
        path = self.folder / f"partial{len(list(self.folder.glob('partial*')))}"
        with path.open("wb") as file:
            file.truncate(TREE.size)
        heard = [] if troubles is None else troubles
        download = self.other.download(digest, TREE, path, [False] * TREE.pieces, lambda _: None, heard.append)
        download.connect("127.0.0.1", self.swarm.port)
        return download


@asynccontextmanager
async def seeding_place(base: Path, *also: Coroutine[Any, Any, None]) -> AsyncIterator[Place]:
    """Seeding runs, and the watch of the cache, as in an agent."""
    machine = CacheMachine(base)
    machine.cache.mkdir(parents=True, exist_ok=True)
    async with swarms(2) as (swarm, other):
        place: Place
        seeding = Seeding(swarm, machine.holdings, lambda: place.now_s)
        place = Place(machine, seeding, swarm, other, base, time.monotonic())
        work = [seeding.run(), CacheWatch(machine.holdings).run(), *also]
        tasks = [asyncio.create_task(one) for one in work]
        try:
            yield place
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            machine.catalog.close()


async def test_it_is_loaded_when_asked_for_and_given(tmp_path: Path) -> None:
    async with seeding_place(tmp_path) as place:
        digest = await place.put()
        assert place.seeding.count == 0, "at rest nothing is loaded"
        assert await place.seeding.ensure(digest)
        assert await place.seeding.ensure(digest)
        assert (place.seeding.count, place.swarm.torrents) == (1, 1)
        async with asyncio.timeout(20):
            await place.take(digest).done.wait()


async def test_many_that_ask_at_once_load_it_once(tmp_path: Path) -> None:
    async with seeding_place(tmp_path) as place:
        digest = await place.put()
        assert all(await asyncio.gather(*(place.seeding.ensure(digest) for _ in range(20))))
        assert place.swarm.torrents == 1


async def test_44_what_is_not_shared_not_held_or_without_a_tree_is_not_loaded(tmp_path: Path) -> None:
    async with seeding_place(tmp_path) as place:
        secret = await place.put(DATA + b"1", repo=SECRET)
        treeless = place.machine.put(DATA + b"2")
        await place.machine.holdings.rescan()
        absent = Digest.parse("ab" * 32)
        assert not any([await place.seeding.ensure(digest) for digest in (secret, treeless, absent)])
        assert place.swarm.torrents == 0


async def test_44_what_may_no_longer_be_shared_is_withdrawn_at_once(tmp_path: Path) -> None:
    async with seeding_place(tmp_path) as place:
        digest = await place.put()
        assert await place.seeding.ensure(digest)
        place.machine.allowed.discard(PUBLIC)
        place.machine.holdings.touch()
        assert await until(lambda: place.swarm.torrents == 0, 5) < 2
        assert not await place.seeding.ensure(digest)


@pytest.mark.parametrize("how", ["unlinked", "the repo removed", "replaced"])
async def test_30_what_is_deleted_is_withdrawn_within_five_seconds(tmp_path: Path, how: str) -> None:
    async with seeding_place(tmp_path) as place:
        digest = await place.put()
        assert await place.seeding.ensure(digest)
        path = place.machine.path(PUBLIC, digest)
        match how:
            case "unlinked":
                path.unlink()
            case "the repo removed":
                shutil.rmtree(place.machine.cache / PUBLIC.folder)
            case _:
                other = path.with_name("new.tmp")
                other.write_bytes(bytes(len(DATA)))
                other.rename(path)
        assert await until(lambda: place.swarm.torrents == 0, 6) < 5
        assert place.machine.holdings.shared(digest) is None
        assert not await place.seeding.ensure(digest)


async def test_30_what_is_deleted_while_it_is_taken_is_withdrawn(tmp_path: Path) -> None:
    async with seeding_place(tmp_path) as place:
        place.swarm.set_limits(200_000, None)
        digest = await place.put()
        assert await place.seeding.ensure(digest)
        download = place.take(digest)
        await until(lambda: download.have)
        place.machine.path(PUBLIC, digest).unlink()
        assert await until(lambda: place.swarm.torrents == 0, 6) < 5


async def test_41_a_rotten_copy_is_withdrawn_hashed_again_and_set_aside(tmp_path: Path) -> None:
    async with seeding_place(tmp_path) as place:
        digest = await place.put(brought=True)
        path = place.machine.path(PUBLIC, digest)
        flip(path, PIECE + 1)
        rotten = path.read_bytes()
        assert place.machine.holdings.shared(digest) is not None, "the catalog believes in it still"
        assert await place.seeding.ensure(digest)
        download = place.take(digest)
        await until(lambda: place.swarm.torrents == 0)
        await until(lambda: not path.exists())
        assert [kept.read_bytes() for kept in (place.machine.home / "quarantine").iterdir()] == [rotten]
        assert 1 not in download.have
        assert place.machine.holdings.get(digest) is None


async def test_a_right_copy_that_was_doubted_is_given_again(tmp_path: Path) -> None:
    async with seeding_place(tmp_path) as place:
        digest = await place.put()
        place.machine.holdings.withdraw(digest)
        assert not await place.seeding.ensure(digest)
        assert await place.machine.holdings.recheck(digest)
        assert await place.seeding.ensure(digest)


async def test_idle_seeds_are_unloaded(tmp_path: Path) -> None:
    async with seeding_place(tmp_path) as place:
        digest = await place.put()
        assert await place.seeding.ensure(digest)
        place.now_s += seeding_module._IDLE_S + 1
        place.machine.holdings.touch()
        await until(lambda: place.swarm.torrents == 0)
        assert await place.seeding.ensure(digest), "and loaded again for the next who asks"


async def test_a_seed_in_use_is_not_unloaded(tmp_path: Path) -> None:
    async with seeding_place(tmp_path) as place:
        place.swarm.set_limits(100_000, None)
        digest = await place.put()
        assert await place.seeding.ensure(digest)
        download = place.take(digest)
        await until(download.traffic)
        place.now_s += seeding_module._IDLE_S + 1
        place.machine.holdings.touch()
        await until(lambda: place.seeding._loaded[digest].used_at == place.now_s)
        assert place.swarm.torrents == 1


async def test_45_the_longest_unused_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that somebody takes stays, however long ago it was asked for."""
    monkeypatch.setattr(seeding_module, "_MOST_LOADED", 2)
    async with seeding_place(tmp_path) as place:
        place.swarm.set_limits(100_000, None)
        taken, idle, last = [await place.put(data) for data in (DATA, DATA + b"1", DATA + b"2")]
        assert await place.seeding.ensure(taken)
        download = place.take(taken)
        await until(download.traffic)
        place.machine.holdings.touch()
        await until(lambda: place.seeding._loaded[taken].is_taken)
        place.now_s += 1
        assert await place.seeding.ensure(idle)
        place.now_s += 1
        assert await place.seeding.ensure(last)
        assert set(place.seeding._loaded) == {taken, last}
        assert place.swarm.torrents == 2


async def test_ending_unloads_all(tmp_path: Path) -> None:
    async with seeding_place(tmp_path) as place:
        digest = await place.put()
        assert await place.seeding.ensure(digest)
        task = asyncio.create_task(place.seeding.run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert place.swarm.torrents == 0
