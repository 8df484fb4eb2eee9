"""Hashing what was never verified, and building piece trees, in the background and one file at a time.

One reading serves both: the whole digest, which decides whether the blob is held, and the tree.
It goes on with the next file after a restart, because each finished file is in the catalog.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from threading import Event

from edgecdn.cache.catalog import Catalog
from edgecdn.errors import EdgecdnError, Interrupted
from edgecdn.piecetree import TreeBuilder
from edgecdn.sources.own_thread import in_own_thread
from edgecdn_agent.holdings.held_files import Holding, open_held
from edgecdn_agent.holdings.priority import step_back
from edgecdn_agent.holdings.rot import recheck_file
from edgecdn_agent.holdings.shelf import Holdings

__all__ = ["Indexer"]

_log = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
"""Read at a time: `stop` is looked at as often."""

_SETTLED_S = 2.0
"""A file changed less than this long ago may still be written by another tool; it is left alone for so long."""

_LOOK_AGAIN_S = 3600.0
"""Between looks when nothing tells of a change."""

_SLOWEST_BYTES_S = 1e6
"""A disk that reads less than this (per second, with the lowest priority) counts as hanging."""


class _Verdict(Enum):
    RIGHT = auto()
    WRONG = auto()
    UNREADABLE = auto()
    CHANGED = auto()


class Indexer:
    """Works through what is pending in `holdings`; `indexed` is called (on the loop) for each blob that was right."""

    def __init__(self, holdings: Holdings, indexed: Callable[[Holding], None] = lambda _holding: None) -> None:
        self._holdings = holdings
        self._indexed = indexed
        self._changed = asyncio.Event()
        self._stop = Event()

    async def run(self) -> None:
        """Work until cancelled; the thread ends soon after (it looks each MiB)."""
        self._stop = stop = Event()
        unsubscribe = self._holdings.subscribe(self._changed.set)
        try:
            while True:
                self._changed.clear()
                wait_s = await self._go_through()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
        finally:
            unsubscribe()
            stop.set()

    async def _go_through(self) -> float:
        """Index what is pending and settled; returns after how long to look again."""
        table = self._holdings.table
        additions = table.additions
        wait_s = _LOOK_AGAIN_S
        for holding in table.pending():
            age_s = time.time() - holding.mtime_ns / 1e9
            if 0 <= age_s < _SETTLED_S:
                wait_s = min(wait_s, _SETTLED_S - age_s)
            elif table.is_pending(holding):
                await self._take(holding)
                if table.additions != additions:
                    return 0.0  # something smaller may have come
        return wait_s

    async def _take(self, holding: Holding) -> None:
        stop = self._stop
        try:
            verdict = await in_own_thread(lambda: self._index(holding, stop), 60.0 + holding.size / _SLOWEST_BYTES_S)
        except TimeoutError:
            stop.set()  # the late thread, if the disk ever answers
            self._stop = Event()
            verdict = _Verdict.UNREADABLE
        if verdict is _Verdict.RIGHT:
            if self._holdings.confirm(holding):
                self._indexed(holding)
        elif verdict is _Verdict.CHANGED:
            await self._holdings.rescan(holding.repo)
        else:
            _log.warning("a blob is not given to peers path=%s reason=%s", holding.path, verdict.name.lower())
            self._holdings.reject(holding)

    def _index(self, holding: Holding, stop: Event) -> _Verdict:
        """In the thread."""
        step_back()
        catalog = self._holdings.catalog
        try:
            fd = open_held(self._holdings.settings.cache_dir, holding)
        except FileNotFoundError:
            return _Verdict.CHANGED
        except (OSError, EdgecdnError):
            return _Verdict.UNREADABLE
        try:
            suspect = self._holdings.table.is_suspect(holding)
            verdict = (
                _Verdict.RIGHT if not suspect and _is_known(catalog, holding, fd) else _read(catalog, holding, fd, stop)
            )
        finally:
            os.close(fd)
        if verdict is _Verdict.WRONG:
            self._put_away(holding, stop)
        return verdict

    def _put_away(self, holding: Holding, stop: Event) -> None:
        """What edgecdn brought is set aside, as a fetch would; what is the user's stays where it is."""
        catalog = self._holdings.catalog
        with suppress(OSError, EdgecdnError):
            if catalog.was_brought(holding.path, holding.path.lstat()):
                recheck_file(self._holdings.settings, catalog, holding, stop)
        if not stop.is_set():
            catalog.forget(holding.path)


def _is_known(catalog: Catalog, holding: Holding, fd: int) -> bool:
    """Whether somebody else (a fetch) verified it since it was seen, and its tree is there too."""
    if not catalog.is_verified(holding.path, holding.digest, os.fstat(fd)):
        return False
    return not holding.has_tree or catalog.tree(holding.digest) is not None


def _read(catalog: Catalog, holding: Holding, fd: int, stop: Event) -> _Verdict:
    hasher = holding.digest.hasher(holding.size)
    builder = TreeBuilder(holding.size) if holding.has_tree else None
    buffer = memoryview(bytearray(min(_READ_BYTES, max(1, holding.size))))
    at = 0
    while at < holding.size:
        if stop.is_set():
            raise Interrupted
        try:
            count = os.preadv(fd, [buffer[: min(len(buffer), holding.size - at)]], at)
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, "")
            _log.warning("reading a blob failed path=%s reason=%s", holding.path, code)
            return _Verdict.UNREADABLE
        if not count:
            return _Verdict.CHANGED
        hasher.update(buffer[:count])
        if builder is not None:
            builder.update(buffer[:count])
        at += count
    seen = os.fstat(fd)
    if not holding.is_file(seen):
        return _Verdict.CHANGED
    if hasher.hexdigest() != holding.digest.hex:
        return _Verdict.WRONG
    catalog.set_verified(holding.path, holding.digest, seen)
    if builder is not None:
        catalog.set_tree(holding.digest, builder.finish())
    return _Verdict.RIGHT
