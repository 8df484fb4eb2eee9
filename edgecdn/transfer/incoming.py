"""One file on its way in: where its bytes are written, who gave them, and whether they are right."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from edgecdn.cache.partial import PartialFile, SmallFile
from edgecdn.errors import Interrupted
from edgecdn.manifest import FileEntry
from edgecdn.piecetree import PieceTree, TreeBuilder
from edgecdn.spans import UNIT_BYTES, Span
from edgecdn.transfer.arrivals import Arrival
from edgecdn.verify import PrefixVerifier

__all__ = ["EARLIER", "Incoming", "Pools", "WorkThreads"]

EARLIER = "an earlier run"
"""Who gave the bytes that were there when this run began."""

_STEP_BYTES = 16 << 20
"""Hashing follows in steps of at least this, so that switching threads costs nothing."""

_MOST_STEP_BYTES = 256 << 20
"""The longest turn of a hashing thread, some 0.7 s: files share the threads, and a small one must not wait long."""

_SYNC_BYTES = 128 << 20
"""Written data is made durable this often, so that little is left to wait for at the end."""

_PUBLISHING = 4
"""Threads of their own: a publication may wait 5 s for a client's lock, and writing must not wait with it."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pools:
    """Threads for hashing and disk writes, which never run on the event loop. Jobs may share them."""

    write: ThreadPoolExecutor
    hash: ThreadPoolExecutor
    publish: ThreadPoolExecutor

    @classmethod
    def start(cls) -> Pools:
        """As many hashing threads as cores; writing threads mostly wait."""
        cores = os.cpu_count() or 2
        return cls(
            ThreadPoolExecutor(4 + cores, thread_name_prefix="edgecdn-write"),
            ThreadPoolExecutor(cores, thread_name_prefix="edgecdn-hash"),
            ThreadPoolExecutor(_PUBLISHING, thread_name_prefix="edgecdn-publish"),
        )

    def stop(self) -> None:
        """Wait for what runs; what was not begun is dropped."""
        for pool in (self.hash, self.write, self.publish):
            pool.shutdown(cancel_futures=True)


@dataclass(slots=True)
class WorkThreads:
    """What one job does in threads: its own, or those of `shared` pools, which live on when it stops."""

    pools: Pools
    shared: bool
    stopping: threading.Event = field(default_factory=threading.Event)
    _running: set[Future[Any]] = field(default_factory=set)

    @classmethod
    def start(cls, shared: Pools | None = None) -> WorkThreads:
        """Make or take the threads."""
        return cls(shared or Pools.start(), shared is not None)

    async def do(self, pool: Executor, work: Callable[[], _T]) -> _T:
        """Run `work` in one of the pools."""
        future = pool.submit(work)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """Wait for what runs (a hash ends early); what was not begun is dropped."""
        self.stopping.set()
        if not self.shared:
            self.pools.stop()
            return
        running = list(self._running)
        for future in running:
            future.cancel()
        wait(running)

    @property
    def write(self) -> Executor:
        """For disk writes."""
        return self.pools.write

    @property
    def hash(self) -> Executor:
        """For hashing."""
        return self.pools.hash

    @property
    def publish(self) -> Executor:
        """For publications, which may wait for other programs."""
        return self.pools.publish


class Incoming:
    """A file being received into `part`. `standing` is the source that stands for it in a dispute.

    `arrival` shows those who read it meanwhile what of it is there.
    """

    def __init__(self, entry: FileEntry, part: PartialFile | SmallFile, threads: WorkThreads, arrival: Arrival) -> None:
        self.entry = entry
        self.part = part
        self.arrival = arrival
        self.arrival.tell_parts(on=True)
        self.arrival.show_part(part)
        self.given: dict[int, Counter[str]] = {}
        """Bytes each source gave, by unit."""
        for span in part.have:
            self._count(span, EARLIER)
        self.hurried = False
        """Somebody reads it as it comes."""
        self.standing: str | None = None
        self.stood: set[str] = set()
        self._suspects: dict[int, tuple[bytes, set[str]]] = {}
        self._threads = threads
        self._wants_tree = False
        self._claimed: PieceTree | None = None
        self._verifier = self._new_verifier()
        self._synced = 0
        self._written = asyncio.Event()

    def want_tree(self) -> None:
        """Build the piece tree while verifying: nobody else has one, and others will want the file."""
        self._wants_tree = True
        if self._verifier.position == 0:
            self._verifier = self._new_verifier()

    @property
    def tree(self) -> PieceTree | None:
        """The piece tree of the verified file, if it was built, or every piece was checked by it."""
        if not self._verifier.matches:
            return None
        builder = self._verifier.tree
        return self._claimed if builder is None else builder.finish()

    def set_tree(self, tree: PieceTree) -> None:
        """All of the file is right by this tree, which is its own if the digest is right as it is."""
        self._claimed = tree

    def missing(self) -> list[Span]:
        """The bytes still to be received."""
        return self.part.missing()

    async def write(self, start: int, pieces: Sequence[bytes], source: str) -> None:
        """Write what `source` gave; verification follows by itself."""
        part = self.part
        if isinstance(part, SmallFile):  # in memory: it need not wait behind others that write to the disk
            part.write(start, pieces)
        else:
            await self._threads.do(self._threads.write, lambda: part.write(start, pieces))
        self._count(Span(start, start + sum(map(len, pieces))), source)
        self._tell_written()

    async def landed(self, spans: Sequence[Span], source: str) -> None:
        """Count what a carrier wrote; verification follows by itself."""
        assert isinstance(self.part, PartialFile)
        await self._threads.do(self._threads.write, partial(self.part.landed, spans))
        for span in spans:
            self._count(span, source)
        self._tell_written()

    async def forget(self, spans: Sequence[Span]) -> Counter[str]:
        """Count units as missing again; whose bytes they were."""
        await self._take_back(spans)
        return self._uncount(spans)

    async def settle_parts(self, limit_s: float) -> None:
        """Before parts are dropped: tell readers of no more of them, and wait until those they know are whole.

        The sources go on meanwhile. It spares readers being cut, and ends after `limit_s` without that.
        """
        self.arrival.tell_parts(on=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.arrival.knows_parts():
                    await self.arrival.changed()

    async def drop_parts(self) -> Counter[str]:
        """Count units that are there only in part as missing: a carrier brings whole ones. Whose bytes they were.

        Readers are told of whole ones only until `Arrival.tell_parts`: a carrier may write into the others what turns
        out wrong. What they know of parts is taken back, as it comes from somebody else now.
        """
        assert isinstance(self.part, PartialFile)
        self.arrival.tell_parts(on=False)
        known = self.arrival.knows_parts()
        if known:
            self.arrival.take_back()
        dropped = await self._threads.do(self._threads.write, self.part.drop_parts)
        if known:
            self.arrival.show_part(self.part)
        return self._uncount(dropped)

    async def follow(self) -> bool:
        """Hash from the front as data arrives, until all of it did; True when the digest is right."""
        while self._verifier.position < self.entry.size:
            prefix = self.part.prefix(self._verifier.position)
            if prefix < self.entry.size and prefix - self._verifier.position < _STEP_BYTES:
                self._written.clear()
                await self._written.wait()  # set by `write`; its end is the engine's patience
            else:
                await self._advance(prefix)
        return self._verifier.matches

    async def verify_again(self) -> bool:
        """A second opinion before anyone is blamed: flush everything, hash from the start."""
        await self._threads.do(self._threads.write, self.part.sync)
        self._verifier = self._new_verifier()
        await self._advance(self.entry.size)
        return self._verifier.matches

    async def suspect(self, spans: Sequence[Span], standing: str, *, build_tree: bool) -> Counter[str]:
        """Count `spans` as missing again; `standing` will give them. What they were is remembered as hashes.

        `build_tree`: a piece tree was claimed for it, and the file's own will tell whether that was false.
        Returns how many bytes of each source are not used now.
        """
        discarded: Counter[str] = Counter()
        self._claimed = None
        self._wants_tree = self._wants_tree or build_tree
        for span in spans:
            for unit in _units(span):
                unit_hash = await self._threads.do(self._threads.hash, partial(self._unit_hash, unit))
                gave = self.given.pop(unit, Counter())
                self._suspects.setdefault(unit, (unit_hash, set(gave)))
                discarded.update(gave)
        await self._take_back(spans)
        self.standing = standing
        self.stood.add(standing)
        return discarded

    async def _take_back(self, spans: Sequence[Span]) -> None:
        """Bytes that counted as there do no more: readers are told before others are written in their place."""
        self.arrival.take_back()
        await self._threads.do(self._threads.write, partial(self.part.forget, spans))
        self.arrival.show_part(self.part)
        self._verifier = self._new_verifier()

    @property
    def givers(self) -> dict[int, set[str]]:
        """Who gave each unit."""
        return {unit: set(gave) for unit, gave in self.given.items()}

    async def liars(self) -> set[str]:
        """Who gave bytes that turned out different, now that the whole is right."""
        found: set[str] = set()
        for unit, (before, givers) in self._suspects.items():
            if await self._threads.do(self._threads.hash, partial(self._unit_hash, unit)) != before:
                found |= givers
        return found - {EARLIER, self.standing or ""}

    async def _advance(self, to: int) -> None:
        """Hash up to `to`, in turns; ends early when bytes are taken back and all begins again."""
        verifier = self._verifier
        while verifier is self._verifier and verifier.position < to:
            await self._turn(verifier, min(to, verifier.position + _MOST_STEP_BYTES))

    async def _turn(self, verifier: PrefixVerifier, to: int) -> None:
        hashing = self._threads.do(self._threads.hash, lambda: verifier.advance(to))
        if to - self._synced >= _SYNC_BYTES:
            self._synced = to
            await asyncio.gather(hashing, self._threads.do(self._threads.write, self.part.sync))
        else:
            await hashing

    def _tell_written(self) -> None:
        self._written.set()
        self.arrival.changes.tell()

    def _count(self, span: Span, source: str) -> None:
        for unit, count in _shares(span):
            self.given.setdefault(unit, Counter())[source] += count

    def _uncount(self, spans: Sequence[Span]) -> Counter[str]:
        """Take bytes from those who gave them; where several gave parts of a unit, from the first of them first."""
        taken: Counter[str] = Counter()
        for unit, count in (share for span in spans for share in _shares(span)):
            gave = self.given.get(unit, Counter())
            for name in list(gave):
                part = min(gave[name], count)
                count -= part  # noqa: PLW2901 - what is left to take
                taken[name] += part
                gave[name] -= part
                if not gave[name]:
                    del gave[name]
        return taken

    def _unit_hash(self, unit: int) -> bytes:
        start = unit * UNIT_BYTES
        view = memoryview(bytearray(min(UNIT_BYTES, self.entry.size - start)))
        self.part.read_into(view, start)
        return hashlib.sha256(view).digest()

    def _new_verifier(self) -> PrefixVerifier:
        builder = TreeBuilder(self.entry.size) if self._wants_tree else None
        return PrefixVerifier(self.entry.digest, self.entry.size, self._read_into, builder)

    def _read_into(self, view: memoryview, start: int) -> int:
        if self._threads.stopping.is_set():
            raise Interrupted
        return self.part.read_into(view, start)


def _units(span: Span) -> range:
    return range(span.start // UNIT_BYTES, -(-span.stop // UNIT_BYTES))


def _shares(span: Span) -> Iterator[tuple[int, int]]:
    """The units a span touches, and how many bytes of each."""
    for unit in _units(span):
        low, high = unit * UNIT_BYTES, (unit + 1) * UNIT_BYTES
        yield unit, min(span.stop, high) - max(span.start, low)
