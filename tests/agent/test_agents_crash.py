"""Rows 25, 30, 33 and 38 with real agents: killed around the swarm's end, blobs deleted, disks that cannot be read."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edgecdn.crash import CRASH_POINTS
from edgecdn.digest import Digest
from edgecdn.errors import AgentNotRunning
from edgecdn.events import BytesReceived, Kind
from tests.agent.agents import Agent, AgentLab, eventually, lab
from tests.agent.cache_machine import tree_of
from tests.agent.hand_made import pretended_taker
from tests.faults.machine import contents, files_in
from tests.hub import Generated, HubRepo, TestHub, make_repo, status
from tests.hub.content import chunks_of

pytestmark = pytest.mark.timeout(180)

MIB = 1 << 20
SIZE = 24 * MIB
BIG = "m.safetensors"
KILLED = -9
BYTES = b"".join(chunks_of(Generated(33, SIZE)))


def _repo() -> tuple[HubRepo, Digest]:
    repo = make_repo("org/name", {"config.json": b"{}", BIG: BYTES})
    return repo, Digest.parse(repo.commits[repo.main].files[BIG].sha256)


async def _holder(made: AgentLab, digest: Digest, **settings: str) -> Agent:
    agent = await made.agent("holder", **settings)
    await agent.fetch_here("org/name")
    await agent.gives(digest.hex)
    return agent


@asynccontextmanager
async def _crowd(made: AgentLab, digest: Digest, *, is_one: bool = True) -> AsyncIterator[int]:
    """Takers are not alone, and so use the swarm; how many more peers each sees."""
    if not is_one:
        yield 0
        return
    async with pretended_taker(made.others, digest, tree_of(BYTES)):
        yield 1


async def _killed_in_a_fetch(taker: Agent) -> None:
    """The fetch fails with words, and nothing of it can be seen by anybody."""
    with pytest.raises(AgentNotRunning):
        await taker.fetch_here("org/name")
    assert await taker.ended() == KILLED
    taker.check()
    assert taker.offline() is None


@pytest.mark.parametrize("point", [point for point in CRASH_POINTS if point.startswith("swarm")])
async def test_33_killed_when_the_swarm_has_finished(tmp_path: Path, point: str) -> None:
    """Finished is not written, and written is not verified: both are looked at again before anybody gets them."""
    repo, digest = _repo()
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made, _crowd(made, digest):
        holder = await _holder(made, digest)
        taker = await made.agent("taker", crash=point)
        await taker.knows(2)
        hub.stats.reset()
        await _killed_in_a_fetch(taker)
        assert not any(len(path.name) == 64 for path in taker.blobs())
        assert taker.partials()
        await made.start(taker)
        await taker.knows(2)
        assert await taker.state(digest.hex) is None, "a partial file is nothing that it has"
        again = await taker.fetch_here("org/name")
        assert files_in(again.path) == contents(repo)
        assert taker.partials() == []
        if point == "swarm.flushed":
            assert again.bytes_by_source["lan"] < MIB, "what was written is not sent again"
        assert hub.stats.total == 0
        await _gives_right_bytes(made, taker, holder, hub, repo, digest)


async def _gives_right_bytes(
    made: AgentLab, giver: Agent, other: Agent, hub: TestHub, repo: HubRepo, digest: Digest
) -> None:
    """A third machine gets all from `giver` alone."""
    await giver.gives(digest.hex)
    await other.stop_agent()
    hub.inject(status(503, route="cdn"))
    third = await made.agent("third")
    await third.knows(1 + len(made.others))
    fetched = await third.fetch_here("org/name")
    assert files_in(fetched.path) == contents(repo)
    assert fetched.bytes_by_source["lan"] == SIZE + 2


async def test_33_garbage_where_the_dead_agent_had_written(tmp_path: Path) -> None:
    """A power cut may leave anything behind the journal's back: it is not believed, and not given to others."""
    repo, digest = _repo()
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made, _crowd(made, digest):
        holder = await _holder(made, digest, limits_upload="8MB/s")
        taker = await made.agent("taker")
        await taker.knows(2)
        await _killed_at_a_third(taker)
        _spoil(taker)
        hub.stats.reset()
        await made.start(taker)
        await taker.knows(2)
        taker.events.clear()
        again = await taker.fetch_here("org/name")
        assert files_in(again.path) == contents(repo)
        assert hub.stats.total + _from_peers(taker) < 1.75 * SIZE, "what was missing, and one copy to find out"
        await _gives_right_bytes(made, taker, holder, hub, repo, digest)


async def test_33_garbage_in_a_file_of_which_nothing_was_missing(tmp_path: Path) -> None:
    repo, digest = _repo()
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made, _crowd(made, digest):
        await _holder(made, digest)
        taker = await made.agent("taker", crash="swarm.flushed")
        await taker.knows(2)
        await _killed_in_a_fetch(taker)
        _spoil(taker)
        await made.start(taker)
        await taker.knows(2)
        again = await taker.fetch_here("org/name")
        assert files_in(again.path) == contents(repo)


def _spoil(agent: Agent) -> None:
    """Put zeros near the front of what it was receiving."""
    (partial,) = agent.partials()
    with partial.open("r+b") as file:
        for at in (12345, MIB):
            file.seek(at)
            file.write(bytes(20_000))


async def _killed_at_a_third(taker: Agent) -> None:
    job = asyncio.create_task(taker.fetch_here("org/name"))

    async def has_much() -> bool:
        return _from_peers(taker) > SIZE // 3

    await eventually(has_much, what="a third is there")
    taker.kill_agent()
    with pytest.raises(AgentNotRunning):
        await job
    taker.check()
    assert taker.offline() is None


async def test_33_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    repo, digest = _repo()
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made, _crowd(made, digest):
        await _holder(made, digest, limits_upload="8MB/s")
        taker = await made.agent("taker")
        await taker.knows(2)
        hub.stats.reset()
        await _killed_at_a_third(taker)
        taker.events.clear()
        await made.start(taker)
        await taker.knows(2)
        again = await taker.fetch_here("org/name")
        assert files_in(again.path) == contents(repo)
        assert hub.stats.total == 0
        assert _from_peers(taker) < 0.75 * SIZE


def _from_peers(agent: Agent) -> int:
    return sum(event.count for event in agent.events if isinstance(event, BytesReceived) and event.kind is Kind.LAN)


@pytest.mark.parametrize("crowd", [False, True], ids=["alone", "in a crowd"])
async def test_41_the_only_holder_is_killed_in_the_middle(tmp_path: Path, crowd: bool) -> None:
    """Row 11 the other way round: the hub finishes what the peer began, and nothing comes twice."""
    repo, digest = _repo()
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made, _crowd(made, digest, is_one=crowd) as more:
        holder = await _holder(made, digest, limits_upload="8MB/s")
        taker = await made.agent("taker")
        await taker.knows(1 + more)
        hub.stats.reset()
        job = asyncio.create_task(taker.fetch_here("org/name"))

        async def has_much() -> bool:
            return _from_peers(taker) > SIZE // 3

        await eventually(has_much, what="a third is there")
        holder.kill_agent()
        async with asyncio.timeout(30):
            fetched = await job
        assert files_in(fetched.path) == contents(repo)
        assert hub.stats.total < 0.8 * SIZE


@pytest.mark.parametrize(("how", "crowd"), [("hf cache rm", False), ("unlink", True)], ids=["hf cache rm", "unlink"])
async def test_30_deleted_while_it_is_given(tmp_path: Path, how: str, crowd: bool) -> None:
    repo, digest = _repo()
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made, _crowd(made, digest, is_one=crowd) as more:
        holder = await _holder(made, digest, limits_upload="4MB/s")
        taker = await made.agent("taker")
        await taker.knows(1 + more)
        job = asyncio.create_task(taker.fetch_here("org/name"))

        async def has_some() -> bool:
            return _from_peers(taker) > MIB

        await eventually(has_some, what="some is there")
        if how == "unlink":
            shutil.rmtree(holder.repo_dir())
        else:
            await _hf(holder, "cache", "rm", "model/org/name", "--yes")

        async def is_withdrawn() -> bool:
            return await holder.state(digest.hex) is None

        assert await eventually(is_withdrawn, what="it is withdrawn") <= 5
        async with asyncio.timeout(20):
            fetched = await job
        assert files_in(fetched.path) == contents(repo)
        assert not holder.repo_dir().exists() or not holder.blobs(), "and not made anew"


async def _hf(agent: Agent, *arguments: str) -> None:
    """The hub's own command, on the cache of a machine."""
    command = Path(sys.executable).with_name("hf")
    process = await asyncio.create_subprocess_exec(
        command, *arguments, env=agent.variables(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A mounted file system, and its image, which can be cut off: real read errors."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a loop device")
    image, folder = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(300 * MIB)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a loop device here")
    yield image, folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.root
@pytest.mark.parametrize("crowd", [False, True], ids=["alone", "in a crowd"])
async def test_25_a_disk_that_cannot_be_read_while_seeding(
    tmp_path: Path, failing_disk: tuple[Path, Path], crowd: bool
) -> None:
    image, folder = failing_disk
    repo, digest = _repo()
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made, _crowd(made, digest, is_one=crowd) as more:
        holder = made.machine("holder")
        holder.cache = folder / "cache"
        await holder.start_agent()
        await holder.fetch_here("org/name")
        await holder.gives(digest.hex)
        await holder.stop_agent()
        subprocess.run(["umount", folder], check=True)  # so that nothing of it is left in memory
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        await holder.start_agent()
        await holder.gives(digest.hex)
        os.truncate(image, 24 * MIB)
        taker = await made.agent("taker")
        await taker.knows(1 + more)
        hub.stats.reset()
        async with asyncio.timeout(20):
            fetched = await taker.fetch_here("org/name")
        assert files_in(fetched.path) == contents(repo)

        async def is_withdrawn() -> bool:
            return await holder.state(digest.hex) is None

        assert await eventually(is_withdrawn, what="it is withdrawn") <= 5
        assert 0 < hub.stats.total <= 1.4 * SIZE
        assert ("is withdrawn" if crowd else "a blob is no longer held") in holder.log
        # Refetched to a disk that works: from the peer it gave some of it to
        await holder.stop_agent()
        holder.cache = holder.base / "new"
        await taker.gives(digest.hex)
        hub.stats.reset()
        await made.start(holder)
        await holder.knows(1)
        again = await holder.fetch_here("org/name")
        assert files_in(again.path) == contents(repo)
        assert hub.stats.total == 0
