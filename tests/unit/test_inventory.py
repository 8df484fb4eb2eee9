"""What is here and right: hashed once, rotten blobs set aside."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecdn.cache import inventory as inventory_module
from edgecdn.cache.catalog import Catalog
from edgecdn.cache.inventory import Inventory, check_blob, set_aside, take_inventory
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
        return take_inventory(self.store, self.catalog, entries, self.home, self.hashed.append, set_aside_rotten=True)

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
        found = check_blob(machine.store, machine.catalog, GOOD.digest, GOOD.size, told, again=again)
        assert found is not None
        assert found.right
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
    assert [kept.read_bytes() for kept in found.aside.values()] == [rot]
    assert machine.look(GOOD) == Inventory((), (GOOD,), ())
    machine.path(GOOD).write_bytes(b"good bytes")
    assert machine.look(GOOD).here == (GOOD,)


def test_a_flip_that_hides_its_time_is_found_by_hashing_again(machine: Machine) -> None:
    machine.look(GOOD)
    path, seen = machine.path(GOOD), machine.path(GOOD).stat()
    path.write_bytes(b"good bytez")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert machine.look(GOOD).here == (GOOD,)  # as remembered: the price of hashing once
    again = check_blob(machine.store, machine.catalog, GOOD.digest, GOOD.size, lambda: None, again=True)
    assert again is not None
    assert not again.right


def test_a_lost_catalog_only_costs_hashing(machine: Machine) -> None:
    """FAULTS 29."""
    machine.look(GOOD, SMALL)
    machine.catalog.close()
    machine.catalog.path.unlink()
    assert len(machine.look(GOOD, SMALL).here) == 2
    assert len(machine.hashed) == 2


def _wrong(machine: Machine) -> os.stat_result:
    machine.path(GOOD).write_bytes(b"good bytez")
    found = check_blob(machine.store, machine.catalog, GOOD.digest, GOOD.size, lambda: None)
    assert found is not None
    assert not found.right
    return found.seen


def test_without_the_lock_a_rotten_blob_is_only_reported(machine: Machine) -> None:
    _wrong(machine)
    found = take_inventory(machine.store, machine.catalog, [GOOD], machine.home, set_aside_rotten=False)
    assert found == Inventory((), (GOOD,), (GOOD,))
    assert found.aside == {}
    assert machine.path(GOOD).read_bytes() == b"good bytez"


def test_a_blob_that_was_replaced_since_it_was_hashed_is_not_set_aside(machine: Machine) -> None:
    seen = _wrong(machine)
    other = machine.path(GOOD).with_suffix(".other")
    other.write_bytes(b"good bytes")
    other.replace(machine.path(GOOD))
    assert set_aside(machine.store, machine.catalog, GOOD.digest, machine.home, seen) is None
    assert machine.path(GOOD).read_bytes() == b"good bytes"
    assert machine.quarantined() == {}


def test_a_blob_that_another_process_set_aside_first_is_no_error(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _wrong(machine)
    monkeypatch.setattr(inventory_module, "crash_point", lambda _name: machine.path(GOOD).unlink())
    assert set_aside(machine.store, machine.catalog, GOOD.digest, machine.home, seen) is None
    assert set_aside(machine.store, machine.catalog, GOOD.digest, machine.home, seen) is None


def test_a_blob_that_was_only_read_wrong_once_stays(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failed, guard = os.preadv, [False], threading.Lock()

    def fail_once(fd: int, buffers: list[memoryview], offset: int) -> int:
        with guard:
            if not failed[0]:
                failed[0] = True
                raise OSError(errno.EIO, "the cable was loose")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", fail_once)
    assert machine.look(GOOD).here == (GOOD,)
    assert failed == [True]


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EACCES, errno.ENOMEM])
def test_what_cannot_be_read_is_not_taken_for_wrong(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(_fd: int, _buffers: object, _offset: int) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", fail)
        with pytest.raises(OSError, match=os.strerror(code)):
            machine.look(GOOD)
    assert machine.quarantined() == {}
    assert machine.look(GOOD).here == (GOOD,)
