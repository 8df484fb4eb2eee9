"""What is in a cache: repos, commits, files, sizes. Reading only; tolerant of whatever lies around."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.digest import Digest
from edgecdn.errors import BadInput, CacheRefused
from edgecdn.names import CommitId, RepoId

__all__ = ["BlobOnDisk", "CommitOnDisk", "RepoOnDisk", "blobs_on_disk", "cached_repos", "scan_repo"]


@dataclass(frozen=True, slots=True)
class BlobOnDisk:
    """A complete blob: its digest, its size in bytes, where it is."""

    digest: Digest
    size: int
    path: Path


@dataclass(frozen=True, slots=True)
class CommitOnDisk:
    """A snapshot: its files (path in the repo to digest, None for one that is no link) and the refs that name it."""

    commit: CommitId
    files: dict[str, Digest | None]
    refs: tuple[str, ...]
    complete: bool | None
    """Whether every file of the commit is here; None when its listing is not known."""


@dataclass(frozen=True, slots=True)
class RepoOnDisk:
    """One repo of the cache."""

    repo: RepoId
    blobs: tuple[BlobOnDisk, ...]
    commits: tuple[CommitOnDisk, ...]
    partial_bytes: int
    """On the disk, of files that are not complete."""
    leftover_bytes: int = 0
    """On the disk, of partial files of what is complete by now."""

    @property
    def size(self) -> int:
        """Bytes of its complete blobs."""
        return sum(blob.size for blob in self.blobs)


def cached_repos(cache_dir: Path) -> list[RepoId]:
    """Repos that have a folder in the cache, by name."""
    found: list[RepoId] = []
    try:
        names = sorted(entry.name for entry in cache_dir.iterdir())
    except OSError:
        return []
    for name in names:
        try:
            found.append(RepoId.from_folder(name))
        except BadInput:
            continue
    return found


def scan_repo(cache_dir: Path, repo: RepoId) -> RepoOnDisk:
    """Look through one repo; raises FileNotFoundError, CacheRefused when its folder is a link."""
    with open_repo(cache_dir, repo) as store:
        blobs = tuple(blobs_on_disk(store))
        commits = tuple(_commit(store, commit) for commit in store.commits())
        return RepoOnDisk(repo, blobs, commits, *_partial_bytes(store, blobs))


def blobs_on_disk(store: RepoStore) -> Iterator[BlobOnDisk]:
    """The complete blobs of a repo, links into the shared store included."""
    try:
        blobs = store.blobs()
    except FileNotFoundError:
        return
    with blobs:
        for name in blobs.names():
            try:
                digest = Digest.parse(name)
                path = blobs.path / name
                seen = path.stat()
            except (BadInput, OSError):
                continue
            if stat.S_ISREG(seen.st_mode):
                yield BlobOnDisk(digest, seen.st_size, path)


def _commit(store: RepoStore, commit: CommitId) -> CommitOnDisk:
    base = store.snapshot_path(commit)
    files: dict[str, Digest | None] = {}
    for path in sorted(base.rglob("*")):
        if path.is_symlink() or path.is_file():
            files[path.relative_to(base).as_posix()] = _linked_digest(path)
    manifest = store.read_tree(commit)
    complete = None if manifest is None else all((base / str(e.path)).exists() for e in manifest.files)
    refs = tuple(name for name, target in store.refs().items() if target == commit)
    return CommitOnDisk(commit, files, refs, complete)


def _linked_digest(path: Path) -> Digest | None:
    try:
        return Digest.parse(path.readlink().name)
    except (OSError, BadInput):
        return None


def _partial_bytes(store: RepoStore, complete: Sequence[BlobOnDisk]) -> tuple[int, int]:
    """Of files that are not complete, and of those that are."""
    done = {blob.digest.hex for blob in complete}
    unfinished = leftover = 0
    with suppress(FileNotFoundError, CacheRefused), store.blobs() as blobs:
        for name in blobs.names():
            seen = blobs.lstat(name) if name.endswith(".incomplete") else None
            if seen is None:
                continue
            if name.partition(".")[0] in done:
                leftover += seen.st_blocks * 512
            else:
                unfinished += seen.st_blocks * 512
    return unfinished, leftover
