"""Blob files on disk: which there are, opened as exactly the file that was meant. Blocking; called in threads."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import BadInput, CacheRefused, EdgecdnError
from edgecdn.names import RepoId

__all__ = ["Holding", "blob_files", "open_held"]


@dataclass(frozen=True, slots=True)
class Holding:
    """One blob file in one repo of the cache, as it was seen. Another inode, size or time is another file."""

    digest: Digest
    size: int
    path: Path
    repo: RepoId
    inode: int
    mtime_ns: int

    @property
    def has_tree(self) -> bool:
        """Whether there can be a piece tree of it: small plain files travel whole, empty ones have none."""
        return self.digest.kind is DigestKind.SHA256 and self.size > 0

    def is_file(self, seen: os.stat_result) -> bool:
        """Whether an open file (`seen` is its fstat) is this one."""
        return (seen.st_size, seen.st_ino, seen.st_mtime_ns) == (self.size, self.inode, self.mtime_ns)


def blob_files(cache_dir: Path, repo: RepoId) -> list[Holding]:
    """The complete blobs of a repo, whatever their bytes are; none where there is no such repo.

    A link counts when it leads, in one hop, into the cache's own shared store, and not otherwise.
    """
    try:
        with open_repo(cache_dir, repo) as store, store.blobs() as blobs:
            found = [_look(store, blobs, name) for name in blobs.names()]
    except (OSError, EdgecdnError):
        return []
    return [holding for holding in found if holding is not None]


def open_held(cache_dir: Path, holding: Holding) -> int:
    """Open exactly that file (the caller closes); raises FileNotFoundError when it is gone or another one.

    OSError and EdgecdnError else, when it cannot be opened.
    """
    with open_repo(cache_dir, holding.repo) as store:
        fd = _open(store, holding.digest)
    if not holding.is_file(os.fstat(fd)):
        os.close(fd)
        raise FileNotFoundError(f"{holding.path} is another file now")
    return fd


def _look(store: RepoStore, blobs: SafeDir, name: str) -> Holding | None:
    try:
        digest = Digest.parse(name)
        seen = blobs.lstat(name)
        if seen is not None and stat.S_ISLNK(seen.st_mode):
            seen = _stat(store, digest)
    except (BadInput, OSError, EdgecdnError):
        return None
    if seen is None or not stat.S_ISREG(seen.st_mode):
        return None
    return Holding(digest, seen.st_size, blobs.path / name, store.repo, seen.st_ino, seen.st_mtime_ns)


def _stat(store: RepoStore, digest: Digest) -> os.stat_result:
    fd = _open(store, digest)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _open(store: RepoStore, digest: Digest) -> int:
    try:
        fd = store.open_blob(digest)
    except CacheRefused as error:  # a link to elsewhere stands where the blob was: for us it is gone
        raise FileNotFoundError(str(error)) from error
    if fd is None:
        raise FileNotFoundError(f"{digest.hex} is not in {store.repo} any more")
    return fd
