"""The swarm's session alone: two real libtorrent sessions on loopback, real files, no agent around them."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edgecdn.errors import SystemFailed
from edgecdn.piecetree import PieceTree, piece_bytes
from edgecdn_agent.swarm.session import Download, Seed, Swarm, Trouble
from tests.agent.cache_machine import flip, sha256, tree_of
from tests.agent.speaking_peer import until
from tests.hub import Generated
from tests.hub.content import chunks_of

SIZE = (8 << 20) + 5
DATA = b"".join(chunks_of(Generated(7, SIZE)))
DIGEST, TREE = sha256(DATA), tree_of(DATA)
PIECE = piece_bytes(SIZE)
LOOPBACK = [("127.0.0.0", "127.255.255.255")]
ELSEWHERE = [("10.0.0.0", "10.255.255.255")]


@asynccontextmanager
async def swarms(count: int) -> AsyncIterator[list[Swarm]]:
    """Sessions on loopback."""
    made = [Swarm() for _ in range(count)]
    try:
        for swarm in made:
            await swarm.start("127.0.0.1", 0)
            swarm.set_reach(LOOPBACK)
        yield made
    finally:
        for swarm in made:
            await swarm.close()


class Taker:
    """A download and what it told; the bytes of `have` are in the file from the start."""

    def __init__(self, swarm: Swarm, path: Path, tree: PieceTree = TREE, have: frozenset[int] = frozenset()) -> None:
        self.path, self.written, self.troubles = path, set[int](), list[Trouble]()
        with path.open("wb") as file:
            file.truncate(tree.size)
            for index in have:
                os.pwrite(file.fileno(), DATA[index * PIECE : (index + 1) * PIECE], index * PIECE)
        told = [index in have for index in range(tree.pieces)]
        self.download: Download = swarm.download(DIGEST, tree, path, told, self.written.update, self.troubles.append)

    async def finish(self, limit_s: float = 30.0) -> None:
        async with asyncio.timeout(limit_s):
            await self.download.done.wait()
        await self.download.flush()
        await self.download.close()


def _seed(swarm: Swarm, folder: Path, troubles: list[Trouble] | None = None) -> Seed:
    folder.mkdir(exist_ok=True)
    (folder / DIGEST.hex).write_bytes(DATA)
    return swarm.seed(DIGEST, TREE, folder, ([] if troubles is None else troubles).append)


async def test_a_blob_goes_from_one_session_to_the_other(tmp_path: Path) -> None:
    async with swarms(2) as (holder, taker):
        seed = _seed(holder, tmp_path / "held")
        taking = Taker(taker, tmp_path / "partial")
        taking.download.connect("127.0.0.1", holder.port)
        await taking.finish()
        assert taking.written == set(range(TREE.pieces)), "every piece was told to be in the file"
        assert taking.path.read_bytes() == DATA
        assert taking.troubles == []
        assert taker.torrents == 0
        await seed.close()
        assert holder.torrents == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["held", DIGEST.hex, "partial"]), "and no more"


async def test_three_that_take_at_once_give_to_each_other(tmp_path: Path) -> None:
    async with swarms(4) as (holder, *takers):
        _seed(holder, tmp_path / "held")
        holder.set_limits(4_000_000, None)
        taking = [Taker(taker, tmp_path / f"partial{n}") for n, taker in enumerate(takers)]
        for one in taking:
            one.download.set_sequential(False)
            one.download.connect("127.0.0.1", holder.port)
            for other in takers:
                if other is not one.download.swarm:
                    one.download.connect("127.0.0.1", other.port)
        async with asyncio.timeout(40):
            await asyncio.gather(*(one.download.done.wait() for one in taking))
        sent = sum(holder.given().values())
        assert SIZE <= sent < 0.8 * 3 * SIZE, "not three copies from the holder"
        for one in taking:
            await one.finish()
            assert one.path.read_bytes() == DATA


async def test_what_is_there_already_is_not_sent_again(tmp_path: Path) -> None:
    async with swarms(2) as (holder, taker):
        _seed(holder, tmp_path / "held")
        have = frozenset(range(TREE.pieces // 2))
        taking = Taker(taker, tmp_path / "partial", have=have)
        assert taking.download.have == set(have)
        taking.download.connect("127.0.0.1", holder.port)
        async with asyncio.timeout(20):
            await taking.download.done.wait()
        sent = sum(holder.given().values())
        await taking.finish()
        assert taking.written == set(range(TREE.pieces)) - have
        assert taking.path.read_bytes() == DATA
        assert 0.45 * SIZE < sent < 0.55 * SIZE


async def test_a_rotten_piece_is_found_by_its_holder_and_not_given(tmp_path: Path) -> None:
    async with swarms(2) as (holder, taker):
        troubles: list[Trouble] = []
        _seed(holder, tmp_path / "held", troubles)
        flip(tmp_path / "held" / DIGEST.hex, 3 * PIECE + 100)
        taking = Taker(taker, tmp_path / "partial")
        taking.download.connect("127.0.0.1", holder.port)
        await until(lambda: troubles and len(taking.download.have) == TREE.pieces - 1)
        assert troubles == [Trouble("bytes", "a piece was wrong", 3)]
        await _nothing_wrong(taking, lacking=3)
        assert taking.troubles == []


async def test_41_wrong_bytes_are_told_and_never_counted(tmp_path: Path) -> None:
    async with swarms(2) as (liar, taker):
        await _lying(liar, taker, tmp_path, [3])
        taking = Taker(taker, tmp_path / "partial")
        taking.download.connect("127.0.0.1", liar.port)
        await until(lambda: Trouble("bytes", "a piece was wrong", 3) in taking.troubles)
        await until(lambda: any(trouble.addresses == ("127.0.0.1",) for trouble in taking.troubles))
        await _nothing_wrong(taking, lacking=3)


async def _lying(swarm: Swarm, first: Swarm, folder: Path, pieces: list[int]) -> None:
    """Have `swarm` give wrong `pieces`: they are made so after it gave right ones, when it looks at them no more."""
    _seed(swarm, folder / "lying")
    taking = Taker(first, folder / "first")
    taking.download.connect("127.0.0.1", swarm.port)
    await taking.finish()
    for index in pieces:
        flip(folder / "lying" / DIGEST.hex, index * PIECE)


async def _nothing_wrong(taking: Taker, *, lacking: int) -> None:
    await taking.download.flush()
    await taking.download.close()
    data = taking.path.read_bytes()
    assert lacking not in taking.written
    for index in taking.written:
        assert data[index * PIECE : (index + 1) * PIECE] == DATA[index * PIECE : (index + 1) * PIECE]


async def test_a_seed_never_writes_into_its_blob(tmp_path: Path) -> None:
    """Not even when it is rotten and others have what is right: a blob is put right by a fetch, or not at all."""
    async with swarms(3) as (rotten, good, taker):
        _seed(rotten, tmp_path / "rotten")
        _seed(good, tmp_path / "good")
        path = tmp_path / "rotten" / DIGEST.hex
        flip(path, 100)
        before = path.read_bytes()
        taking = Taker(taker, tmp_path / "partial")
        for swarm in (rotten, good):
            taking.download.connect("127.0.0.1", swarm.port)
        await taking.finish(20)
        assert taking.path.read_bytes() == DATA
        assert path.read_bytes() == before


async def test_42_one_liar_among_three_is_banned_and_the_others_give_all(tmp_path: Path) -> None:
    async with swarms(4) as (liar, *holders, taker):
        await _lying(liar, taker, tmp_path, list(range(TREE.pieces)))
        for number, holder in enumerate(holders):
            _seed(holder, tmp_path / f"held{number}")
        taking = Taker(taker, tmp_path / "partial")
        for swarm in (liar, *holders):
            taking.download.connect("127.0.0.1", swarm.port)
        await taking.finish(20)
        assert taking.path.read_bytes() == DATA
        assert {trouble.kind for trouble in taking.troubles} == {"bytes"}


@pytest.mark.parametrize("when", ["before it is opened", "after it was looked at"])
async def test_30_a_deleted_seed_is_told_of_and_not_made_anew(tmp_path: Path, when: str) -> None:
    async with swarms(2) as (holder, taker):
        troubles: list[Trouble] = []
        if when == "before it is opened":
            (tmp_path / "held").mkdir()
            holder.seed(DIGEST, TREE, tmp_path / "held", troubles.append)
        else:
            seed = _seed(holder, tmp_path / "held", troubles)
            await until(lambda: seed.handle.status().is_seeding)
            (tmp_path / "held" / DIGEST.hex).unlink()
        taking = Taker(taker, tmp_path / "partial")
        taking.download.connect("127.0.0.1", holder.port)
        await until(lambda: troubles)
        assert troubles[0].kind == "disk"
        assert not (tmp_path / "held" / DIGEST.hex).exists()
        assert taking.download.have == set()


async def test_a_limit_holds_on_loopback_too(tmp_path: Path) -> None:
    async with swarms(2) as (holder, taker):
        holder.set_limits(8_000_000, None)
        _seed(holder, tmp_path / "held")
        taking = Taker(taker, tmp_path / "partial")
        began = time.monotonic()
        taking.download.connect("127.0.0.1", holder.port)
        await until(lambda: taking.download.have)
        await taking.finish(20)
        took = time.monotonic() - began
        assert 0.8 * SIZE / 8e6 < took < 8 * SIZE / 8e6


async def test_22_a_taken_port_is_not_used_and_the_real_one_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        swarm = Swarm()
        try:
            await swarm.start("127.0.0.1", port)
            assert swarm.port != port
            assert (swarm.port - port) % 10 == 0
            with socket.create_connection(("127.0.0.1", swarm.port), timeout=2):
                pass
        finally:
            await swarm.close()


async def test_22_an_address_that_is_not_ours_fails_with_words() -> None:
    swarm = Swarm()
    with pytest.raises(SystemFailed, match="no port for the swarm"):
        await swarm.start("192.0.2.1", 40001)
    assert swarm.port == 0


async def test_out_of_reach_is_neither_called_nor_heard(tmp_path: Path) -> None:
    async with swarms(2) as (holder, taker):
        _seed(holder, tmp_path / "held")
        # 1: whom we must not call, we do not
        taker.set_reach(ELSEWHERE)
        taking = Taker(taker, tmp_path / "partial")
        taking.download.connect("127.0.0.1", holder.port)
        await _stays_empty(taking)
        # 2: who must not call us is not heard
        holder.set_reach(ELSEWHERE)
        taker.set_reach(LOOPBACK)
        taking.download.connect("127.0.0.1", holder.port)
        await _stays_empty(taking)
        # 3: and it was for no other reason
        holder.set_reach(LOOPBACK)
        taking.download.connect("127.0.0.1", holder.port)
        await taking.finish(20)
        assert taking.path.read_bytes() == DATA


async def _stays_empty(taking: Taker) -> None:
    """Watch for a second, in which a blob of this size otherwise arrives."""
    with pytest.raises(TimeoutError):
        await until(lambda: taking.download.have, 1.0)


async def test_who_leaves_the_reach_is_cut_off(tmp_path: Path) -> None:
    async with swarms(2) as (holder, taker):
        holder.set_limits(2_000_000, None)
        seed = _seed(holder, tmp_path / "held")
        taking = Taker(taker, tmp_path / "partial")
        taking.download.connect("127.0.0.1", holder.port)
        await until(lambda: taking.download.have)
        holder.set_reach(ELSEWHERE)
        await until(lambda: not seed.traffic(), 5)
        assert not taking.download.complete


async def test_closing_leaves_no_thread_no_descriptor_and_no_port(tmp_path: Path) -> None:
    async with swarms(1):
        pass  # what is made once, for the whole process, is made now
    before = (_descriptors(), _threads())
    async with swarms(2) as (holder, taker):
        port = holder.port
        _seed(holder, tmp_path / "held")
        taking = Taker(taker, tmp_path / "partial")
        taking.download.connect("127.0.0.1", port)
        await until(lambda: taking.download.have)  # closed in the middle of it
    assert (_descriptors(), _threads()) == before
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


async def test_closing_twice_or_before_the_start_does_nothing() -> None:
    swarm = Swarm()
    await swarm.close()
    await swarm.start("127.0.0.1", 0)
    await swarm.close()
    await swarm.close()


async def test_it_can_be_started_again(tmp_path: Path) -> None:
    """As the supervisor does after a failure."""
    async with swarms(2) as (holder, taker):
        await holder.close()
        await holder.start("127.0.0.1", 0)
        holder.set_reach(LOOPBACK)
        _seed(holder, tmp_path / "held")
        taking = Taker(taker, tmp_path / "partial")
        taking.download.connect("127.0.0.1", holder.port)
        await taking.finish()
        assert taking.path.read_bytes() == DATA


async def test_random_bytes_at_its_port_do_it_no_harm(tmp_path: Path) -> None:
    async with swarms(2) as (holder, taker):
        _seed(holder, tmp_path / "held")
        for junk in (
            b"",
            b"\x13BitTorrent protocol" + bytes(8) + os.urandom(40),
            os.urandom(4096),
            b"GET / HTTP/1.1\r\n\r\n",
        ):
            _, writer = await asyncio.open_connection("127.0.0.1", holder.port)
            writer.write(junk)
            await writer.drain()
            writer.close()
        taking = Taker(taker, tmp_path / "partial")
        taking.download.connect("127.0.0.1", holder.port)
        await taking.finish()
        assert taking.path.read_bytes() == DATA


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _threads() -> int:
    # Those of the loop's executor come when they are needed; those of a session are not Python's.
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()
