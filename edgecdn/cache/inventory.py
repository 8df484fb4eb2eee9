"""Which blobs of a file set are here and right. Each is hashed once; what rotted is set aside, never deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import RepoStore
from edgecdn.crash import crash_point
from edgecdn.digest import Digest
from edgecdn.errors import CacheRefused, ReadOnlyStore
from edgecdn.manifest import FileEntry
from edgecdn.verify import hash_fd

__all__ = ["BlobCheck", "Inventory", "check_blob", "quarantine_dir", "set_aside", "take_inventory"]


@dataclass(frozen=True, slots=True)
class Inventory:
    """`here`: verified; `missing`: to be fetched; `rotten`: those that were there, wrong. One entry a digest."""

    here: tuple[FileEntry, ...]
    missing: tuple[FileEntry, ...]
    rotten: tuple[FileEntry, ...]
    aside: Mapping[Digest, Path] = field(default_factory=dict, compare=False)
    """Where the rotten ones are now that were set aside."""


@dataclass(frozen=True, slots=True)
class BlobCheck:
    """Whether a blob has the bytes its name says; `seen`: the file that was looked at."""

    right: bool
    seen: os.stat_result


def quarantine_dir(home: Path) -> SafeDir:
    """Where files are moved that are not what their name says, or stand in the way; nothing empties it by itself."""
    return SafeDir.at(home / "quarantine", create=True)


def take_inventory(
    store: RepoStore,
    catalog: Catalog,
    entries: Iterable[FileEntry],
    home: Path,
    hashing: Callable[[FileEntry], None] = lambda _entry: None,
    stop: Event | None = None,
    *,
    set_aside_rotten: bool,
) -> Inventory:
    """Check every blob of `entries`. Blocks, hashing on all cores what was never checked; `hashing` is told of each.

    `set_aside_rotten`: a wrong blob is hashed a second time, and moved away when it is still wrong; for
    this the caller holds the repo's job lock. Raises Interrupted soon after `stop` is set.
    """
    unique = list({entry.digest: entry for entry in entries}.values())

    def check(entry: FileEntry) -> BlobCheck | None:
        found = check_blob(store, catalog, entry.digest, entry.size, lambda: hashing(entry), stop=stop)
        if set_aside_rotten and found is not None and not found.right:
            return check_blob(store, catalog, entry.digest, entry.size, lambda: None, again=True, stop=stop)
        return found

    with ThreadPoolExecutor(os.cpu_count() or 2, thread_name_prefix="edgecdn-hash") as pool:
        checks = list(zip(unique, pool.map(check, unique), strict=True))
    here = tuple(entry for entry, found in checks if found is not None and found.right)
    missing = tuple(entry for entry, found in checks if found is None or not found.right)
    wrong = {entry: found.seen for entry, found in checks if found is not None and not found.right}
    aside: dict[Digest, Path] = {}
    for entry, seen in wrong.items() if set_aside_rotten else ():
        kept = set_aside(store, catalog, entry.digest, home, seen)
        if kept is not None:
            aside[entry.digest] = kept
    return Inventory(here, missing, tuple(wrong), aside)


def check_blob(
    store: RepoStore,
    catalog: Catalog,
    digest: Digest,
    size: int,
    hashing: Callable[[], None],
    *,
    again: bool = False,
    stop: Event | None = None,
) -> BlobCheck | None:
    """Whether a blob is right (hashed now, or before and unchanged since); None: not there.

    `again` hashes whatever was remembered; Interrupted is raised soon after `stop` is set.
    """
    fd = store.open_blob(digest)
    if fd is None:
        return None
    path = store.path / "blobs" / digest.hex
    try:
        seen = os.fstat(fd)
        if not again and catalog.is_verified(path, digest, seen):
            return BlobCheck(True, seen)
        hashing()
        if seen.st_size != size or not hash_fd(fd, digest, size, stop):
            return BlobCheck(False, seen)
        catalog.set_verified(path, digest, seen)
        return BlobCheck(True, seen)
    finally:
        os.close(fd)


def set_aside(store: RepoStore, catalog: Catalog, digest: Digest, home: Path, hashed: os.stat_result) -> Path | None:
    """Move a wrong blob out of the cache; returns where it is now.

    None: it was not moved, because it cannot be (read-only), is gone, or is no longer the file that
    was `hashed`.
    """
    if not _is_still(store, digest, hashed):
        return None
    path = store.path / "blobs" / digest.hex
    catalog.forget(path)
    crash_point("quarantine.1")
    kept = f"{digest.hex}.{os.urandom(4).hex()}"
    try:
        with quarantine_dir(home) as aside, store.blobs() as blobs:
            try:
                blobs.rename(digest.hex, kept, to=aside)
                return aside.path / kept
            except OSError as error:
                if isinstance(error, ReadOnlyStore | FileNotFoundError):
                    raise
        with store.blobs() as blobs:  # another file system: it stays beside the good ones, under a name no client reads
            blobs.rename(digest.hex, f"{kept}.rotten")
            return blobs.path / f"{kept}.rotten"
    except (ReadOnlyStore, FileNotFoundError):  # not ours to move; or another process was first
        return None


def _is_still(store: RepoStore, digest: Digest, hashed: os.stat_result) -> bool:
    try:
        fd = store.open_blob(digest)
    except (CacheRefused, ReadOnlyStore):
        return False
    if fd is None:
        return False
    try:
        now = os.fstat(fd)
    finally:
        os.close(fd)
    return (now.st_dev, now.st_ino, now.st_mtime_ns) == (hashed.st_dev, hashed.st_ino, hashed.st_mtime_ns)
