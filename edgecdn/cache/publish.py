"""Publication: the only way a file gets its final name. Order is what keeps the store whole.

Per blob: hash checked (by the caller, from what is on disk) - synced - renamed - folder synced.
Per job, when the file set is complete: tree - links - ref. The tree comes before the links, so that
no client can take a snapshot of which half the links exist for complete; the ref comes last.
Every step has a crash point; after each the store is either as before or as after.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from edgecdn.cache.locks import client_lock
from edgecdn.cache.partial import PartialFile, SmallFile
from edgecdn.cache.safedir import SafeDir, disk_errors
from edgecdn.cache.store import RepoStore
from edgecdn.crash import crash_point
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, Revision

__all__ = ["WrittenTrees", "publish_partial", "publish_small", "publish_snapshot"]


Record = Callable[[os.stat_result], None]
"""Remembers a file as verified and ours, before it has its name: an early row matches nothing, a late one may
find what another program renamed there meanwhile."""


_MOST_TREES = 64
"""Listings remembered: of the commits that are being fetched file by file."""


class WrittenTrees:
    """Which listings are in the cache as they should be, so that one of 10,000 files is not read again for each file.

    Thread-safe. A listing that somebody else writes meanwhile has another stamp, and is looked at again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[Path, CommitId], tuple[Manifest, tuple[int, int, int]]] = {}

    def ensure(self, store: RepoStore, manifest: Manifest) -> None:
        """Write the listing of a commit unless it stands there."""
        key = store.path, manifest.commit
        with self._lock:
            known = self._known.get(key)
        said = known is not None and (known[0] is manifest or known[0] == manifest)
        if said and known is not None and known[1] == store.tree_stamp(manifest.commit):
            return
        if store.read_tree(manifest.commit) != manifest_without_xet(manifest):
            store.write_tree(manifest)
        stamp = store.tree_stamp(manifest.commit)
        with self._lock:
            self._known.pop(key, None)
            if stamp is not None:
                self._known[key] = manifest, stamp
            while len(self._known) > _MOST_TREES:
                del self._known[next(iter(self._known))]


def publish_partial(store: RepoStore, partial: PartialFile, record: Record, *, waits: bool = True) -> None:
    """Give a verified partial file its final name; raises PartialVanished, NoSpace, ReadOnlyStore.

    `waits`: for a hub client that has the file locked (`client_lock`).
    """
    crash_point("publish.1")
    partial.sync(whole=True)
    crash_point("publish.2")
    with store.locks() as locks, client_lock(locks, partial.digest.hex, waits=waits):
        partial.check_present()
        record(partial.stat())
        partial.folder.rename(partial.name, partial.digest.hex)
    crash_point("publish.3")
    partial.folder.sync()
    crash_point("publish.4")
    partial.close(published=True)


def publish_small(store: RepoStore, small: SmallFile, record: Record, *, waits: bool = True) -> None:
    """Write a verified small file; its folder is synced once, in `publish_snapshot`. `waits`: as above."""
    crash_point("publish.1")
    with store.blobs(create=True) as blobs:
        _write_small(store, blobs, small, record, waits=waits)
    crash_point("publish.3")


def _write_small(store: RepoStore, blobs: SafeDir, small: SmallFile, record: Record, *, waits: bool) -> None:
    name = f"{small.digest.hex}.{secrets.token_hex(4)}.incomplete"
    fd = blobs.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(fd, "wb") as file, disk_errors(blobs.path):
            file.write(small.data)
            file.flush()
            os.fsync(fd)
            record(os.fstat(fd))
        crash_point("publish.2")
        with store.locks() as locks, client_lock(locks, small.digest.hex, waits=waits):
            blobs.rename(name, small.digest.hex)
    except BaseException:
        blobs.unlink(name)
        raise


def publish_snapshot(
    store: RepoStore,
    manifest: Manifest,
    entries: Sequence[FileEntry],
    revision: Revision | None,
    aside: SafeDir,
    trees: WrittenTrees | None = None,
) -> list[Path]:
    """Make a commit's files visible: all blobs of `entries` are there and verified.

    `revision` is the branch or tag to move (None: none). `trees` remembers listings. Returns where files
    of the user's that stood in the way are now: in `aside`, or in the repo's folder when that is another disk.
    """
    with store.blobs(create=True) as blobs:
        blobs.sync()
    crash_point("publish.5")
    (trees or WrittenTrees()).ensure(store, manifest)
    crash_point("publish.6")
    moved = [kept for entry in entries if (kept := store.link(manifest.commit, entry, aside)) is not None]
    store.sync_snapshot(manifest.commit, tuple(entries))
    crash_point("publish.7")
    if revision is not None and store.read_ref(revision) != manifest.commit:
        store.write_ref(revision, manifest.commit)
    crash_point("publish.9")
    return moved


def manifest_without_xet(manifest: Manifest) -> Manifest:
    """The manifest as its tree file says it."""
    files = tuple(FileEntry(e.path, e.size, e.digest, e.git_oid) for e in manifest.files)
    return Manifest(manifest.repo, manifest.commit, files)
