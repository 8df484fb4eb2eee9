"""What was verified on this machine, so that a file is hashed once; the only user of sqlite3 here.

Derived state: deleted, truncated or broken, it is set aside and begun anew, and files are hashed
again. A verification holds while size, modification time and inode are unchanged. It also
remembers which blobs edgecdn itself brought (only those may it ever delete), the piece trees of
blobs, and what hubs said about who may have a repo.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple, TypeVar

from edgecdn.digest import Digest
from edgecdn.errors import BadInput
from edgecdn.names import RepoId
from edgecdn.piecetree import PieceTree

__all__ = ["Catalog", "Verified"]

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS verified (
    path TEXT PRIMARY KEY, digest TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS brought (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trees (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, layer BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS sharing (
    repo TEXT PRIMARY KEY, shared INTEGER NOT NULL, checked_at REAL NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 2;
COMMIT;
"""
"""Version 2 adds the tables `trees` and `sharing` to version 1, so one script makes either into it."""
_REMEMBERED = "SELECT size, mtime_ns, inode FROM verified WHERE path = ?"
_VERSION = 2
_BUSY_S = 10.0
_T = TypeVar("_T")


class Verified(NamedTuple):
    """A file as it was when it was hashed, and the digest it had."""

    digest: str
    size: int
    mtime_ns: int
    inode: int


class Catalog:
    """One SQLite file. Thread-safe; a lost catalog only costs hashing, so its failures never fail a job."""

    def __init__(self, home: Path) -> None:
        self.path = home / "catalog.sqlite"
        self.rebuilt = False
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def is_verified(self, path: Path, digest: Digest, seen: os.stat_result) -> bool:
        """Whether this very file (`seen` is its fstat) was hashed before and had this digest."""
        sql = "SELECT digest, size, mtime_ns, inode FROM verified WHERE path = ?"
        row = self._run(lambda db: db.execute(sql, (str(path),)).fetchone(), None)
        return bool(row == (digest.hex, seen.st_size, seen.st_mtime_ns, seen.st_ino))

    def verified_under(self, folder: Path) -> dict[str, Verified]:
        """All that was verified below a folder, by path: one query, for looking through a whole cache."""
        sql = "SELECT path, digest, size, mtime_ns, inode FROM verified WHERE path > ? AND path < ?"
        ends = (f"{folder}/", f"{folder}0")  # `0` is the character after `/`
        return self._run(lambda db: {row[0]: Verified(*row[1:]) for row in db.execute(sql, ends)}, {})

    def set_verified(self, path: Path, digest: Digest, seen: os.stat_result, *, brought: bool = False) -> None:
        """Remember that this file was hashed and has this digest; `brought`: edgecdn put it there.

        A file that is not the one remembered came from somebody else: it no longer counts as brought.
        """
        row = (str(path), digest.hex, seen.st_size, seen.st_mtime_ns, seen.st_ino)

        def write(db: sqlite3.Connection) -> None:
            if not brought and db.execute(_REMEMBERED, (row[0],)).fetchone() != row[2:]:
                db.execute("DELETE FROM brought WHERE path = ?", (str(path),))
            db.execute("INSERT OR REPLACE INTO verified VALUES (?, ?, ?, ?, ?)", row)
            if brought:
                db.execute("INSERT OR IGNORE INTO brought VALUES (?)", (str(path),))

        self._run(write, None)

    def was_brought(self, path: Path, seen: os.stat_result) -> bool:
        """Whether edgecdn put this very file (`seen` is its lstat) there; False when not known."""
        sql = (
            "SELECT size, mtime_ns, inode FROM verified WHERE path = ? AND EXISTS "
            "(SELECT 1 FROM brought WHERE brought.path = verified.path)"
        )
        row = self._run(lambda db: db.execute(sql, (str(path),)).fetchone(), None)
        return bool(row == (seen.st_size, seen.st_mtime_ns, seen.st_ino))

    def forget(self, path: Path) -> None:
        """It is gone, or no longer what it was."""

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM verified WHERE path = ?", (str(path),))
            db.execute("DELETE FROM brought WHERE path = ?", (str(path),))

        self._run(write, None)

    def tree(self, digest: Digest) -> PieceTree | None:
        """The piece tree of a blob, as it was computed here; None when it is not known."""
        sql = "SELECT size, layer FROM trees WHERE digest = ?"
        row = self._run(lambda db: db.execute(sql, (digest.hex,)).fetchone(), None)
        try:
            return None if row is None else PieceTree.parse(*row)
        except (BadInput, TypeError):  # somebody else wrote into the database
            return None

    def set_tree(self, digest: Digest, tree: PieceTree) -> None:
        """Remember the piece tree of a blob whose whole digest was checked in the same reading."""
        row = (digest.hex, tree.size, tree.layer)
        self._run(lambda db: db.execute("INSERT OR REPLACE INTO trees VALUES (?, ?, ?)", row), None)

    def tree_digests(self) -> set[str]:
        """The blobs (their digests in hex) whose piece trees are known."""
        return self._run(lambda db: {row[0] for row in db.execute("SELECT digest FROM trees")}, set())

    def forget_trees(self, digests: Collection[str], *, besides: Path) -> set[str]:
        """Forget piece trees of blobs that are gone from the cache `besides`; returns those it forgot.

        What was verified in another cache keeps its tree.
        """
        sql = "SELECT DISTINCT digest FROM verified WHERE NOT (path > ? AND path < ?)"

        def write(db: sqlite3.Connection) -> set[str]:
            gone = set(digests) - {row[0] for row in db.execute(sql, (f"{besides}/", f"{besides}0"))}
            db.executemany("DELETE FROM trees WHERE digest = ?", [(digest,) for digest in gone])
            return gone

        return self._run(write, set())

    def sharing(self) -> dict[str, tuple[bool, float]]:
        """What hubs last said, by repo (`datasets/OWNER/NAME`): whether all may have it; when (Unix seconds)."""
        sql = "SELECT repo, shared, checked_at FROM sharing"
        return self._run(lambda db: {row[0]: (bool(row[1]), float(row[2])) for row in db.execute(sql)}, {})

    def set_sharing(self, repo: RepoId, *, shared: bool, checked_at: float) -> None:
        """Remember what a hub said about a repo."""
        row = (str(repo), shared, checked_at)
        self._run(lambda db: db.execute("INSERT OR REPLACE INTO sharing VALUES (?, ?, ?)", row), None)

    def check(self) -> str:
        """SQLite's own word on the file: `ok`, or what is wrong."""
        return self._run(lambda db: str(db.execute("PRAGMA integrity_check").fetchone()[0]), "not readable")

    def close(self) -> None:
        """Close it; safe to call twice."""
        with self._lock:
            self._close()

    def _run(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """Do `work` in a transaction; a broken file is set aside and begun anew, once."""
        with self._lock:
            for _ in range(2):
                try:
                    db = self._open()
                    with db:
                        return work(db)
                except sqlite3.DatabaseError as error:
                    self._close()
                    if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                        break  # full, locked, read-only: nothing is wrong with what is there
                    self._set_aside()
                except (OSError, UnicodeEncodeError):  # a path may have bytes that are no text
                    break
        return otherwise

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, timeout=_BUSY_S, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if not 0 <= version <= _VERSION:
                    raise sqlite3.DatabaseError("another schema")  # noqa: TRY301 - set aside as any broken file
                if version < _VERSION:
                    db.executescript(_SCHEMA)
            except sqlite3.DatabaseError:
                db.close()
                raise
            self._db = db
        return self._db

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _set_aside(self) -> None:
        with contextlib.suppress(OSError):
            self.path.replace(self.path.with_suffix(".broken"))
            for suffix in ("-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            self.rebuilt = True
