"""Locks between processes, by `flock`: released by the kernel when a process dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from edgecdn.cache.safedir import SafeDir
from edgecdn.errors import ReadOnlyStore

__all__ = ["FileLock", "client_lock"]

_CLIENT_WAIT_S = 5.0
_POLL_S = 0.05
"""flock has no wait with a limit: it is asked again this often (seconds)."""

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
"""What file systems without flock answer."""


class FileLock:
    """An exclusive lock on a file in a folder of ours."""

    def __init__(self, folder: SafeDir, name: str) -> None:
        self._folder = folder
        self._name = name
        self._fd = -1

    def try_acquire(self) -> bool:
        """Take it if it is free; False when another process or job has it."""
        fd = self._folder.open(self._name, os.O_RDWR | os.O_CREAT, 0o664)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.fstat(fd)
            there = self._folder.lstat(self._name)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
                return False
            raise
        if there is None or (there.st_ino, there.st_dev) != (mine.st_ino, mine.st_dev):
            os.close(fd)  # the holder removed the file while we waited: this lock protects nothing
            return self.try_acquire()
        self._fd = fd
        return True

    def release(self, *, remove: bool = False) -> None:
        """Give it back; `remove` also takes the file away."""
        if self._fd >= 0:
            if remove:
                self._folder.unlink(self._name)
            os.close(self._fd)
            self._fd = -1


@contextmanager
def client_lock(locks: SafeDir, etag: str, *, waits: bool = True) -> Iterator[None]:
    """Hold the hub client's own lock on a blob while publishing it; blocks up to 5 s.

    A client that downloads the same file holds it for as long as that takes. After 5 s the
    publication goes on without: the content is the same and the rename is atomic. So it does where
    the lock cannot be had at all: it is another user's file, `locks` is closed (see
    `RepoStore.locks`), or the file system has none. `waits`: not for a lock whose holder may be waiting
    for this very publication.
    """
    lock = FileLock(locks, f"{etag}.lock")
    deadline = time.monotonic() + (_CLIENT_WAIT_S if waits else 0.0)
    while not _is_settled(lock, locks) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        lock.release()


def _is_settled(lock: FileLock, locks: SafeDir) -> bool:
    """Whether there is nothing to wait for: it was taken, or cannot be had."""
    try:
        return locks.fd < 0 or lock.try_acquire()
    except ReadOnlyStore:
        return True
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True
        raise
