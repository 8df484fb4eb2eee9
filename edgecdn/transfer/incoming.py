"""One file on its way in: where its bytes are written, who gave them, and whether they are right."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from edgecdn.cache.partial import PartialFile, SmallFile
from edgecdn.errors import Interrupted
from edgecdn.manifest import FileEntry
from edgecdn.piecetree import PieceTree, TreeBuilder
from edgecdn.spans import UNIT_BYTES, Span
from edgecdn.verify import PrefixVerifier

__all__ = ["EARLIER", "Incoming", "WorkThreads"]

EARLIER = "an earlier run"
"""Who gave the bytes that were there when this run began."""

_STEP_BYTES = 16 << 20
"""Hashing follows in steps of at least this, so that switching threads costs nothing."""

_SYNC_BYTES = 128 << 20
"""Written data is made durable this often, so that little is left to wait for at the end."""

_PUBLISHING = 4
"""Threads of their own: a publication may wait 5 s for a client's lock, and writing must not wait with it."""

_T = TypeVar("_T")


@dataclass(slots=True)
class WorkThreads:
    """The threads of one job: hashing and disk writes never run on the event loop."""

    write: ThreadPoolExecutor
    hash: ThreadPoolExecutor
    publish: ThreadPoolExecutor
    stopping: threading.Event

    @classmethod
    def start(cls) -> WorkThreads:
        """As many hashing threads as cores; writing threads mostly wait."""
        cores = os.cpu_count() or 2
        return cls(
            ThreadPoolExecutor(4 + cores, thread_name_prefix="edgecdn-write"),
            ThreadPoolExecutor(cores, thread_name_prefix="edgecdn-hash"),
            ThreadPoolExecutor(_PUBLISHING, thread_name_prefix="edgecdn-publish"),
            threading.Event(),
        )

    async def do(self, pool: Executor, work: Callable[[], _T]) -> _T:
        """Run `work` in one of the pools."""
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def stop(self) -> None:
        """Wait for what runs (a hash ends early); what was not begun is dropped."""
        self.stopping.set()
        for pool in (self.hash, self.write, self.publish):
            pool.shutdown(cancel_futures=True)


class Incoming:
    """A file being received into `part`. `standing` is the source that stands for it in a dispute."""

    def __init__(self, entry: FileEntry, part: PartialFile | SmallFile, threads: WorkThreads) -> None:
        self.entry = entry
        self.part = part
        self.given: dict[int, Counter[str]] = {}
        """Bytes each source gave, by unit."""
        for span in part.have:
            self._count(span, EARLIER)
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
        await self._threads.do(self._threads.write, lambda: self.part.write(start, pieces))
        self._count(Span(start, start + sum(map(len, pieces))), source)
        self._written.set()

    async def landed(self, spans: Sequence[Span], source: str) -> None:
        """Count what a carrier wrote; verification follows by itself."""
        assert isinstance(self.part, PartialFile)
        await self._threads.do(self._threads.write, partial(self.part.landed, spans))
        for span in spans:
            self._count(span, source)
        self._written.set()

    async def forget(self, spans: Sequence[Span]) -> Counter[str]:
        """Count units as missing again; whose bytes they were."""
        await self._threads.do(self._threads.write, partial(self.part.forget, spans))
        self._verifier = self._new_verifier()
        return self._uncount(spans)

    async def drop_parts(self) -> Counter[str]:
        """Count units that are there only in part as missing: a carrier brings whole ones. Whose bytes they were."""
        assert isinstance(self.part, PartialFile)
        return self._uncount(await self._threads.do(self._threads.write, self.part.drop_parts))

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
        await self._threads.do(self._threads.write, partial(self.part.forget, spans))
        self.standing = standing
        self.stood.add(standing)
        self._verifier = self._new_verifier()
        return discarded

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
        verifier = self._verifier
        hashing = self._threads.do(self._threads.hash, lambda: verifier.advance(to))
        if to - self._synced >= _SYNC_BYTES:
            self._synced = to
            await asyncio.gather(hashing, self._threads.do(self._threads.write, self.part.sync))
        else:
            await hashing

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
