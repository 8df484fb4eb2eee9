"""Publication: the only way a file gets its final name. Order is what keeps the store whole.

Per blob: hash checked (by the caller, from what is on disk) - synced - renamed - folder synced.
Per job, when the file set is complete: tree - links - ref. The tree comes before the links, so that
no client can take a snapshot of which half the links exist for complete; the ref comes last.
Every step has a crash point; after each the store is either as before or as after.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from edgecdn.cache.locks import client_lock
from edgecdn.cache.partial import PartialFile, SmallFile
from edgecdn.cache.safedir import SafeDir, disk_errors
from edgecdn.cache.store import RepoStore
from edgecdn.crash import crash_point
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import Revision

__all__ = ["publish_partial", "publish_small", "publish_snapshot"]


Record = Callable[[os.stat_result], None]
"""Remembers a file as verified and ours, before it has its name: an early row matches nothing, a late one may
find what another program renamed there meanwhile."""


def publish_partial(store: RepoStore, partial: PartialFile, record: Record) -> None:
    """Give a verified partial file its final name; raises PartialVanished, NoSpace, ReadOnlyStore."""
    crash_point("publish.1")
    partial.sync(whole=True)
    crash_point("publish.2")
    with store.locks() as locks, client_lock(locks, partial.digest.hex):
        partial.check_present()
        record(partial.stat())
        partial.folder.rename(partial.name, partial.digest.hex)
    crash_point("publish.3")
    partial.folder.sync()
    crash_point("publish.4")
    partial.close(published=True)


def publish_small(store: RepoStore, small: SmallFile, record: Record) -> None:
    """Write a verified small file; its folder is synced once, in `publish_snapshot`."""
    crash_point("publish.1")
    with store.blobs(create=True) as blobs:
        _write_small(store, blobs, small, record)
    crash_point("publish.3")


def _write_small(store: RepoStore, blobs: SafeDir, small: SmallFile, record: Record) -> None:
    name = f"{small.digest.hex}.{secrets.token_hex(4)}.incomplete"
    fd = blobs.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(fd, "wb") as file, disk_errors(blobs.path):
            file.write(small.data)
            file.flush()
            os.fsync(fd)
            record(os.fstat(fd))
        crash_point("publish.2")
        with store.locks() as locks, client_lock(locks, small.digest.hex):
            blobs.rename(name, small.digest.hex)
    except BaseException:
        blobs.unlink(name)
        raise


def publish_snapshot(
    store: RepoStore, manifest: Manifest, entries: Sequence[FileEntry], revision: Revision | None, aside: SafeDir
) -> list[Path]:
    """Make a commit's files visible: all blobs of `entries` are there and verified.

    `revision` is the branch or tag to move (None: none). Returns where files of the user's that
    stood in the way are now: in `aside`, or in the repo's folder when that is another disk.
    """
    with store.blobs(create=True) as blobs:
        blobs.sync()
    crash_point("publish.5")
    if store.read_tree(manifest.commit) != manifest_without_xet(manifest):
        store.write_tree(manifest)
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
