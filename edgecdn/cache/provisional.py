"""Listings that only peers vouch for, until a hub has confirmed them.

One small JSON file in our state. Lost, it costs a question: what is not in it counts as confirmed only
because every provisional listing is written here before its tree is written to the cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgecdn.cache.locks import FileLock
from edgecdn.cache.safedir import SafeDir
from edgecdn.errors import BadInput
from edgecdn.names import CommitId, RepoId, RepoType

__all__ = ["Provisional"]

_FILE = "provisional.json"
_LOCK = "provisional.lock"
_POLL_S = 0.01


class _Row(msgspec.Struct, frozen=True):
    type: str
    name: str
    commit: str


class Provisional:
    """The list of one home. Its methods block for a few milliseconds."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def all(self) -> list[tuple[RepoId, CommitId]]:
        """What still waits for a hub."""
        found: list[tuple[RepoId, CommitId]] = []
        for row in self._read():
            try:
                found.append((RepoId(RepoType(row.type), row.name), CommitId(row.commit)))
            except (BadInput, ValueError):
                continue
        return found

    def __contains__(self, pair: tuple[RepoId, CommitId]) -> bool:
        return pair in self.all()

    def add(self, repo: RepoId, commit: CommitId) -> None:
        """Remember, before the tree is written, that no hub has said so."""
        with self._alone() as home:
            self._write(home, [*self.all(), (repo, commit)])

    def confirm(self, repo: RepoId, commit: CommitId) -> None:
        """A hub's listing is written in the place of the claimed one: it counts from now on."""
        if (repo, commit) in self:
            with self._alone() as home:
                self._write(home, [pair for pair in self.all() if pair != (repo, commit)])

    def _read(self) -> list[_Row]:
        try:
            data = (self._home / _FILE).read_bytes()
            return msgspec.json.decode(data, type=list[_Row])
        except (OSError, msgspec.DecodeError):
            return []

    def _write(self, home: SafeDir, pairs: list[tuple[RepoId, CommitId]]) -> None:
        rows = [_Row(repo.type.value, repo.name, commit.hex) for repo, commit in dict.fromkeys(pairs)]
        if rows:
            home.write_whole(_FILE, msgspec.json.encode(rows))
        elif os.path.lexists(self._home / _FILE):
            home.unlink(_FILE)

    @contextmanager
    def _alone(self) -> Iterator[SafeDir]:
        """Read, changed and written by one at a time: a fetch of another repo must not undo it."""
        with SafeDir.at(self._home, create=True) as home:
            lock = FileLock(home, _LOCK)
            while not lock.try_acquire():
                time.sleep(_POLL_S)
            try:
                yield home
            finally:
                lock.release()
