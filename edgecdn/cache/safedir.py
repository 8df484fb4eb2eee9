"""SafeDir: a folder held open, below which nothing follows a symbolic link.

Every step is an `openat` with O_NOFOLLOW, so that a link planted inside the cache cannot lead a
write or a read outside of it, whatever happens between a check and a use. Foreign errors become
ours here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from edgecdn.crash import crash_point
from edgecdn.errors import CacheRefused, HomeFull, HomeReadOnly, NoSpace, ReadOnlyStore
from edgecdn.settings import home_dir

__all__ = ["SafeDir", "cut_name", "disk_errors"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_OF_HOME = frozenset({"partials", "quarantine"})
"""Folders of the home that files are kept in."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def disk_errors(where: object) -> Iterator[None]:
    """Translate what a disk can say into our errors; FileNotFoundError and the rest pass through."""
    try:
        yield
    except OSError as error:
        home = _home_of(where) if error.errno in _FULL | _READ_ONLY else None
        if error.errno in _FULL:
            raise (HomeFull if home else NoSpace)(
                "the disk is full" if error.errno == errno.ENOSPC else "the quota is used up",
                where=home or where,
            ) from error
        if error.errno in _READ_ONLY:
            kind = HomeReadOnly if home else ReadOnlyStore
            raise kind(error.strerror or str(error), where=home or where) from error
        if error.errno == errno.ELOOP:
            raise CacheRefused(
                "a symbolic link stands where a file or folder of the cache belongs", where=where
            ) from error
        raise


def _home_of(where: object) -> Path | None:
    """The user's home of edgecdn, where `where` is it or one of the things kept in it (a cache may lie below, too)."""
    home = home_dir(os.environ)
    path = Path(str(where))
    for base in (home, home.resolve()):
        if path.is_relative_to(base):
            parts = path.relative_to(base).parts
            return home if len(parts) <= 1 or parts[0] in _OF_HOME else None
    return None


def cut_name(name: str, most_bytes: int = 200) -> str:
    """As much of a file name as fits: file systems limit bytes, not characters."""
    return name.encode("utf-8", "surrogateescape")[:most_bytes].decode("utf-8", "ignore")


class SafeDir:
    """An open folder. Names are single components; `path` is for messages only."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path

    @property
    def stable_path(self) -> Path:
        """A path that leads to this very folder while it is open, for a library that only takes paths (Linux)."""
        by_fd = Path(f"/proc/self/fd/{self.fd}")
        return by_fd if by_fd.exists() else self.path

    @classmethod
    def at(cls, path: Path, *, create: bool = False) -> SafeDir:
        """Open the base. The base itself may be reached through links: that is the user's own choice.

        Raises FileNotFoundError, ReadOnlyStore, CacheRefused when it is no folder.
        """
        with disk_errors(path):
            if create:
                path.mkdir(parents=True, exist_ok=True)
            try:
                return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path)
            except NotADirectoryError as error:
                raise CacheRefused("it is not a folder", where=path) from error

    def sub(self, *parts: str, create: bool = False) -> SafeDir:
        """Open a folder below this one, one component at a time.

        Raises FileNotFoundError when it is not there (and not to be created), CacheRefused for a link.
        """
        fd = os.dup(self.fd)
        path = self.path
        for part in parts:
            path = path / part
            try:
                next_fd = self._open_folder(fd, part, path, create=create)
            finally:
                os.close(fd)
            fd = next_fd
        return SafeDir(fd, path)

    @staticmethod
    def _open_folder(fd: int, part: str, path: Path, *, create: bool) -> int:
        with disk_errors(path):
            try:
                return os.open(part, _FOLDER, dir_fd=fd)
            except FileNotFoundError:
                if not create:
                    raise
            except NotADirectoryError as error:
                is_link = stat.S_ISLNK(os.stat(part, dir_fd=fd, follow_symlinks=False).st_mode)
                what = "a symbolic link" if is_link else "something that is no folder"
                raise CacheRefused(f"{what} stands where a folder of the cache belongs", where=path) from error
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=fd)
            return os.open(part, _FOLDER, dir_fd=fd)

    def open(self, name: str, flags: int, mode: int = 0o644) -> int:
        """Open a file in it; the caller closes. Raises CacheRefused for a link; a named pipe is not waited for."""
        with disk_errors(self.path / name):
            return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode, dir_fd=self.fd)

    def lstat(self, name: str) -> os.stat_result | None:
        """The entry itself, not what it points to; None when there is none."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """What is in it, sorted."""
        return sorted(os.listdir(self.fd))  # noqa: PTH208 - an open folder has no Path

    def readlink(self, name: str) -> str | None:
        """Where a link points, as written; None when the entry is no link."""
        try:
            return os.readlink(name, dir_fd=self.fd)
        except (OSError, ValueError):
            return None

    def symlink(self, target: str, name: str) -> None:
        """Make a link; raises FileExistsError."""
        with disk_errors(self.path / name):
            os.symlink(target, name, dir_fd=self.fd)

    def rename(self, old: str, new: str, to: SafeDir | None = None) -> None:
        """Move an entry, replacing what has the new name."""
        with disk_errors(self.path / new):
            os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=(to or self).fd)

    def unlink(self, name: str) -> None:
        """Remove a file or link; absent is fine."""
        with disk_errors(self.path / name):
            try:
                os.unlink(name, dir_fd=self.fd)
            except FileNotFoundError:
                return

    def rmdir(self, name: str) -> bool:
        """Remove an empty folder; False when it is not empty or not there."""
        try:
            os.rmdir(name, dir_fd=self.fd)
        except OSError:
            return False
        return True

    def write_whole(self, name: str, data: bytes, *, sync: bool = True, begun_in: SafeDir | None = None) -> None:
        """Write a small file completely, then rename it into place.

        `begun_in`: where the temporary is made, for folders of which every file is read by others.
        """
        begun = begun_in or self
        temporary = f"{cut_name(name)}.{os.getpid():x}-{os.urandom(4).hex()}.tmp"
        fd = begun.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with disk_errors(self.path / name), os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            if begun_in is not None:
                crash_point("publish.8")
            begun.rename(temporary, name, to=self)
        except BaseException:
            begun.unlink(temporary)
            raise

    def sync(self) -> None:
        """Make renames and new names in it durable."""
        with disk_errors(self.path):
            os.fsync(self.fd)

    def close(self) -> None:
        """Close it; safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> SafeDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
