"""Putting verified blobs into a client's own cache: hard link, reflink or copy, never a symbolic link.

Only under `<cache>/<repo>/blobs/<etag>`, only in folders of this user, and never over what is there. Blocking; called
in threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event

from edgecdn.cache.locks import client_lock
from edgecdn.cache.safedir import SafeDir, disk_errors
from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.digest import Digest
from edgecdn.errors import CacheRefused, Interrupted
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import RepoId, Revision

__all__ = ["Progress", "has_blob", "place_blob", "place_snapshot"]

Progress = Callable[[int], None]
"""Is told the bytes of the file that are there."""

_FICLONE = 0x40049409
_COPY_BYTES = 1 << 24
_NO_LINK = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOENT}
)
"""Another disk, another owner, too many names, a file system without: then it is copied."""


def has_blob(cache_dir: Path, repo: RepoId, digest: Digest) -> bool:
    """Whether a client finds a blob of this name in its cache."""
    try:
        with open_repo(cache_dir, repo) as store, store.blobs() as blobs:
            return blobs.lstat(digest.hex) is not None
    except FileNotFoundError:
        return False


def place_blob(source: int, cache_dir: Path, repo: RepoId, entry: FileEntry, progress: Progress, stop: Event) -> None:
    """Give the verified file open as `source` a name in a cache.

    Raises CacheRefused where the cache is not this user's, NoSpace, ReadOnlyStore, Interrupted after `stop`.
    """
    with open_repo(cache_dir, repo, create=True) as store:
        _place(source, store, entry, progress, stop)


def place_snapshot(
    own: RepoStore, cache_dir: Path, manifest: Manifest, revision: Revision, progress: Progress, stop: Event
) -> None:
    """Put what `own` has of a commit into another cache: blobs, listing, links, and the ref last."""
    entries = [entry for entry in manifest.files if own.has_link(manifest.commit, entry)]
    done = 0
    with open_repo(cache_dir, manifest.repo, create=True) as store:
        for entry in entries:
            source = own.open_blob(entry.digest)
            if source is None:
                raise FileNotFoundError(f"{entry.path} went away")
            before = done
            try:
                _place(source, store, entry, lambda count, before=before: progress(before + count), stop)  # type: ignore[misc]
            finally:
                os.close(source)
            done += entry.size
        _link(store, manifest, entries, revision)


def _link(store: RepoStore, manifest: Manifest, entries: Iterable[FileEntry], revision: Revision) -> None:
    entries = tuple(entries)
    if store.read_tree(manifest.commit) is None:
        store.write_tree(manifest)
    for entry in entries:
        store.link(manifest.commit, entry)
    store.sync_snapshot(manifest.commit, entries)
    if revision.commit is None and store.read_ref(revision) != manifest.commit:
        store.write_ref(revision, manifest.commit)


def _place(source: int, store: RepoStore, entry: FileEntry, progress: Progress, stop: Event) -> None:
    with store.blobs(create=True) as blobs:
        _refuse_foreign(store.folder, blobs)
        if blobs.lstat(entry.digest.hex) is not None:
            progress(entry.size)
            return
        begun = f"{entry.digest.hex}.{secrets.token_hex(4)}.incomplete"
        try:
            if not _hard_link(source, blobs, begun):
                _copy(source, blobs, begun, entry.size, progress, stop)
            with store.locks() as locks, client_lock(locks, entry.digest.hex):
                blobs.rename(begun, entry.digest.hex)
        finally:
            # Still there where another placed it meanwhile: between two links of one file, rename does nothing.
            blobs.unlink(begun)
        blobs.sync()
        progress(entry.size)


def _refuse_foreign(*folders: SafeDir) -> None:
    for folder in folders:
        if os.fstat(folder.fd).st_uid != os.getuid():
            raise CacheRefused("it is a folder of another user", where=folder.path)


def _hard_link(source: int, blobs: SafeDir, name: str) -> bool:
    """Of exactly the file that is open, whatever has its name now."""
    try:
        os.link(f"/proc/self/fd/{source}", name, dst_dir_fd=blobs.fd, follow_symlinks=True)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        with disk_errors(blobs.path):
            raise
    return True


def _copy(source: int, blobs: SafeDir, name: str, size: int, progress: Progress, stop: Event) -> None:
    target = blobs.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with disk_errors(blobs.path):
            if not _cloned(source, target):
                _copy_bytes(source, target, size, progress, stop)
            os.fsync(target)
    finally:
        os.close(target)


def _cloned(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _copy_bytes(source: int, target: int, size: int, progress: Progress, stop: Event) -> None:
    offset = 0
    while offset < size:
        if stop.is_set():
            raise Interrupted
        count = os.sendfile(target, source, offset, min(_COPY_BYTES, size - offset))
        if count == 0:
            raise OSError("the file in the cache became shorter")
        offset += count
        progress(offset)
