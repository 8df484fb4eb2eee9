"""Who brings what, among the fetches of one process.

A repo has a room. The file lock `job.lock` keeps other processes, and whoever removes or sets aside, out
of the repo while anybody is in its room: it is taken once for all who are in, and given back by the last.
In the room each file has at most one fetch that brings it, or moves a rotten one away: the one that
claimed its digest. The others wait until that claim is over, and look again.

Nobody who waits for a claim holds one that the other could be waiting for: claims are given back before
waiting, so no two fetches wait for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from edgecdn.batches import Batches, to_its_end
from edgecdn.cache.locks import FileLock
from edgecdn.cache.safedir import SafeDir
from edgecdn.changes import Changes
from edgecdn.digest import Digest
from edgecdn.manifest import FileEntry

__all__ = ["LOCK_NAME", "Claims", "Room", "Rooms"]

LOCK_NAME = "job.lock"

_LOCK_POLL_S = 0.2
"""flock has no wait that can be cancelled: another process's lock is asked for again this often."""


class Room:
    """One repo of one cache, for the fetches of this process that are in it."""

    def __init__(self) -> None:
        self.door = asyncio.Lock()
        """Held while the repo's folder is looked at as a whole: is it there, is it to go."""
        self.publications: Batches[FileEntry] = Batches()
        """Snapshots are published one after the other, those of one commit that wait for it together."""
        self._inside = 0
        self._taking = asyncio.Lock()
        self._lock: FileLock | None = None
        self.claimed: dict[Digest, Claims] = {}
        self.ended = Changes()
        """Of claims."""

    @property
    def is_lonely(self) -> bool:
        """Whether only one fetch is in it."""
        return self._inside == 1

    def claims(self) -> Claims:
        """What one fetch brings; a context manager."""
        return Claims(self)

    def hurry(self, digest: Digest) -> None:
        """Somebody waits for it: whoever brings it should bring it before other things."""
        if (holder := self.claimed.get(digest)) is not None:
            holder.hurry(digest)

    async def any_free(self, digests: Iterable[Digest]) -> set[Digest]:
        """Return those that nobody claims, once there is one: brought, or given up."""
        wanted = set(digests)
        while not (free := wanted - self.claimed.keys()):
            await self.ended.next()
        return free

    async def _take(self, state: SafeDir) -> bool:
        """Take the file lock unless it is ours already.

        In a thread, which is waited for also when cancelled: it uses `state`, and what it took must not stay taken.
        """
        async with self._taking:
            if self._lock is None:
                lock = FileLock(state, LOCK_NAME)
                try:
                    if not await to_its_end(asyncio.to_thread(lock.try_acquire)):
                        return False
                except asyncio.CancelledError:
                    lock.release()
                    raise
                self._lock = lock
        return True

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()  # by its own descriptor: the folder it was opened in may be closed
            self._lock = None


class Claims:
    """The digests one fetch has claimed; all are given back at the end of the `with`."""

    def __init__(self, room: Room | None = None) -> None:
        self._room = room or Room()
        self._hurried: dict[Digest, None] = {}
        self._on_hurry: Callable[[Digest], None] | None = None

    def take(self, digest: Digest) -> bool:
        """Claim it; False when another fetch has it."""
        return self._room.claimed.setdefault(digest, self) is self

    def release(self, digest: Digest) -> None:
        """Give one back; those who wait for it look again."""
        if self._room.claimed.get(digest) is self:
            del self._room.claimed[digest]
            self._room.ended.tell()

    def release_all(self) -> None:
        """Give all back."""
        for digest in [digest for digest, holder in self._room.claimed.items() if holder is self]:
            self.release(digest)

    def hurry(self, digest: Digest) -> None:
        """Somebody waits for one of them."""
        self._hurried[digest] = None
        if self._on_hurry is not None:
            self._on_hurry(digest)

    def tell_hurry(self, callback: Callable[[Digest], None] | None) -> None:
        """Have `callback` told of those that somebody waits for, from the first on."""
        self._on_hurry = callback
        if callback is not None:
            for digest in self._hurried:
                callback(digest)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.release_all()


class Rooms:
    """The rooms of one process. On one event loop."""

    def __init__(self) -> None:
        self._rooms: dict[Path, Room] = {}

    @asynccontextmanager
    async def enter(self, state: SafeDir, waiting: Callable[[], None]) -> AsyncIterator[Room]:
        """Be in the room of the repo whose journals are in `state`; `waiting` is called once if another process is in.

        While anybody is in, `state`'s lock is held. Raises ReadOnlyStore.
        """
        room = self._rooms.setdefault(state.path, Room())
        room._inside += 1  # noqa: SLF001 - one module
        told = False
        try:
            while not await room._take(state):  # noqa: SLF001
                if not told:
                    waiting()
                    told = True
                await asyncio.sleep(_LOCK_POLL_S)
            yield room
        finally:  # nothing is awaited, so that a cancelled fetch leaves nothing
            room._inside -= 1  # noqa: SLF001
            if not room._inside:  # noqa: SLF001
                room._release()  # noqa: SLF001
                del self._rooms[state.path]

    @property
    def is_empty(self) -> bool:
        """Whether nobody is in any room."""
        return not self._rooms
