"""What is here and right: hashed once, rotten blobs set aside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.inventory import Inventory, check_blob, take_inventory
from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.manifest import FileEntry
from tests.unit.made import REPO, git_file, lfs_file

GOOD = lfs_file("good", b"good bytes")
SMALL = git_file("small", b"{}")
ABSENT = lfs_file("absent", b"not here")
EMPTY = git_file("empty", b"")


class Machine:
    """A repo in a cache, and what was hashed of it."""

    def __init__(self, base: Path) -> None:
        self.home = base / "home"
        self.catalog = Catalog(self.home)
        self.store: RepoStore = open_repo(base / "cache", REPO, create=True)
        self.hashed: list[FileEntry] = []
        self.store.blobs(create=True).close()
        for entry, data in ((GOOD, b"good bytes"), (SMALL, b"{}"), (EMPTY, b"")):
            self.path(entry).write_bytes(data)

    def path(self, entry: FileEntry) -> Path:
        return self.store.path / "blobs" / entry.digest.hex

    def look(self, *entries: FileEntry) -> Inventory:
        self.hashed.clear()
        return take_inventory(self.store, self.catalog, entries, self.home, self.hashed.append)

    def quarantined(self) -> dict[str, bytes]:
        return {p.name.partition(".")[0]: p.read_bytes() for p in (self.home / "quarantine").glob("*")}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.store.close()
    made.catalog.close()


def test_here_and_missing_one_entry_a_digest(machine: Machine) -> None:
    twin = lfs_file("elsewhere/good-too", b"good bytes")
    found = machine.look(GOOD, ABSENT, twin, SMALL, EMPTY)
    assert {e.digest for e in found.here} == {GOOD.digest, SMALL.digest, EMPTY.digest}
    assert found.missing == (ABSENT,)
    assert found.rotten == ()
    assert len(found.here) == 3


def test_hashed_once_then_remembered(machine: Machine) -> None:
    machine.look(GOOD, SMALL)
    assert len(machine.hashed) == 2
    machine.look(GOOD, SMALL)
    assert machine.hashed == []
    os.utime(machine.path(GOOD))
    machine.look(GOOD, SMALL)
    assert machine.hashed == [GOOD]


def test_again_hashes_whatever_was_remembered(machine: Machine) -> None:
    assert machine.look(GOOD).here == (GOOD,)
    hashed: list[int] = []
    for again in (False, True):
        told = lambda: hashed.append(1)  # noqa: E731 - one word of it is needed
        assert check_blob(machine.store, machine.catalog, GOOD.digest, GOOD.size, told, again=again)
        assert len(hashed) == int(again)


@pytest.mark.parametrize("rot", [b"good bytez", b"", b"good", b"good bytes and more"])
def test_a_rotten_blob_is_set_aside_and_missing(machine: Machine, rot: bytes) -> None:
    """FAULTS 28: never served, never deleted."""
    machine.look(GOOD)
    machine.path(GOOD).write_bytes(rot)
    found = machine.look(GOOD, SMALL)
    assert found == Inventory(here=(SMALL,), missing=(GOOD,), rotten=(GOOD,))
    assert not machine.path(GOOD).exists()
    assert machine.quarantined() == {GOOD.digest.hex: rot}
    assert machine.look(GOOD) == Inventory((), (GOOD,), ())
    machine.path(GOOD).write_bytes(b"good bytes")
    assert machine.look(GOOD).here == (GOOD,)


def test_a_flip_that_hides_its_time_is_found_by_hashing_again(machine: Machine) -> None:
    machine.look(GOOD)
    path, seen = machine.path(GOOD), machine.path(GOOD).stat()
    path.write_bytes(b"good bytez")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert machine.look(GOOD).here == (GOOD,)  # as remembered: the price of hashing once
    assert check_blob(machine.store, machine.catalog, GOOD.digest, GOOD.size, lambda: None, again=True) is False


def test_a_lost_catalog_only_costs_hashing(machine: Machine) -> None:
    """FAULTS 29."""
    machine.look(GOOD, SMALL)
    machine.catalog.close()
    machine.catalog.path.unlink()
    assert len(machine.look(GOOD, SMALL).here) == 2
    assert len(machine.hashed) == 2
