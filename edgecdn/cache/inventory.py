"""Which blobs of a file set are here and right. Each is hashed once; what rotted is set aside, never deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import RepoStore
from edgecdn.crash import crash_point
from edgecdn.digest import Digest
from edgecdn.errors import ReadOnlyStore
from edgecdn.manifest import FileEntry
from edgecdn.verify import hash_fd

__all__ = ["Inventory", "check_blob", "quarantine_dir", "set_aside", "take_inventory"]


@dataclass(frozen=True, slots=True)
class Inventory:
    """`here`: verified; `missing`: to be fetched; `rotten`: was there, wrong, set aside. One entry a digest."""

    here: tuple[FileEntry, ...]
    missing: tuple[FileEntry, ...]
    rotten: tuple[FileEntry, ...]


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
) -> Inventory:
    """Check every blob of `entries`. Blocks, hashing on all cores what was never checked; `hashing` is told of each.

    Raises Interrupted soon after `stop` is set.
    """
    unique = list({entry.digest: entry for entry in entries}.values())

    def check(entry: FileEntry) -> bool | None:
        return check_blob(store, catalog, entry.digest, entry.size, lambda: hashing(entry), stop=stop)

    with ThreadPoolExecutor(os.cpu_count() or 2, thread_name_prefix="edgecdn-hash") as pool:
        verdicts = list(pool.map(check, unique))
    here = tuple(e for e, v in zip(unique, verdicts, strict=True) if v)
    rotten = tuple(e for e, v in zip(unique, verdicts, strict=True) if v is False)
    missing = tuple(e for e, v in zip(unique, verdicts, strict=True) if not v)
    for entry in rotten:
        set_aside(store, catalog, entry.digest, home)
    return Inventory(here, missing, rotten)


def check_blob(
    store: RepoStore,
    catalog: Catalog,
    digest: Digest,
    size: int,
    hashing: Callable[[], None],
    *,
    again: bool = False,
    stop: Event | None = None,
) -> bool | None:
    """True: there and right (hashed now, or before and unchanged since). False: there and wrong. None: not there.

    `again` hashes whatever was remembered; Interrupted is raised soon after `stop` is set.
    """
    fd = store.open_blob(digest)
    if fd is None:
        return None
    path = store.path / "blobs" / digest.hex
    try:
        seen = os.fstat(fd)
        if not again and catalog.is_verified(path, digest, seen):
            return True
        hashing()
        if seen.st_size != size or not hash_fd(fd, digest, size, stop):
            return False
        catalog.set_verified(path, digest, seen)
        return True
    finally:
        os.close(fd)


def set_aside(store: RepoStore, catalog: Catalog, digest: Digest, home: Path) -> Path | None:
    """Move a wrong blob out of the cache; returns where it is now, None when it could not be moved (read-only)."""
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
                if isinstance(error, ReadOnlyStore):
                    raise
        with store.blobs() as blobs:  # another file system: it stays beside the good ones, under a name no client reads
            blobs.rename(digest.hex, f"{kept}.rotten")
            return blobs.path / f"{kept}.rotten"
    except ReadOnlyStore:
        return None
