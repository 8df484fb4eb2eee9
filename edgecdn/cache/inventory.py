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

__all__ = ["BlobCheck", "Glance", "Inventory", "check_blob", "glance", "quarantine_dir", "set_aside", "take_inventory"]


@dataclass(frozen=True, slots=True)
class Inventory:
    """`here`: verified; `missing`: to be fetched; `rotten`: those that were there, wrong. One entry a digest."""

    here: tuple[FileEntry, ...]
    missing: tuple[FileEntry, ...]
    rotten: tuple[FileEntry, ...]
    aside: Mapping[Digest, Path] = field(default_factory=dict, compare=False)
    """Where the rotten ones are now that were set aside."""
    seen: Mapping[Digest, os.stat_result] = field(default_factory=dict, compare=False)
    """Which files those are that are here."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What can be told without hashing: `here`: verified before; `unproven`: a file (as seen) stands there."""

    here: tuple[FileEntry, ...]
    unproven: Mapping[FileEntry, os.stat_result]
    absent: tuple[FileEntry, ...]
    seen: Mapping[Digest, os.stat_result] = field(default_factory=dict, compare=False)
    """Which files those are that are here."""


@dataclass(frozen=True, slots=True)
class BlobCheck:
    """Whether a blob has the bytes its name says; `seen`: the file that was looked at."""

    right: bool
    seen: os.stat_result


def quarantine_dir(home: Path) -> SafeDir:
    """Where files are moved that are not what their name says, or stand in the way; nothing empties it by itself."""
    return SafeDir.at(home / "quarantine", create=True)


def glance(store: RepoStore, catalog: Catalog, entries: Iterable[FileEntry]) -> Glance:
    """Look for the blobs of `entries` (one entry a digest) without reading them. Blocks, shortly."""
    here: list[FileEntry] = []
    unproven: dict[FileEntry, os.stat_result] = {}
    absent: list[FileEntry] = []
    verified: dict[Digest, os.stat_result] = {}
    for entry in entries:
        seen = _seen(store, entry.digest)
        if seen is None:
            absent.append(entry)
        elif catalog.is_verified(store.path / "blobs" / entry.digest.hex, entry.digest, seen):
            here.append(entry)
            verified[entry.digest] = seen
        else:
            unproven[entry] = seen
    return Glance(tuple(here), unproven, tuple(absent), verified)


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

    looked = glance(store, catalog, unique)  # first: most need no hashing, and no threads for it
    checks: dict[FileEntry, BlobCheck | None] = {}
    if looked.unproven:
        with ThreadPoolExecutor(os.cpu_count() or 2, thread_name_prefix="edgecdn-hash") as pool:
            checks = dict(zip(looked.unproven, pool.map(check, looked.unproven), strict=True))
    proven = {entry: found.seen for entry, found in checks.items() if found is not None and found.right}
    right = {*looked.here, *proven}
    files = {**looked.seen, **{entry.digest: seen for entry, seen in proven.items()}}
    here = tuple(entry for entry in unique if entry in right)
    missing = tuple(entry for entry in unique if entry not in right)
    wrong = {entry: found.seen for entry, found in checks.items() if found is not None and not found.right}
    aside: dict[Digest, Path] = {}
    for entry, seen in wrong.items() if set_aside_rotten else ():
        kept = set_aside(store, catalog, entry.digest, home, seen)
        if kept is not None:
            aside[entry.digest] = kept
    return Inventory(here, missing, tuple(wrong), aside, files)


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


def _seen(store: RepoStore, digest: Digest) -> os.stat_result | None:
    fd = store.open_blob(digest)
    if fd is None:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _is_still(store: RepoStore, digest: Digest, hashed: os.stat_result) -> bool:
    try:
        now = _seen(store, digest)
    except (CacheRefused, ReadOnlyStore):
        return False
    return now is not None and (now.st_dev, now.st_ino, now.st_mtime_ns) == (
        hashed.st_dev,
        hashed.st_ino,
        hashed.st_mtime_ns,
    )
