"""What this machine has verified and may give away."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgecdn.names import RepoId, RepoType
from edgecdn_agent.holdings.shelf import Counts, Holdings
from tests.agent.cache_machine import DATA, PUBLIC, SECRET, CacheMachine, flip, git_sha1, sha256, tree_of, until


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[CacheMachine]:
    made = CacheMachine(tmp_path)
    yield made
    made.catalog.close()


async def test_held_is_what_the_catalog_knows(machine: CacheMachine) -> None:
    known = machine.put(DATA)
    small = machine.put(b"{}", digest=git_sha1(b"{}"))
    unknown = machine.put(b"never hashed", verified=False)
    holdings = machine.holdings
    assert holdings.counts == Counts(0, 0, 0)
    await holdings.rescan()
    held = holdings.get(known)
    assert held is not None
    assert (held.digest, held.size, held.path, held.repo) == (known, len(DATA), machine.path(PUBLIC, known), PUBLIC)
    assert holdings.get(small) is not None
    assert holdings.get(unknown) is None
    assert holdings.shared(unknown) is None
    assert holdings.counts == Counts(1, 2, len(DATA) + 2)
    assert holdings.repos() == [PUBLIC]
    assert [holding.digest for holding in holdings.table.pending()] == [unknown, known]  # no tree of it yet


async def test_shared_when_any_of_its_repos_may_be(machine: CacheMachine) -> None:
    both = machine.put(DATA, SECRET)
    only = machine.put(b"secret", SECRET)
    await machine.holdings.rescan()
    assert machine.holdings.get(both) is not None
    assert machine.holdings.shared(both) is None
    machine.put(DATA, PUBLIC)
    await machine.holdings.rescan(PUBLIC)
    shared = machine.holdings.shared(both)
    assert shared is not None
    assert shared.repo == PUBLIC
    assert machine.holdings.shared(only) is None
    assert machine.holdings.counts == Counts(2, 2, len(DATA) + 6)
    machine.allowed.clear()
    assert machine.holdings.shared(both) is None
    machine.path(PUBLIC, both).unlink()
    await machine.holdings.rescan()
    held = machine.holdings.get(both)
    assert held is not None
    assert held.repo == SECRET


async def test_a_made_up_listing_opens_no_other_repo(machine: CacheMachine) -> None:
    public: set[RepoId] = set()
    holdings = Holdings(machine.settings, machine.catalog, lambda _: True, is_public=lambda repo: repo in public)
    digest = machine.put(DATA, SECRET)
    await holdings.rescan()
    assert holdings.get_for(PUBLIC, digest) is None
    assert holdings.get_for(SECRET, digest) == holdings.get(digest)
    public.add(SECRET)
    assert holdings.get_for(PUBLIC, digest) == holdings.get(digest)


async def test_a_tree_is_given_for_what_is_held(machine: CacheMachine) -> None:
    digest = machine.put(DATA)
    tree = tree_of(DATA)
    await machine.holdings.rescan()
    assert await machine.holdings.tree(digest) is None
    machine.catalog.set_tree(digest, tree)
    await machine.holdings.rescan()
    assert await machine.holdings.tree(digest) == tree
    assert machine.holdings.table.pending() == []
    machine.catalog.set_tree(digest, tree_of(DATA[:-1]))  # cannot be of this blob
    assert await machine.holdings.tree(digest) is None
    machine.path(PUBLIC, digest).unlink()
    await machine.holdings.rescan()
    assert await machine.holdings.tree(digest) is None


def _replace(path: Path) -> None:
    seen = path.stat()
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    other.replace(path)


def _link_away(path: Path) -> None:
    elsewhere = path.parents[3] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _move_folder(path: Path) -> None:
    path.parent.rename(path.parents[1] / "gone")


CHANGES: list[Callable[[Path], None]] = [
    Path.unlink,
    os.utime,
    _replace,
    _link_away,
    _folder,
    _pipe,
    lambda path: os.truncate(path, 10),
    _move_folder,
]


@pytest.mark.parametrize("change", CHANGES)
async def test_only_the_file_that_was_verified_is_opened(machine: CacheMachine, change: Callable[[Path], None]) -> None:
    digest = machine.put(DATA)
    await machine.holdings.rescan()
    held = machine.holdings.get(digest)
    assert held is not None
    fd = machine.holdings.open(held)
    assert os.pread(fd, len(DATA) + 1, 0) == DATA
    os.close(fd)
    change(held.path)
    told = asyncio.Event()
    machine.holdings.subscribe(told.set)
    with pytest.raises(FileNotFoundError):
        await asyncio.to_thread(machine.holdings.open, held)
    assert machine.holdings.get(digest) is None
    async with asyncio.timeout(20):
        await told.wait()
    await machine.holdings.rescan()
    assert machine.holdings.get(digest) is None


async def test_a_link_planted_in_the_cache_is_never_held(machine: CacheMachine, tmp_path: Path) -> None:
    """FAULTS 3."""
    outside = tmp_path / "outside"
    outside.write_bytes(DATA)
    digest = sha256(DATA)
    path = machine.path(PUBLIC, digest)
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    machine.catalog.set_verified(path, digest, path.stat())
    planted = machine.cache / "models--org--planted"
    planted.symlink_to(machine.cache / PUBLIC.folder)
    await machine.holdings.rescan()
    assert machine.holdings.get(digest) is None
    assert machine.holdings.table.pending() == []


async def test_a_link_into_the_shared_store_of_the_cache_is_held(machine: CacheMachine) -> None:
    digest = sha256(DATA)
    stored = machine.cache / "blobs" / digest.hex[:2] / digest.hex
    stored.parent.mkdir(parents=True)
    stored.write_bytes(DATA)
    path = machine.path(PUBLIC, digest)
    path.parent.mkdir(parents=True)
    path.symlink_to(f"../../blobs/{digest.hex[:2]}/{digest.hex}")
    machine.catalog.set_verified(path, digest, path.stat())
    await machine.holdings.rescan()
    held = machine.holdings.get(digest)
    assert held is not None
    fd = machine.holdings.open(held)
    assert os.pread(fd, 16, 0) == DATA[:16]
    os.close(fd)
    stored.unlink()
    await machine.holdings.rescan()
    assert machine.holdings.get(digest) is None


async def test_withdrawn_until_read_again(machine: CacheMachine) -> None:
    digest = machine.put(DATA)
    machine.catalog.set_tree(digest, tree_of(DATA))
    await machine.holdings.rescan()
    machine.holdings.withdraw(digest)
    assert machine.holdings.get(digest) is None
    await machine.holdings.rescan()  # what the catalog says of it counts no longer
    assert machine.holdings.get(digest) is None
    (pending,) = machine.holdings.table.pending()
    assert machine.holdings.confirm(pending)
    assert machine.holdings.get(digest) == pending
    machine.holdings.withdraw(sha256(b"nobody has it"))


@pytest.mark.parametrize("brought", [True, False])
async def test_a_bit_that_flipped_under_an_unchanged_time_is_found(machine: CacheMachine, brought: bool) -> None:
    """FAULTS 28."""
    digest = machine.put(DATA, brought=brought)
    await machine.holdings.rescan()
    assert await machine.holdings.recheck(digest)
    assert machine.holdings.get(digest) is not None
    path = machine.path(PUBLIC, digest)
    flip(path, 300_000)
    rotten = path.read_bytes()
    assert not await machine.holdings.recheck(digest)
    assert machine.holdings.get(digest) is None
    if brought:
        assert not path.exists()
        (kept,) = (machine.home / "quarantine").iterdir()
        assert kept.read_bytes() == rotten
    else:  # a file of the user is never moved
        assert path.read_bytes() == rotten
        assert not (machine.home / "quarantine").exists()
    for holdings in (machine.holdings, machine.restarted()):
        await holdings.rescan()
        assert holdings.get(digest) is None
    assert not await machine.holdings.recheck(digest)


@pytest.mark.parametrize("rescanned", [True, False])
@pytest.mark.parametrize("brought", [True, False])
async def test_what_the_user_edited_is_never_moved(machine: CacheMachine, brought: bool, rescanned: bool) -> None:
    """Not even where edgecdn brought what was there before."""
    digest = machine.put(DATA, brought=brought)
    await machine.holdings.rescan()
    path = machine.path(PUBLIC, digest)
    path.write_bytes(DATA[:-1] + b"!")
    machine.holdings.withdraw(digest)
    if rescanned:
        await machine.holdings.rescan()
    assert not await machine.holdings.recheck(digest)
    assert machine.holdings.get(digest) is None
    assert path.read_bytes() == DATA[:-1] + b"!"
    assert not (machine.home / "quarantine").exists()


async def test_an_edited_file_of_the_same_name_in_another_repo_stays(machine: CacheMachine) -> None:
    digest = machine.put(DATA, brought=True)
    machine.put(b"edited", SECRET, digest=digest, verified=False)
    await machine.holdings.rescan()
    flip(machine.path(PUBLIC, digest), 300_000)
    machine.holdings.withdraw(digest)
    assert not await machine.holdings.recheck(digest)
    assert not machine.path(PUBLIC, digest).exists()
    assert machine.path(SECRET, digest).read_bytes() == b"edited"
    assert [holding.repo for holding in machine.holdings.table.pending()] == [SECRET]


async def test_trees_of_what_is_gone_are_forgotten_after_a_while(machine: CacheMachine, tmp_path: Path) -> None:
    now = [0.0]
    holdings = Holdings(machine.settings, machine.catalog, lambda _: True, lambda: now[0])
    gone, kept, elsewhere = machine.put(DATA), machine.put(b"kept"), sha256(b"elsewhere")
    for digest, data in ((gone, DATA), (kept, b"kept"), (elsewhere, b"elsewhere")):
        machine.catalog.set_tree(digest, tree_of(data))
    other = tmp_path / "other cache"
    other.write_bytes(b"elsewhere")
    machine.catalog.set_verified(other, elsewhere, other.stat())
    machine.path(PUBLIC, gone).unlink()
    for at_s, known in ((0.0, 3), (200.0, 3), (300.0, 2)):
        now[0] = at_s
        await holdings.rescan()
        assert len(machine.catalog.tree_digests()) == known
    assert machine.catalog.tree(gone) is None
    machine.put(DATA)
    await holdings.rescan()
    assert [holding.digest for holding in holdings.table.pending()] == [gone]


async def test_a_right_copy_stays_when_another_rotted(machine: CacheMachine) -> None:
    digest = machine.put(DATA)
    machine.put(DATA, SECRET)
    await machine.holdings.rescan()
    flip(machine.path(PUBLIC, digest), 0)
    assert await machine.holdings.recheck(digest)
    held = machine.holdings.get(digest)
    assert held is not None
    assert held.repo == SECRET
    assert machine.holdings.shared(digest) is None


async def test_subscribers_are_told_and_can_leave(machine: CacheMachine) -> None:
    told: list[int] = []
    leave = machine.holdings.subscribe(lambda: told.append(1))
    digest = machine.put(DATA)
    await machine.holdings.rescan()
    await until(machine.holdings, lambda: bool(told))
    assert machine.holdings.get(digest) is not None
    await machine.holdings.rescan()
    leave()
    await asyncio.sleep(0)
    count = len(told)
    machine.path(PUBLIC, digest).unlink()
    await machine.holdings.rescan()
    assert len(told) == count == 1


async def test_odd_things_in_a_cache_are_passed_over(machine: CacheMachine) -> None:
    digest = machine.put(DATA)
    blobs = machine.path(PUBLIC, digest).parent
    for name in (f"{digest.hex}.incomplete", "x", digest.hex[:-1], digest.hex.replace("a", "A") + "0", "tmp" * 50):
        (blobs / name).write_bytes(DATA)
    (blobs / ("0" * 64)).mkdir()
    (blobs / ("1" * 40)).symlink_to("loop")
    (blobs / "loop").symlink_to("1" * 40)
    (machine.cache / "models--").mkdir()
    (machine.cache / "models--a--file").write_bytes(b"")
    (machine.cache / "models--a--odd").mkdir()
    (machine.cache / "models--a--odd" / "blobs").write_bytes(b"")
    await machine.holdings.rescan()
    assert machine.holdings.counts.blobs == 1


async def test_a_thousand_blobs_are_ready_well_under_a_second(machine: CacheMachine) -> None:
    for repo in range(20):
        name = RepoId(RepoType.MODEL, f"org/repo-{repo}")
        for n in range(50):
            data = b"%d %d" % (repo, n)
            machine.put(data, name)
            machine.catalog.set_tree(sha256(data), tree_of(data))
    machine.catalog.close()
    started = time.process_time()
    holdings = machine.restarted()
    await holdings.rescan()
    took_s = time.process_time() - started
    print(f"1,000 blobs of 20 repos: {took_s * 1000:.0f} ms of work")
    assert holdings.counts.blobs == 1000
    assert holdings.table.pending() == []
    assert took_s < 1.0
