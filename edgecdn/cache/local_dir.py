"""`--local-dir`: the files as plain files in a folder of the user's, as huggingface_hub places them.

Each is a reflink where the file system allows, else a copy: never a hard link, so that editing it
cannot damage the cache. A file that was changed since it was placed is the user's and is not touched.
Metadata lies in `.cache/huggingface/download/`, so that hub clients take the folder as their own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from edgecdn.cache.safedir import SafeDir, disk_errors
from edgecdn.digest import Digest
from edgecdn.errors import BadInput, NoSpace
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.verify import hash_fd

__all__ = ["place", "placing_problems"]

_FICLONE = 0x40049409
"""ioctl that shares the blocks of two files (Linux: Btrfs, XFS, bcachefs)."""

_METADATA = (".cache", "huggingface", "download")
_NAMED = 5


def placing_problems(target: Path, entries: Sequence[FileEntry]) -> str:
    """Why `entries` cannot be placed in `target` without touching something of the user's; empty when they can."""
    if not target.exists():
        return ""
    with SafeDir.at(target) as base:
        changed = [str(e.path) for e in entries if _state(base, e) == "changed"]
    if not changed:
        return ""
    named = ", ".join(changed[:_NAMED]) + (f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else "")
    return (
        f"In {target} these files are not as any download left them, and are not overwritten: {named}; "
        "move them away or choose another folder"
    )


def place(snapshot: Path, target: Path, manifest: Manifest, entries: Sequence[FileEntry]) -> Path:
    """Put `entries` of a complete snapshot into `target`; returns its absolute path.

    Raises BadInput (the user's own files are in the way), NoSpace, ReadOnlyStore.
    """
    problem = placing_problems(target, entries)
    if problem:
        raise BadInput(problem)
    with SafeDir.at(target, create=True) as base:
        todo = [entry for entry in entries if _state(base, entry) != "same"]
        needed = sum(entry.size for entry in todo)
        free = shutil.disk_usage(target).free
        for entry in todo:
            if not _place_one(snapshot, base, entry, clone_only=needed > free):
                raise NoSpace(f"{needed} bytes are needed and {free} are free", where=target)
        for entry in entries:
            _write_metadata(base, manifest, entry)
    return target.absolute()


def _state(base: SafeDir, entry: FileEntry) -> str:
    """`absent`; `same` bytes already; `placed` by an earlier download and unchanged since; or `changed` by the user."""
    try:
        with base.sub(*entry.path.parents) as folder:
            there = folder.lstat(entry.path.name)
            if there is None:
                return "absent"
            if not stat.S_ISREG(there.st_mode):
                return "changed"
            fd = folder.open(entry.path.name, os.O_RDONLY)
    except FileNotFoundError:
        return "absent"
    try:
        if there.st_size == entry.size and hash_fd(fd, entry.digest, entry.size):
            return "same"
        placed = _read_metadata(base, entry)
        return "placed" if placed is not None and hash_fd(fd, placed, there.st_size) else "changed"
    finally:
        os.close(fd)


def _place_one(snapshot: Path, base: SafeDir, entry: FileEntry, *, clone_only: bool) -> bool:
    with base.sub(*entry.path.parents, create=True) as folder:
        temporary = f".{entry.path.name[:200]}.{os.urandom(4).hex()}.incomplete"
        source = os.open(snapshot / str(entry.path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            fd = folder.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                with disk_errors(folder.path):
                    if not _clone(source, fd):
                        if clone_only:
                            return False
                        _copy(source, fd, entry.size)
                    os.fsync(fd)
                folder.rename(temporary, entry.path.name)
            finally:
                os.close(fd)
                folder.unlink(temporary)
        finally:
            os.close(source)
    return True


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _copy(source: int, target: int, size: int) -> None:
    offset = 0
    while offset < size:
        count = os.sendfile(target, source, offset, min(1 << 24, size - offset))
        if count == 0:
            raise OSError("the file in the cache became shorter")
        offset += count


def _read_metadata(base: SafeDir, entry: FileEntry) -> Digest | None:
    try:
        with base.sub(*_METADATA, *entry.path.parents) as folder:
            fd = folder.open(f"{entry.path.name}.metadata", os.O_RDONLY)
        with os.fdopen(fd, "rb") as file:
            return Digest.parse(file.read(4096).decode("ascii").splitlines()[1])
    except (OSError, ValueError, IndexError):
        return None


def _write_metadata(base: SafeDir, manifest: Manifest, entry: FileEntry) -> None:
    with base.sub(*_METADATA, *entry.path.parents, create=True) as folder:
        text = f"{manifest.commit.hex}\n{entry.digest.hex}\n{time.time()}\n"
        folder.write_whole(f"{entry.path.name}.metadata", text.encode(), sync=False)
