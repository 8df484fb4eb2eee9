"""Verification: hash what was written, reading it back from the file. Blocking; called in threads."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from threading import Event

from edgecdn.digest import Digest
from edgecdn.errors import Interrupted
from edgecdn.piecetree import TreeBuilder

__all__ = ["PrefixVerifier", "hash_fd"]

_READ_BYTES = 1 << 20
"""Read at a time: large enough that hashing, which frees the interpreter, takes nearly all the time."""

Reader = Callable[[memoryview, int], int]
"""Fills a buffer from an offset and returns how many bytes it put there."""


class PrefixVerifier:
    """Hashes a file from the front as it becomes whole, so that little remains at the end.

    `tree`, when given, is built from the same reading.
    """

    def __init__(self, digest: Digest, size: int, read_into: Reader, tree: TreeBuilder | None = None) -> None:
        self.tree = tree
        self.digest = digest
        self.size = size
        self.position = 0
        self._read_into = read_into
        self._hasher = digest.hasher(size)
        self._buffer = memoryview(bytearray(min(_READ_BYTES, max(size, 1))))

    def advance(self, to: int) -> None:
        """Hash up to byte `to`, which must have been written."""
        while self.position < to:
            view = self._buffer[: min(len(self._buffer), to - self.position)]
            count = self._read_into(view, self.position)
            if count <= 0:
                raise OSError("the file is shorter than what was written to it")
            self._hasher.update(view[:count])
            if self.tree is not None:
                self.tree.update(view[:count])
            self.position += count

    @property
    def matches(self) -> bool:
        """Whether the whole file was hashed and is what it should be."""
        return self.position == self.size and self._hasher.hexdigest() == self.digest.hex


def hash_fd(fd: int, digest: Digest, size: int, stop: Event | None = None) -> bool:
    """Whether an open file of `size` bytes has this digest; a file that is shorter or has unreadable sectors has not.

    Raises Interrupted soon after `stop` is set: a large file takes minutes. Other failures to read
    (OSError) say nothing of the bytes, and are raised.
    """

    def read(view: memoryview, start: int) -> int:
        if stop is not None and stop.is_set():
            raise Interrupted
        return os.preadv(fd, [view], start)

    verifier = PrefixVerifier(digest, size, read)
    try:
        verifier.advance(size)
    except OSError as error:
        if error.errno not in (None, errno.EIO):  # None: shorter than it says
            raise
        return False
    return verifier.matches
