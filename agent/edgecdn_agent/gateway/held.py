"""Blobs that are complete and verified in the cache: small parts in one write, others by the kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from edgecdn.digest import Digest
from edgecdn.errors import SystemFailed
from edgecdn.lately import Lately
from edgecdn.names import RepoId
from edgecdn.spans import Span
from edgecdn_agent.deliver.delivery import Delivery, Wanted
from edgecdn_agent.gateway.heads import head_of, whole_answer
from edgecdn_agent.gateway.outgoing import Outgoing
from edgecdn_agent.holdings.held_files import Holding
from edgecdn_agent.lan.sender import BlobSender, ReadFailed
from edgecdn_agent.lan.workers import Workers, open_by

__all__ = ["HeldBlobs", "Shelf", "holding_of"]

_SMALL_BYTES = 64 << 10
"""Up to this it is read in a thread and leaves with its head: half the cost of a file that is sent."""

_DISK_S = 8.0
"""A file that cannot be opened, or a small part read, within this is on a disk that hangs."""

_FRESH_S = 30.0
"""By then the cache was looked at again."""

_HANGS = "the disk with the cache does not answer"


class Shelf(Protocol):
    """The files that are held; `Holdings` is one. `open` and `withdraw` from any thread."""

    def get(self, digest: Digest) -> Holding | None: ...
    def get_for(self, repo: RepoId, digest: Digest) -> Holding | None: ...
    def open(self, holding: Holding) -> int: ...
    def withdraw(self, digest: Digest) -> None: ...


def holding_of(shelf: Shelf, wanted: Wanted) -> Holding | None:
    """The file on the shelf that may answer for what is wanted.

    A hub's listing gives the caller the bytes it names, wherever they lie. One that only the lab vouches for (it has
    no page) may be made up to get at another repo's: it opens what lies in its own repo, or is everybody's.
    """
    repo, entry = wanted.manifest.repo, wanted.entry
    return shelf.get(entry.digest) if wanted.page else shelf.get_for(repo, entry.digest)


class HeldBlobs:
    """Answers with them."""

    def __init__(self, shelf: Shelf, sender: BlobSender, disk: Workers, stall_s: float) -> None:
        self._shelf = shelf
        self._sender = sender
        self._disk = disk
        self._stall_s = stall_s
        self._fresh: Lately[_Fresh] = Lately(_FRESH_S)

    def note(self, wanted: Wanted, delivery: Delivery, seen: os.stat_result) -> None:
        """It was brought just now, as the file `seen`: the shelf finds it a moment later."""
        self._fresh.put(wanted.entry.digest, _Fresh(wanted.manifest.repo, delivery, seen))

    def has(self, wanted: Wanted) -> bool:
        """Whether it is here."""
        return self._find(wanted) is not None

    async def answer(self, request: web.Request, wanted: Wanted, span: Span | None) -> web.StreamResponse | None:
        """The whole file, or a part; None when it is not here, or turns out not to be.

        Raises SystemFailed before anything is sent; ReadFailed, ConnectionError and TimeoutError after.
        """
        opening = self._find(wanted)
        if opening is None:
            return None
        part = Span(0, wanted.entry.size) if span is None else span
        try:
            if len(part) <= _SMALL_BYTES:
                data = await self._disk.run(lambda: _read(opening, part), _DISK_S)
                return whole_answer(wanted, span, data)
            fd = await open_by(self._disk, opening, _DISK_S)
        except FileNotFoundError:
            return None
        except ReadFailed:  # nothing is sent yet: it is brought anew
            self._drop(wanted.entry.digest)
            return None
        except TimeoutError as error:
            raise SystemFailed(_HANGS) from error
        try:
            out = Outgoing(request, head_of(wanted, span), part, self._sender, self._stall_s)
            await out.send(fd, part.stop)
        except ReadFailed:
            self._drop(wanted.entry.digest)
            raise
        finally:
            os.close(fd)
        return out.head

    def _find(self, wanted: Wanted) -> Callable[[], int] | None:
        """What opens it, in a thread."""
        digest, size = wanted.entry.digest, wanted.entry.size
        holding = holding_of(self._shelf, wanted)
        if holding is not None and holding.size == size:
            return lambda: self._shelf.open(holding)
        fresh = self._fresh.get(digest)
        is_theirs = fresh is not None and (wanted.page or fresh.repo == wanted.manifest.repo)
        return fresh.open if fresh is not None and is_theirs else None

    def _drop(self, digest: Digest) -> None:
        self._shelf.withdraw(digest)
        self._fresh.pop(digest)


@dataclass(frozen=True, slots=True)
class _Fresh:
    repo: RepoId
    delivery: Delivery
    seen: os.stat_result

    def open(self) -> int:
        """In the thread: that file and no other. Raises FileNotFoundError."""
        fd = self.delivery.open()
        if _which(os.fstat(fd)) == _which(self.seen):
            return fd
        os.close(fd)
        raise FileNotFoundError("it is another file now")


def _which(seen: os.stat_result) -> tuple[int, int, int]:
    return seen.st_size, seen.st_ino, seen.st_mtime_ns


def _read(opening: Callable[[], int], part: Span) -> bytes:
    """In the thread. Raises ReadFailed."""
    fd = opening()
    try:
        data = os.pread(fd, len(part), part.start)
    except OSError as error:
        raise ReadFailed(error.errno, error.strerror) from error
    finally:
        os.close(fd)
    if len(data) != len(part):
        raise ReadFailed("the file is shorter than it was")
    return data
