"""Files on their way in: written anywhere, remembered by unit, readable from the front.

`PartialFile` is a sparse file `blobs/<etag>.<8 hex>.incomplete` with its journal in our state;
`SmallFile` collects up to one unit in memory. Neither is ever visible under its final name before
`edgecdn.cache.publish` has checked it. Methods block; the engine calls them in threads.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Sequence

from edgecdn.cache.journal import Journal, new_header, read_journal
from edgecdn.cache.safedir import SafeDir, disk_errors
from edgecdn.crash import crash_point
from edgecdn.digest import Digest
from edgecdn.spans import UNIT_BYTES, Span, give_back, invert, journal_unit

__all__ = ["PartialFile", "PartialVanished", "SmallFile", "journal_name"]


class PartialVanished(Exception):
    """Somebody (a cache clean-up) took the partial file away; the blob starts again."""


def journal_name(digest: Digest) -> str:
    """The journal's file name in the folder of one cache's partials."""
    return f"{digest.hex}.journal"


class SmallFile:
    """At most one unit, in memory."""

    def __init__(self, digest: Digest, size: int) -> None:
        self.digest = digest
        self.size = size
        self.unit = UNIT_BYTES
        self.have: list[Span] = []
        self._data = bytearray(size)
        self._left = size

    @property
    def data(self) -> memoryview:
        """Its bytes."""
        return memoryview(self._data)

    def missing(self) -> list[Span]:
        """All of it: nobody keeps a part of a small file."""
        return [Span(0, self.size)] if self.size else []

    def prefix(self, at_least: int = 0) -> int:
        """All of it once all of it is there, else nothing."""
        return self.size if self._left == 0 else at_least

    def write(self, start: int, pieces: Sequence[bytes]) -> None:
        """Put `pieces` at `start`; each byte is written once."""
        for piece in pieces:
            self._data[start : start + len(piece)] = piece
            start += len(piece)
            self._left -= len(piece)

    def read_into(self, buffer: memoryview, start: int) -> int:
        """Fill `buffer` from `start`; fewer bytes at the end."""
        data = memoryview(self._data)[start : start + len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    def forget(self, spans: Sequence[Span]) -> None:
        """Count `spans` as missing again."""
        self._left += sum(map(len, spans))

    def sync(self, *, whole: bool = False) -> None:
        """Nothing to do before it is published."""

    def check_present(self) -> None:
        """Nobody can take it away."""

    def close(self, *, discard: bool = False) -> None:
        """Nothing to release."""


class PartialFile:
    """A sparse file and its journal. Made by `open_partial`; thread-safe."""

    def __init__(self, folder: SafeDir, state: SafeDir, digest: Digest, size: int) -> None:
        self.folder = folder
        self.digest = digest
        self.size = size
        self.name = ""
        self._journal = Journal(state, journal_name(digest))
        self._fd = -1
        self._lock = threading.Lock()
        self.unit = journal_unit(size)
        self._parts: dict[int, list[Span]] = {}
        self._left: list[int] = [min(self.unit, size - at) for at in range(0, size, self.unit)]
        if not self._resume(state):
            self._create()

    @property
    def have(self) -> list[Span]:
        """The units that are written, as spans."""
        return [
            Span(index * self.unit, min((index + 1) * self.unit, self.size))
            for index, left in enumerate(self._left)
            if left == 0
        ]

    @property
    def written_bytes(self) -> int:
        """How many bytes are there, those of units that are there in part too."""
        return self.size - sum(self._left)

    def prefix(self, at_least: int = 0) -> int:
        """How many bytes from the front are written without a gap; scanning starts at `at_least`."""
        index = at_least // self.unit
        while index < len(self._left) and self._left[index] == 0:
            index += 1
        return min(index * self.unit, self.size)

    def part_end(self, position: int) -> int:
        """Up to where the bytes from `position` on are written, in a unit that is there only in part; else `position`.

        Takes no lock, so that readers on the event loop need not wait for a writer: the lists are never changed.
        """
        spans = self._parts.get(position // self.unit, ())
        return next((span.stop for span in spans if span.start <= position < span.stop), position)

    def is_whole(self, index: int) -> bool:
        """Whether all of a unit is written."""
        return self._left[index] == 0

    def write(self, start: int, pieces: Sequence[bytes]) -> None:
        """Write `pieces` at `start`, then journal the units that became whole.

        The caller writes each byte once (the board leases ranges exclusively). Raises NoSpace, ReadOnlyStore.
        """
        position = start
        with disk_errors(self.folder.path):
            for group in (pieces[i : i + 512] for i in range(0, len(pieces), 512)):  # IOV_MAX is 1024
                position = self._write_group(position, group)
        crash_point("partial.written")
        self._count(start, position)

    def landed(self, spans: Sequence[Span]) -> None:
        """Count bytes that somebody else wrote into the file: each once, and only those that are in it by now."""
        for span in spans:
            self._count(span.start, span.stop)

    def drop_parts(self) -> list[Span]:
        """Count units that are there only in part as missing; returns what was there of them."""
        with self._lock:
            dropped = sorted(span for parts in self._parts.values() for span in parts)
            for index in self._parts:
                self._left[index] = min(self.unit, self.size - index * self.unit)
            self._parts.clear()
        return dropped

    def missing(self) -> list[Span]:
        """What is not there, to the byte: units that are there in part are missing only in part."""
        with self._lock:
            here = [*self.have, *(span for parts in self._parts.values() for span in parts)]
        return invert(sorted(here), self.size)

    def read_into(self, buffer: memoryview, start: int) -> int:
        """Fill `buffer` from `start`; fewer bytes at the end of the file."""
        return os.preadv(self._fd, [buffer], start)

    def forget(self, spans: Sequence[Span]) -> None:
        """Count the units of `spans` (each unit-aligned, or up to the end) as missing again."""
        with self._lock:
            for span in spans:
                for index in range(span.start // self.unit, -(-span.stop // self.unit)):
                    self._left[index] = min(self.unit, self.size - index * self.unit)
                    self._parts.pop(index, None)
            self._rewrite_journal()

    def sync(self, *, whole: bool = False) -> None:
        """Make what is written durable, and say so in the journal; `whole` also the file's own record."""
        with disk_errors(self.folder.path):
            (os.fsync if whole else os.fdatasync)(self._fd)
        with self._lock:
            self._journal.barrier()

    def stat(self) -> os.stat_result:
        """The file's own record: a rename changes neither inode nor modification time."""
        return os.fstat(self._fd)

    def duplicate(self) -> int:
        """A descriptor of its own for who reads it meanwhile, by position; raises FileNotFoundError once it is closed.

        Under the lock, so that the number is not by then that of another file.
        """
        with self._lock:
            if self._fd < 0:
                raise FileNotFoundError(self.name)
            return os.dup(self._fd)

    def check_present(self) -> None:
        """Raise PartialVanished when the file is no longer where it was."""
        there = self.folder.lstat(self.name)
        if there is None or there.st_ino != os.fstat(self._fd).st_ino:
            raise PartialVanished(self.name)

    def close(self, *, discard: bool = False, published: bool = False) -> None:
        """Close; `discard` deletes file and journal, `published` the journal alone. Safe to call twice."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd < 0:
            return
        os.close(fd)
        self._journal.close(remove=discard or published)
        if discard:
            self.folder.unlink(self.name)
        self.folder.close()

    def _write_group(self, position: int, pieces: Sequence[bytes]) -> int:
        wanted = position + sum(map(len, pieces))
        position += os.pwritev(self._fd, pieces, position)
        if position < wanted:  # a short write: almost always a full disk, which the next one reports
            rest = b"".join(pieces)
            while position < wanted:
                position += os.pwrite(self._fd, rest[len(rest) - (wanted - position) :], position)
        return position

    def _count(self, start: int, stop: int) -> None:
        with self._lock:
            for index in range(start // self.unit, -(-stop // self.unit)):
                low, high = index * self.unit, (index + 1) * self.unit
                part = Span(max(start, low), min(stop, high))
                self._left[index] -= len(part)
                assert self._left[index] >= 0, "bytes were leased twice"
                if self._left[index] == 0:
                    self._parts.pop(index, None)
                    self._journal.unit(index)
                else:
                    parts = [*self._parts.get(index, ())]
                    give_back(parts, part)
                    self._parts[index] = parts
        crash_point("partial.journaled")

    def _resume(self, state: SafeDir) -> bool:
        found = _journaled(self.folder, state, self.digest, self.size)
        if found is None:
            return False
        self.name, units = found
        self._fd = self.folder.open(self.name, os.O_RDWR)
        for index in units:
            if index < len(self._left):
                self._left[index] = 0
        self._journal.resume()
        return True

    def _create(self) -> None:
        self.name = f"{self.digest.hex}.{secrets.token_hex(4)}.incomplete"
        self._fd = self.folder.open(self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            with disk_errors(self.folder.path):
                os.ftruncate(self._fd, self.size)
            crash_point("partial.created")
            self._rewrite_journal()
        except BaseException:
            self.close(discard=True)
            raise

    def _rewrite_journal(self) -> None:
        self._journal.close()
        self._journal.create(new_header(self.digest, self.size, self.name, os.fstat(self._fd).st_ino))
        for index, left in enumerate(self._left):
            if left == 0:
                self._journal.unit(index)


def journaled_bytes(folder: SafeDir, state: SafeDir, digest: Digest, size: int) -> int:
    """How many bytes of a blob an earlier run has left in `folder`: those that a `PartialFile` would go on with."""
    found = _journaled(folder, state, digest, size)
    return 0 if found is None else min(len(found[1]) * journal_unit(size), size)


def _journaled(folder: SafeDir, state: SafeDir, digest: Digest, size: int) -> tuple[str, set[int]] | None:
    """A partial file's name and whole units, where it still is the file that was journaled."""
    found = read_journal(state, journal_name(digest))
    if found is None:
        return None
    header, units = found
    there = folder.lstat(header.partial) if "/" not in header.partial else None
    if (header.digest, header.size) != (digest.hex, size) or there is None:
        return None
    return (header.partial, units) if (there.st_ino, there.st_size) == (header.inode, size) else None
