"""The catalog: hashed once, remembered while unchanged, begun anew when it is damaged."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgecdn.cache.catalog import Catalog, Verified
from edgecdn.names import RepoId, RepoType
from edgecdn.piecetree import PieceTree, TreeBuilder
from tests.unit.made import lfs_file

DIGEST = lfs_file("m", b"data").digest
OTHER = lfs_file("m", b"other").digest


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(b"data")
    return path


def test_remembered_while_size_time_and_inode_are_the_same(catalog: Catalog, blob: Path) -> None:
    assert not catalog.is_verified(blob, DIGEST, blob.stat())
    catalog.set_verified(blob, DIGEST, blob.stat())
    assert catalog.is_verified(blob, DIGEST, blob.stat())
    assert not catalog.is_verified(blob, OTHER, blob.stat())
    assert not catalog.is_verified(blob.with_name("elsewhere"), DIGEST, blob.stat())
    catalog.close()
    assert Catalog(catalog.path.parent).is_verified(blob, DIGEST, blob.stat())


def _touch(path: Path) -> None:
    seen = path.stat()
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))


def _copy(path: Path) -> None:
    seen = path.stat()
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    os.utime(copy, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    copy.replace(path)


def _grow(path: Path) -> None:
    seen = path.stat()
    path.write_bytes(b"data!")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


@pytest.mark.parametrize("change", [_touch, _copy, _grow])
def test_forgotten_when_the_file_changed(catalog: Catalog, blob: Path, change: Callable[[Path], None]) -> None:
    catalog.set_verified(blob, DIGEST, blob.stat(), brought=True)
    assert catalog.was_brought(blob, blob.lstat())
    change(blob)
    assert not catalog.is_verified(blob, DIGEST, blob.stat())
    assert not catalog.was_brought(blob, blob.lstat())


def test_forget(catalog: Catalog, blob: Path) -> None:
    catalog.set_verified(blob, DIGEST, blob.stat(), brought=True)
    catalog.forget(blob)
    assert not catalog.is_verified(blob, DIGEST, blob.stat())
    assert not catalog.was_brought(blob, blob.lstat())


def test_only_what_edgecdn_brought_counts_as_brought(catalog: Catalog, blob: Path) -> None:
    catalog.set_verified(blob, DIGEST, blob.stat())
    assert not catalog.was_brought(blob, blob.lstat())
    catalog.set_verified(blob, DIGEST, blob.stat(), brought=True)
    catalog.set_verified(blob, DIGEST, blob.stat())  # hashed again: still the file we brought
    assert catalog.was_brought(blob, blob.lstat())
    _copy(blob)
    catalog.set_verified(blob, DIGEST, blob.stat())  # somebody else's file under the same name
    assert not catalog.was_brought(blob, blob.lstat())


def _filled(home: Path, blob: Path) -> Path:
    catalog = Catalog(home)
    for n in range(500):
        catalog.set_verified(blob.with_name(f"blob-{n}"), DIGEST, blob.stat())
    catalog.set_verified(blob, DIGEST, blob.stat())
    catalog.close()
    return catalog.path


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(9000))


def _smashed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [_halve, _garbage, _smashed])
def test_a_damaged_file_is_set_aside_and_begun_anew(tmp_path: Path, blob: Path, harm: Callable[[Path], None]) -> None:
    """FAULTS 29."""
    path = _filled(tmp_path, blob)
    harm(path)
    catalog = Catalog(tmp_path)
    for n in range(500):
        catalog.is_verified(blob.with_name(f"blob-{n}"), DIGEST, blob.stat())
    catalog.set_verified(blob, DIGEST, blob.stat())
    assert catalog.is_verified(blob, DIGEST, blob.stat())
    assert catalog.rebuilt
    assert catalog.check() == "ok"
    catalog.close()
    assert path.with_suffix(".broken").exists()


@pytest.mark.parametrize("left", [0, 7])
def test_an_empty_or_torn_file(tmp_path: Path, blob: Path, left: int) -> None:
    """FAULTS 37."""
    path = _filled(tmp_path, blob)
    os.truncate(path, left)
    catalog = Catalog(tmp_path)
    assert not catalog.is_verified(blob, DIGEST, blob.stat())
    catalog.set_verified(blob, DIGEST, blob.stat())
    assert catalog.is_verified(blob, DIGEST, blob.stat())
    assert catalog.check() == "ok"
    catalog.close()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_wal(tmp_path: Path, blob: Path, share: float) -> None:
    """FAULTS 29: what a machine that died leaves beside the database."""
    path = _filled(tmp_path, blob)
    live = sqlite3.connect(path)
    live.execute("PRAGMA wal_autocheckpoint=0")
    with live:
        live.execute("DELETE FROM verified WHERE path LIKE '%blob-%'")
    died = tmp_path / "died"
    died.mkdir()
    shutil.copy(path, died)
    wal = Path(shutil.copy(f"{path}-wal", died))
    live.close()
    os.truncate(wal, int(wal.stat().st_size * share))
    catalog = Catalog(died)
    catalog.set_verified(blob, DIGEST, blob.stat())
    assert catalog.is_verified(blob, DIGEST, blob.stat())
    assert catalog.check() == "ok"
    catalog.close()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_place_that_cannot_be_written_only_costs_hashing(tmp_path: Path, blob: Path, kind: str) -> None:
    home = tmp_path / "home"
    if kind == "file":
        home.write_bytes(b"in the way")
    else:
        (home / "catalog.sqlite").mkdir(parents=True)
    catalog = Catalog(home)
    catalog.set_verified(blob, DIGEST, blob.stat())
    catalog.forget(blob)
    assert not catalog.is_verified(blob, DIGEST, blob.stat())
    assert not catalog.was_brought(blob, blob.lstat())
    assert catalog.check() != "ok"
    catalog.close()
    assert not catalog.rebuilt


def test_a_read_only_database_is_left_as_it_is(tmp_path: Path, blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 26. Read-only by SQLite's own switch, for root may write anywhere."""
    path = _filled(tmp_path, blob)
    before = path.read_bytes()
    connect = sqlite3.connect

    def read_only(_path: Path, **options: object) -> sqlite3.Connection:
        return connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    catalog = Catalog(tmp_path)
    catalog.set_verified(blob.with_name("new"), DIGEST, blob.stat())
    assert not catalog.is_verified(blob.with_name("new"), DIGEST, blob.stat())
    catalog.close()
    assert not catalog.rebuilt
    assert path.read_bytes() == before


def _tree_of(data: bytes) -> PieceTree:
    builder = TreeBuilder(len(data))
    builder.update(data)
    return builder.finish()


def test_all_that_was_verified_below_a_folder(catalog: Catalog, blob: Path) -> None:
    cache = blob.parent / "cache"
    seen = blob.stat()
    for path in (cache / "a" / "1", cache / "z" / "2", Path(f"{cache}-other", "3"), Path(f"{cache}0"), cache, blob):
        catalog.set_verified(path, DIGEST, seen)
    row = Verified(DIGEST.hex, seen.st_size, seen.st_mtime_ns, seen.st_ino)
    assert catalog.verified_under(cache) == {str(cache / "a" / "1"): row, str(cache / "z" / "2"): row}
    assert catalog.verified_under(blob.parent / "nowhere") == {}


def test_piece_trees_are_remembered(catalog: Catalog) -> None:
    tree = _tree_of(b"x" * 600_000)
    assert catalog.tree(DIGEST) is None
    assert catalog.tree_digests() == set()
    catalog.set_tree(DIGEST, tree)
    catalog.close()
    again = Catalog(catalog.path.parent)
    assert again.tree(DIGEST) == tree
    assert again.tree_digests() == {DIGEST.hex}
    again.close()


@pytest.mark.parametrize("row", [(600_000, b"short"), (-5, b""), ("x", b"y" * 32), (10, None), (10, 7), (1 << 62, b"")])
def test_a_tree_that_cannot_be_one_is_not_believed(catalog: Catalog, row: tuple[object, ...]) -> None:
    catalog.set_tree(DIGEST, _tree_of(b"data"))
    with sqlite3.connect(catalog.path) as other:
        if row[1] is None:
            other.execute("DROP TABLE trees")
            other.execute("CREATE TABLE trees (digest TEXT PRIMARY KEY, size, layer)")
        other.execute("INSERT OR REPLACE INTO trees VALUES (?, ?, ?)", (DIGEST.hex, *row))
    other.close()
    assert catalog.tree(DIGEST) is None


def test_what_hubs_said_is_remembered(catalog: Catalog) -> None:
    model, dataset = RepoId(RepoType.MODEL, "org/name"), RepoId(RepoType.DATASET, "org/name")
    catalog.set_sharing(model, shared=True, checked_at=1000.5)
    catalog.set_sharing(dataset, shared=True, checked_at=1.0)
    catalog.set_sharing(dataset, shared=False, checked_at=2000.0)
    assert catalog.sharing() == {"org/name": (True, 1000.5), "datasets/org/name": (False, 2000.0)}


_FIRST_SCHEMA = """
CREATE TABLE verified (
    path TEXT PRIMARY KEY, digest TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE brought (path TEXT PRIMARY KEY) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


def test_a_database_of_the_first_version_keeps_its_rows(tmp_path: Path, blob: Path) -> None:
    seen = blob.stat()
    first = sqlite3.connect(tmp_path / "catalog.sqlite")
    first.execute("PRAGMA journal_mode=WAL")
    first.executescript(_FIRST_SCHEMA)
    with first:
        first.execute(
            "INSERT INTO verified VALUES (?, ?, ?, ?, ?)",
            (str(blob), DIGEST.hex, seen.st_size, seen.st_mtime_ns, seen.st_ino),
        )
        first.execute("INSERT INTO brought VALUES (?)", (str(blob),))
    first.close()
    catalog = Catalog(tmp_path)
    assert catalog.is_verified(blob, DIGEST, seen)
    assert catalog.was_brought(blob, blob.lstat())
    assert catalog.tree_digests() == set()
    catalog.set_tree(DIGEST, _tree_of(b"data"))
    assert catalog.tree(DIGEST) is not None
    assert catalog.check() == "ok"
    assert not catalog.rebuilt
    catalog.close()
    with sqlite3.connect(tmp_path / "catalog.sqlite") as opened:
        assert opened.execute("PRAGMA user_version").fetchone() == (2,)
    opened.close()


def test_a_database_of_a_later_version_is_set_aside(tmp_path: Path, blob: Path) -> None:
    path = _filled(tmp_path, blob)
    with sqlite3.connect(path) as later:
        later.execute("PRAGMA user_version = 3")
    later.close()
    catalog = Catalog(tmp_path)
    assert not catalog.is_verified(blob, DIGEST, blob.stat())
    assert catalog.rebuilt
    catalog.close()
    assert path.with_suffix(".broken").exists()


def test_a_path_that_is_no_text_only_costs_hashing(catalog: Catalog, blob: Path) -> None:
    odd = blob.with_name("\udcff")
    catalog.set_verified(odd, DIGEST, blob.stat())
    assert not catalog.is_verified(odd, DIGEST, blob.stat())
    assert catalog.verified_under(odd) == {}
    assert catalog.check() == "ok"
