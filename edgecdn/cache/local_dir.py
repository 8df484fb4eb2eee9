"""`--local-dir`: the files as plain files in a folder of the user's, as huggingface_hub places them.

Each is a reflink where the file system allows, else a copy: never a hard link, so that editing it
cannot damage the cache. A file that was changed since it was placed is the user's and is not touched.
Metadata lies in `.cache/huggingface/download/`, so that hub clients take the folder as their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event

from edgecdn.cache.safedir import SafeDir, cut_name, disk_errors
from edgecdn.digest import Digest
from edgecdn.errors import BadInput, Interrupted, NoSpace
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.verify import hash_fd

__all__ = ["PlacingPlan", "place", "plan_placing"]

_FICLONE = 0x40049409
"""ioctl that shares the blocks of two files (Linux: Btrfs, XFS, bcachefs)."""

_METADATA = (".cache", "huggingface", "download")
_NAMED = 5
_MOST_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class PlacingPlan:
    """What was found in `target`, each file hashed once. `needed`: bytes that copies of the rest take."""

    target: Path
    found: tuple[_Found, ...]
    problem: str
    """Why the files cannot be placed without touching something of the user's; empty when they can."""
    needed: int

    def needed_on(self, device: int) -> int:
        """Bytes that placing takes on the disk `device`; none where files share blocks."""
        room = _existing(self.target)
        return 0 if room.stat().st_dev != device or _shares_blocks(room) else self.needed


def plan_placing(target: Path, entries: Sequence[FileEntry], stop: Event | None = None) -> PlacingPlan:
    """Look at what is in `target` before the first byte is fetched. Blocks, hashing what may be right already.

    Raises NoSpace, CacheRefused; Interrupted soon after `stop` is set.
    """
    found = tuple(_Found(entry, "absent", None) for entry in entries)
    if target.exists():
        with SafeDir.at(target) as base:
            found = tuple(_find(base, entry, stop) for entry in entries)
    problem = _problem(target, found)
    needed = sum(one.entry.size for one in found if one.state != "same")
    room = _existing(target)
    free = shutil.disk_usage(room).free
    if not problem and needed > free and not _shares_blocks(room):
        raise NoSpace(f"{needed} bytes are needed and {free} are free", where=target)
    return PlacingPlan(target, found, problem, needed)


def place(plan: PlacingPlan, snapshot: Path, manifest: Manifest, stop: Event | None = None) -> Path:
    """Put the planned files of a complete snapshot into the target; returns its absolute path.

    Files that changed since the plan was made are looked at again. Raises BadInput (the user's own
    files are in the way), NoSpace, ReadOnlyStore; Interrupted soon after `stop` is set.
    """
    with SafeDir.at(plan.target, create=True) as base:
        found = [one if _is_as_found(base, one) else _find(base, one.entry, stop) for one in plan.found]
        problem = plan.problem or _problem(plan.target, found)
        if problem:
            raise BadInput(problem)
        todo = [one.entry for one in found if one.state != "same"]
        needed = sum(entry.size for entry in todo)
        free = shutil.disk_usage(plan.target).free
        for entry in todo:
            if not _place_one(snapshot, base, entry, clone_only=needed > free, stop=stop):
                raise NoSpace(f"{needed} bytes are needed and {free} are free", where=plan.target)
        for one in found:
            _write_metadata(base, manifest, one.entry)
    return plan.target.absolute()


@dataclass(frozen=True, slots=True)
class _Found:
    """`absent`; `same` bytes already; `placed` by an earlier download and unchanged since; or `changed` by the user."""

    entry: FileEntry
    state: str
    seen: os.stat_result | None


def _problem(target: Path, found: Sequence[_Found]) -> str:
    changed = [str(one.entry.path) for one in found if one.state == "changed"]
    if not changed:
        return ""
    named = ", ".join(changed[:_NAMED]) + (f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else "")
    return (
        f"In {target} these files are not as any download left them, and are not overwritten: {named}; "
        "move them away or choose another folder"
    )


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _shares_blocks(folder: Path) -> bool:
    """Whether its file system can copy without taking space."""
    try:
        with TemporaryFile(dir=folder) as one, TemporaryFile(dir=folder) as other:
            one.write(b"\0" * 4096)
            one.flush()
            return _clone(one.fileno(), other.fileno())
    except OSError:
        return False


def _look(base: SafeDir, entry: FileEntry) -> os.stat_result | None:
    try:
        with base.sub(*entry.path.parents) as folder:
            return folder.lstat(entry.path.name)
    except FileNotFoundError:
        return None


def _is_as_found(base: SafeDir, one: _Found) -> bool:
    now = _look(base, one.entry)
    if now is None or one.seen is None:
        return now is one.seen
    return (now.st_ino, now.st_size, now.st_mtime_ns) == (one.seen.st_ino, one.seen.st_size, one.seen.st_mtime_ns)


def _find(base: SafeDir, entry: FileEntry, stop: Event | None) -> _Found:
    there = _look(base, entry)
    if there is None:
        return _Found(entry, "absent", None)
    if not stat.S_ISREG(there.st_mode):
        return _Found(entry, "changed", there)
    try:
        with base.sub(*entry.path.parents) as folder:
            fd = folder.open(entry.path.name, os.O_RDONLY)
    except FileNotFoundError:
        return _Found(entry, "absent", None)
    try:
        there = os.fstat(fd)
        if there.st_size == entry.size and hash_fd(fd, entry.digest, entry.size, stop):
            return _Found(entry, "same", there)
        placed = _read_metadata(base, entry)
        is_ours = placed is not None and placed != entry.digest and hash_fd(fd, placed, there.st_size, stop)
        return _Found(entry, "placed" if is_ours else "changed", there)
    finally:
        os.close(fd)


def _place_one(snapshot: Path, base: SafeDir, entry: FileEntry, *, clone_only: bool, stop: Event | None) -> bool:
    with base.sub(*entry.path.parents, create=True) as folder:
        temporary = f".{cut_name(entry.path.name)}.{os.urandom(4).hex()}.incomplete"
        source = os.open(snapshot / str(entry.path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            fd = folder.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                with disk_errors(folder.path):
                    if not _clone(source, fd):
                        if clone_only:
                            return False
                        _copy(source, fd, entry.size, stop)
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


def _copy(source: int, target: int, size: int, stop: Event | None) -> None:
    offset = 0
    while offset < size:
        if stop is not None and stop.is_set():
            raise Interrupted
        count = os.sendfile(target, source, offset, min(1 << 24, size - offset))
        if count == 0:
            raise OSError("the file in the cache became shorter")
        offset += count


def _read_metadata(base: SafeDir, entry: FileEntry) -> Digest | None:
    try:
        with base.sub(*_METADATA, *entry.path.parents) as folder:
            fd = folder.open(_metadata_name(entry), os.O_RDONLY)
        with os.fdopen(fd, "rb") as file:
            return Digest.parse(file.read(4096).decode("ascii").splitlines()[1])
    except (OSError, ValueError, IndexError):
        return None


def _write_metadata(base: SafeDir, manifest: Manifest, entry: FileEntry) -> None:
    with base.sub(*_METADATA, *entry.path.parents, create=True) as folder:
        text = f"{manifest.commit.hex}\n{entry.digest.hex}\n{time.time()}\n"
        folder.write_whole(_metadata_name(entry), text.encode(), sync=False)


def _metadata_name(entry: FileEntry) -> str:
    """The hub client's name for it; another where that would be too long for a file system (there it has none)."""
    name = entry.path.name
    if len(name.encode()) + len(".metadata") <= _MOST_NAME_BYTES:
        return f"{name}.metadata"
    return f"{cut_name(name)}.{hashlib.sha256(name.encode()).hexdigest()[:16]}.metadata"
