"""Files on their way in, as others see them who read them meanwhile.

An `Arrival` outlives the transfer that fills it: when that ends early, and another goes on with the same
partial file, its readers go on too. What they were told is there and then was not (wrong bytes, a partial
file that vanished or is another one now) is counted by `mark`: who has passed such bytes on must stop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from edgecdn.cache.partial import PartialFile, SmallFile
from edgecdn.changes import Changes
from edgecdn.digest import Digest
from edgecdn.errors import EdgecdnError
from edgecdn.manifest import FileEntry
from edgecdn.names import RepoId

__all__ = ["Arrival", "Arrivals", "Body", "ReadablePartial", "StandingFile", "same_file"]


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether it is one file, with the bytes it had."""
    return (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) == (
        other.st_dev,
        other.st_ino,
        other.st_size,
        other.st_mtime_ns,
    )


class Body(Protocol):
    """The file an arrival is read from. `identity`: device and inode, which renames do not change."""

    @property
    def identity(self) -> tuple[int, int]: ...

    def reach(self, start: int) -> int:
        """Up to where its bytes are there without a gap from `start` on; `start`: none are."""
        ...

    def done_bytes(self) -> int:
        """How many bytes are there."""
        ...

    def open(self) -> int:
        """An own descriptor for reading by position; raises FileNotFoundError. Blocks; from any thread."""
        ...


class ReadablePartial:
    """A partial file: what is written of it can be read, to the byte.

    Units that are there only in part are not journaled: another transfer, and a carrier, bring them again, perhaps
    from somebody else. The digest then says nothing of the bytes a reader has. So it is remembered which of them
    readers were told of; `told` are those that did not become whole since.
    """

    def __init__(self, part: PartialFile, *, by_parts: bool = True) -> None:
        self.part = part
        seen = part.stat()
        self.identity = seen.st_dev, seen.st_ino
        self.by_parts = by_parts
        """Whether units that are there in part are told of."""
        self._front = 0
        self._told: set[int] = set()

    def reach(self, start: int) -> int:
        reach = self._whole_reach(start)
        while self.by_parts and (stop := self.part.part_end(reach)) > reach:
            self._told.add(reach // self.part.unit)
            reach = stop if stop % self.part.unit else self._whole_reach(stop)
        return reach

    def told(self) -> set[int]:
        """Units that readers know in part, and that are not whole by now."""
        self._told = {index for index in self._told if not self.part.is_whole(index)}
        return self._told

    def _whole_reach(self, start: int) -> int:
        # The gapless front only grows until something is forgotten, when there is a new object (`Arrival.show`):
        # so readers who ask often do not scan it again and again.
        self._front = self.part.prefix(self._front)
        return self._front if start < self._front else max(start, self.part.prefix(start))

    def done_bytes(self) -> int:
        return self.part.written_bytes

    def open(self) -> int:
        return self.part.duplicate()


class StandingFile:
    """A file that stands under its final name and is being hashed. `seen`: which file it is; `find` opens the name."""

    def __init__(self, seen: os.stat_result, find: Callable[[], int | None]) -> None:
        self.identity = seen.st_dev, seen.st_ino
        self._size = seen.st_size
        self._find = find

    def reach(self, start: int) -> int:
        return max(start, self._size)

    def done_bytes(self) -> int:
        return self._size

    def open(self) -> int:
        fd = self._find()
        if fd is None:
            raise FileNotFoundError("it is gone")
        seen = os.fstat(fd)
        if (seen.st_dev, seen.st_ino) != self.identity:  # somebody put another file there
            os.close(fd)
            raise FileNotFoundError("another file stands there now")
        return fd


class Arrival:
    """One file of one repo while somebody brings it or waits for it. On the event loop, but for `open`."""

    def __init__(self, repo: RepoId, entry: FileEntry) -> None:
        self.repo = repo
        self.entry = entry
        self.mark = 0
        self.published = False
        self.error: EdgecdnError | None = None
        """Why the last who brought it gave up; None while somebody brings it, or it was only stopped."""
        self.changes = Changes()
        self.bringing = 0
        """How many bring it: never more than one in one cache."""
        self._body: Body | None = None
        self._partial: ReadablePartial | None = None
        self._by_parts = True
        self._identity: tuple[int, int] | None = None
        self._proven: os.stat_result | None = None

    def reach(self, start: int) -> int:
        """The bytes [start, reach) are in the file, not proven right; `start`: none are."""
        return start if self._body is None else self._body.reach(start)

    @property
    def done_bytes(self) -> int:
        """How many bytes are there, for progress."""
        if self.published:
            return self.entry.size
        return 0 if self._body is None else self._body.done_bytes()

    def changed(self) -> Coroutine[Any, Any, None]:
        """To be awaited: ends at the first change after this call."""
        return self.changes.next()

    def open(self) -> int:
        """An own descriptor of the file; raises FileNotFoundError where there is none to be read now. From a thread."""
        body = self._body
        if body is None:
            raise FileNotFoundError(f"{self.entry.path} is not on its way")
        return body.open()

    def is_proven(self, seen: os.stat_result) -> bool:
        """Whether an open file (`seen` is its fstat) is the one that was published last. From any thread."""
        proven = self._proven
        return proven is not None and same_file(proven, seen)

    # Told by who brings it

    def show(self, body: Body) -> None:
        """Its bytes are read from `body` now; another file than before has other bytes."""
        if self._identity not in (None, body.identity):
            self.mark += 1
        self._body, self._identity = body, body.identity
        self.changes.tell()

    def show_part(self, part: PartialFile | SmallFile) -> None:
        """As `show`; a file that is collected in memory is not read before it is published.

        What readers know of an earlier transfer beyond whole units is taken back: it comes again.
        """
        if isinstance(part, PartialFile):
            body = ReadablePartial(part, by_parts=self._by_parts)
            if self._identity == body.identity and self.knows_parts():
                self.mark += 1
            self._partial = body
            self.show(body)

    def tell_parts(self, *, on: bool) -> None:
        """Whether readers learn of units that are there only in part; what they know already stays as it is."""
        self._by_parts = on
        if self._partial is not None:
            self._partial.by_parts = on
        self.changes.tell()

    def knows_parts(self) -> bool:
        """Whether readers know units that are not whole yet: whoever drops those must `take_back` first."""
        return self._partial is not None and bool(self._partial.told())

    def take_back(self) -> None:
        """Bytes that could be read are not what they should be, or not there any more."""
        self.mark += 1
        self._body = self._identity = self._partial = None
        self.changes.tell()

    def hide(self) -> None:
        """It cannot be read for now; what was read stays as it is."""
        self._body = None
        self.changes.tell()

    def publish(self, seen: os.stat_result) -> None:
        """It is verified and has its final name: as the file `seen`, which renames do not change."""
        self.published, self._proven = True, seen
        self.changes.tell()


class Arrivals:
    """All of one process, by repo and digest."""

    def __init__(self) -> None:
        self._all: dict[Digest, dict[RepoId, Arrival]] = {}
        self._users: dict[Arrival, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nobody brings anything or waits for it."""
        return not self._all

    def get(self, digest: Digest) -> Arrival | None:
        """One that somebody brings now, of any repo."""
        return next((a for a in self._all.get(digest, {}).values() if a.bringing), None)

    @contextmanager
    def watch(self, repo: RepoId, entry: FileEntry) -> Iterator[Arrival]:
        """The arrival of a file, whether it is on its way or not; it is remembered as long as anybody has it."""
        by_repo = self._all.setdefault(entry.digest, {})
        arrival = by_repo.setdefault(repo, Arrival(repo, entry))
        self._users[arrival] = self._users.get(arrival, 0) + 1
        try:
            yield arrival
        finally:
            self._users[arrival] -= 1
            if not self._users[arrival]:
                del self._users[arrival], by_repo[repo]
                if not by_repo:
                    del self._all[entry.digest]

    @contextmanager
    def bring(self, repo: RepoId, entry: FileEntry) -> Iterator[Arrival]:
        """Bring a file: show its bytes as they come. An EdgecdnError that ends it is told to those who wait."""
        with self.watch(repo, entry) as arrival:
            arrival.bringing += 1
            arrival.published, arrival.error = False, None
            try:
                yield arrival
            except EdgecdnError as error:
                arrival.error = error
                raise
            finally:
                arrival.bringing -= 1
                arrival.hide()
