"""The engine: asks the board what to do, does it, tells the board what came of it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from random import Random

from edgecdn import errors
from edgecdn.cache.partial import PartialFile, PartialVanished, SmallFile
from edgecdn.cache.publish import publish_partial, publish_small
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import RepoStore
from edgecdn.digest import Digest
from edgecdn.events import (
    BlobPublished,
    BytesDiscarded,
    BytesReceived,
    Kind,
    Listener,
    Note,
    SourceDropped,
)
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.plan.board import Board
from edgecdn.plan.state import Blob, Lease, SourceState
from edgecdn.sources import Offer, Source
from edgecdn.sources.faults import (
    Busy,
    Denied,
    Misbehaved,
    Missing,
    NoRanges,
    SourceFault,
    WrongPiece,
)
from edgecdn.spans import UNIT_BYTES, Span
from edgecdn.transfer.arrivals import Arrival, Arrivals
from edgecdn.transfer.carrier import Carrier, Giver
from edgecdn.transfer.carrying import Carriages
from edgecdn.transfer.court import Court
from edgecdn.transfer.incoming import Incoming, Pools, WorkThreads
from edgecdn.transfer.line import SourceLine
from edgecdn.transfer.outcome import most_telling
from edgecdn.transfer.patience import LONGEST_TOLD_S, Patience
from edgecdn.transfer.writer import LeaseWriter

__all__ = ["Transfer"]

_log = logging.getLogger(__name__)

_TICK_S = 0.2
"""How often stalls, growth and waits are looked at when nothing else happens."""

_ADMITTED = 48
"""Files open at a time: enough for every connection to have a small one, few enough for file descriptors."""

_FIRST_OFFERS_S = 3.0
"""Sources cheaper than a hub may take this long to say what they have before hubs are asked."""

_MORE_OFFERS_S = 0.5
"""How long the others are waited for once one of them has said what it has."""

_BACK_AGAIN_S = 1.0
"""A source that says it has changed, or is back, is tried again this soon."""

_STANDS_BADLY = 2
"""So many failures in a row, and another source may give what one was to stand for."""


class Transfer:
    """Brings files of one commit into the store, verified. Use once.

    `on_publishing` is called in a thread for each verified file, with its stat, just before it gets
    its name, `on_published` on the loop once it has it. `page` is the repo's page on its hub. `carrier` is
    tried first for files it takes. `arrivals` is where files are shown as they come. `pools`: threads that
    are shared with others.
    """

    def __init__(
        self,
        store: RepoStore,
        state: SafeDir,
        sources: Sequence[Source],
        listener: Listener,
        *,
        patience_s: float,
        on_publishing: Callable[[FileEntry, os.stat_result], None],
        page: str = "",
        carrier: Carrier | None = None,
        on_published: Callable[[FileEntry], None] | None = None,
        arrivals: Arrivals | None = None,
        pools: Pools | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Random | None = None,
    ) -> None:
        self._store = store
        self._state = state
        self._sources = {source.name: source for source in sources}
        self._listener = listener
        self._on_publishing = on_publishing
        self._on_published = on_published
        self._arrivals = arrivals or Arrivals()
        self._hurried: set[Digest] = set()
        self._page = page
        self._carrier = carrier
        self._clock = clock
        self._wake = asyncio.Event()
        self._board = Board(chance or Random())
        self._threads = WorkThreads.start(pools)
        self._offers: dict[str, Mapping[Digest, Offer]] = {}
        self._incoming: dict[Blob, Incoming] = {}
        self._court = Court(self._board, self._offers, listener)
        self._patience = Patience(self._board, self._court, listener, patience_s, clock())
        self._carriages = None if carrier is None else Carriages(
            carrier, self._board, self._line_of, lambda blob: bool(self._offering(blob.entry)),
            self._carried, self._discarded, lambda text: listener(Note(text)), self._wake.set,
        )  # fmt: skip
        self._parts: set[PartialFile] = set()
        self._waiting: deque[FileEntry] = deque()
        self._running: dict[Lease, asyncio.Task[None]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._ask_now: Callable[[Source], None] | None = None
        self._done: set[Digest] = set()
        self._absent: set[str] = set()
        self._left = 0
        self._open = 0

    async def run(self, manifest: Manifest, wanted: Sequence[FileEntry]) -> None:
        """Receive, verify and publish the blobs of `wanted` (one entry per digest).

        Raises IntegrityFailure, AccessDenied, FileMissing, Unreachable, NoSpace, ReadOnlyStore. What
        was received stays for the next run, also when cancelled.
        """
        self._waiting.extend(sorted(wanted, key=lambda e: (e.size > UNIT_BYTES, e.path)))
        self._left = len(wanted)
        for source in self._sources.values():
            self._board.add_source(source.name, source.kind, source.connections)
        if self._carrier is not None:
            self._board.add_source(self._carrier.name, self._carrier.kind, 1)  # never asked: so that it can be judged
        try:
            async with asyncio.TaskGroup() as group:

                def ask(source: Source) -> None:
                    self._asking[source.name] = group.create_task(self._ask(source, manifest, wanted))

                for source in self._sources.values():
                    ask(source)
                self._ask_now = ask
                await self._first_offers()
                await self._drive(group, manifest)
                self._ask_now = None
                for task in self._asking.values():
                    task.cancel()
        except BaseExceptionGroup as failures:
            raise most_telling(failures) from failures
        finally:
            self._ask_now = None
            if self._carriages is not None:
                self._carriages.close()
            await asyncio.to_thread(self._threads.stop)  # first, so that nothing uses what is closed next
            for part in self._parts:
                part.close()

    def join(self, source: Source) -> None:
        """Let a source take part from now on: a new one, or one of the job that has more, or is back.

        One that was dropped for what it gave stays dropped.
        """
        known = self._board.sources.get(source.name)
        asked = self._asking.get(source.name)
        if known is None:
            self._board.add_source(source.name, source.kind, source.connections)
        elif self._court.is_liar(source.name) or (asked is not None and not asked.done()):
            return
        else:
            known.blocked_until = min(known.blocked_until, self._clock() + _BACK_AGAIN_S)
            if source.name in self._absent:  # it could not be asked; one that misbehaved stays dropped
                known.dropped = None
                self._absent.discard(source.name)
        self._sources[source.name] = source
        if self._ask_now is not None:
            self._ask_now(source)

    def hurry(self, digest: Digest) -> None:
        """Somebody waits for a file: it is begun at once, and asked for before the others."""
        self._hurried.add(digest)
        for entry in [entry for entry in self._waiting if entry.digest == digest]:
            self._waiting.remove(entry)
            self._waiting.appendleft(entry)
        for blob, incoming in self._incoming.items():
            if blob.entry.digest == digest:
                self._hurry(blob, incoming)
        self._wake.set()

    def _hurry(self, blob: Blob, incoming: Incoming) -> None:
        incoming.hurried = True
        self._board.hurry(blob, self._clock())

    async def _drive(self, group: asyncio.TaskGroup, manifest: Manifest) -> None:
        while self._left:
            now = self._clock()
            while self._waiting and (self._open < _ADMITTED or self._waiting[0].digest in self._hurried):
                self._open += 1
                group.create_task(self._bring(group, manifest, self._waiting.popleft()))
            self._cancel_lost()
            while (granted := self._board.grant(now)) is not None:
                self._running[granted] = group.create_task(self._serve(granted))
            self._check_orphans(manifest)
            self._check_standing()
            self._check_patience(now)
            self._board.review(now)
            self._wake.clear()
            try:
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _cancel_lost(self) -> None:
        """End requests whose bytes others give now, or whose source is used no more; each is told once."""
        for lease, task in self._running.items():
            if (lease.revoked or lease.source.dropped) and not task.cancelling():
                task.cancel()

    # What sources offer

    async def _ask(self, source: Source, manifest: Manifest, wanted: Sequence[FileEntry]) -> None:
        try:
            offers = await source.offer(manifest, [entry for entry in wanted if entry.digest not in self._done])
        except SourceFault as fault:
            self._absent.add(source.name)
            self._court.drop(source.name, str(fault), quiet=source.kind is not Kind.ORIGIN)
            return
        self._offers[source.name] = offers
        for blob, incoming in self._incoming.items():
            if incoming.standing is None:
                self._offer(source.name, blob)
        self._wake.set()

    async def _first_offers(self) -> None:
        """Hubs answer at once; cheaper sources are waited for a little, dearer ones join when they answer."""
        cheap = {self._asking[s.name] for s in self._sources.values() if s.kind in (Kind.CACHE, Kind.LAN)}
        if not cheap:
            return
        _, silent = await asyncio.wait(cheap, timeout=_FIRST_OFFERS_S, return_when=asyncio.FIRST_COMPLETED)
        if silent:  # a silent one must not cost every fetch as much as the slowest may take
            await asyncio.wait(silent, timeout=_FIRST_OFFERS_S if not self._offers else _MORE_OFFERS_S)

    def _offering(self, entry: FileEntry) -> list[str]:
        used = self._board.sources
        return [n for n, offers in self._offers.items() if entry.digest in offers and used[n].dropped is None]

    def _offer(self, name: str, blob: Blob) -> None:
        if name in self._offering(blob.entry):
            self._board.offer(self._board.sources[name], blob)

    # One file, from its first byte to its publication

    async def _bring(self, group: asyncio.TaskGroup, manifest: Manifest, entry: FileEntry) -> None:
        with self._arrivals.bring(manifest.repo, entry) as arrival:
            arrival.publish(await self._bring_shown(group, manifest, entry, arrival))
        self._done.add(entry.digest)
        self._open -= 1
        self._left -= 1
        self._wake.set()
        self._listener(BlobPublished(str(entry.path), entry.size))
        if self._on_published is not None:
            self._on_published(entry)

    async def _bring_shown(
        self, group: asyncio.TaskGroup, manifest: Manifest, entry: FileEntry, arrival: Arrival
    ) -> os.stat_result:
        """The file as it was published."""
        published = None
        while published is None:
            part = await self._open_part(entry)
            incoming = Incoming(entry, part, self._threads, arrival)
            missing = incoming.missing()  # nothing of it: hashing decides, and nobody else may touch it meanwhile
            may_carry = self._carrier is not None and self._carrier.takes(entry)
            carried = may_carry and isinstance(part, PartialFile) and bool(missing)
            blob = self._board.add_blob(entry, () if carried else missing, self._offering(entry))
            self._incoming[blob] = incoming
            if entry.digest in self._hurried:
                self._hurry(blob, incoming)
            carrying = group.create_task(self._carry(manifest, blob, incoming)) if carried else None
            self._wake.set()
            published = await self._complete(blob, incoming)
            self._board.remove(blob)
            if carrying is not None:
                carrying.cancel()
            del self._incoming[blob]
            if self._carriages is not None:
                self._carriages.done(incoming)
            self._parts -= {part}
        return published

    async def _carry(self, manifest: Manifest, blob: Blob, incoming: Incoming) -> None:
        """Let the carrier bring what it can; the sources bring the rest."""
        assert self._carriages is not None
        try:
            await self._carriages.carry(manifest, blob, incoming)
        except errors.SystemFailed:  # somebody may still write into this very file: it is no good any more
            await self._discard(incoming)
            raise

    def _line_of(self, blob: Blob) -> SourceLine:
        until = self._clock() + _FIRST_OFFERS_S

        def answering() -> bool:
            lan = (source.name for source in self._sources.values() if source.kind is Kind.LAN)
            return self._clock() < until and any(not self._asking[name].done() for name in lan)

        return SourceLine(self._board, blob, self._sources, self._offers, self._faulted, answering, self._clock)

    def _carried(self, giver: Giver, count: int) -> None:
        self._patience.carried(self._clock())
        self._listener(BytesReceived(giver.name, giver.kind, count))

    async def _open_part(self, entry: FileEntry) -> PartialFile | SmallFile:
        if entry.size <= UNIT_BYTES:
            return SmallFile(entry.digest, entry.size)

        def open_partial() -> PartialFile:
            part = PartialFile(self._store.blobs(create=True), self._state, entry.digest, entry.size)
            self._parts.add(part)
            return part

        return await self._threads.do(self._threads.write, open_partial)

    async def _discard(self, incoming: Incoming) -> None:
        """Throw away what is there of it."""
        incoming.arrival.take_back()
        await self._threads.do(self._threads.write, partial(incoming.part.close, discard=True))

    async def _complete(self, blob: Blob, incoming: Incoming) -> os.stat_result | None:
        """Wait for all bytes, verify, publish; None when the partial file vanished and all begins again."""
        part = incoming.part
        while not (await incoming.follow() or await incoming.verify_again()):
            if self._carriages is None or not await self._carriages.looked_at_again(incoming):
                await self._dispute(blob, incoming)
        for liar in await incoming.liars() - {"" if self._carrier is None else self._carrier.name}:
            self._court.lied(liar, blob.entry)
        if self._carrier is not None and (tree := incoming.tree) is not None:
            self._carrier.built(blob.entry, tree)
        try:
            return await self._threads.do(self._threads.publish, lambda: self._publish(part, blob.entry))
        except PartialVanished:
            self._listener(
                Note(f"The partial file of {blob.entry.path} was removed by another program; it starts again.")
            )
            await self._discard(incoming)
            self._discarded(sum(incoming.given.values(), Counter()))
            return None

    def _publish(self, part: PartialFile | SmallFile, entry: FileEntry) -> os.stat_result:
        published: list[os.stat_result] = []

        def record(seen: os.stat_result) -> None:
            published.append(seen)
            self._on_publishing(entry, seen)

        waits = entry.digest not in self._hurried  # who waits for it may be the one that has it locked
        if isinstance(part, PartialFile):
            publish_partial(self._store, part, record, waits=waits)
        else:
            publish_small(self._store, part, record, waits=waits)
        return published[-1]

    async def _dispute(self, blob: Blob, incoming: Incoming) -> None:
        carrier = "" if self._carrier is None else self._carrier.name
        carried = any(carrier in gave for gave in incoming.givers.values())
        if carried and incoming.standing is None:
            self._court.accuse(carrier)  # for the message, should nobody be left; who lied is seen at the end
        try:
            verdict = self._court.judge(incoming)
        except errors.IntegrityFailure:
            await self._discard(incoming)
            raise
        assert verdict.truth is not None
        self._discarded(await incoming.suspect(verdict.again, verdict.truth, build_tree=carried))
        self._offer(verdict.truth, blob)
        self._board.restart(blob, verdict.again, only=self._board.sources[verdict.truth])
        self._wake.set()

    def _discarded(self, counts: Counter[str]) -> None:
        for name, count in counts.items():
            kind = self._board.sources[name].kind if name in self._board.sources else Kind.CACHE
            self._listener(BytesDiscarded(name, kind, count))

    # One request

    async def _serve(self, lease: Lease) -> None:
        incoming = self._incoming[lease.blob]
        where = (lease.source.name, incoming.entry.path, lease.start, lease.stop)
        _log.debug("%s is asked for %s, bytes %d to %d", *where)
        writer = LeaseWriter(incoming, lease.start, lease.source.name, lambda count: self._landed(lease, count))
        try:
            await self._receive(lease, writer)
        except asyncio.CancelledError:
            if not lease.revoked and not lease.source.dropped:
                raise
            self._board.broken(lease.source, self._clock())
        finally:
            del self._running[lease]
            self._board.end(lease, writer.written)
            self._wake.set()

    async def _receive(self, lease: Lease, writer: LeaseWriter) -> None:
        source = self._sources[lease.source.name]
        offer = self._offers[source.name].get(lease.blob.entry.digest)
        if offer is None:  # asked again meanwhile, it has it no more
            self._faulted(lease.source, lease.blob, Missing("has it no more"))
            return
        try:
            async with aclosing(source.read(offer, Span(lease.start, lease.stop))) as pieces:
                async for piece in pieces:
                    data = piece[: lease.stop - lease.position]
                    self._arrived(lease, len(data))
                    await writer.add(data)
                    if lease.position >= lease.stop:  # a split may have lowered it meanwhile
                        break
        except SourceFault as fault:
            self._faulted(lease.source, lease.blob, fault)
        finally:
            await writer.flush()

    def _arrived(self, lease: Lease, count: int) -> None:
        now = self._clock()
        self._board.received(lease, count, now)
        if count:
            self._patience.arrived(now)

    def _landed(self, lease: Lease, count: int) -> None:
        self._listener(BytesReceived(lease.source.name, lease.source.kind, count))

    def _faulted(self, source: SourceState, blob: Blob, fault: SourceFault) -> None:
        now = self._clock()
        _log.info("%s, %s: %s", source.name, blob.entry.path, fault)
        self._court.record(source.name, blob.entry, fault)
        match fault:
            case Missing():
                self._board.exclude(source, blob)
            case Denied():
                self._court.drop(source.name, f"refuses access ({fault})")
            case Busy(retry_after_s=told) if told is not None and told > LONGEST_TOLD_S:
                self._court.drop(source.name, f"asks to be left alone for {told:.0f} s")
            case Busy(retry_after_s=told):
                self._board.busy(source, told, now)
                self._patience.asked_to_wait(told or 0.0, now)
            case WrongPiece():
                if blob in source.offered:  # requests that ran side by side met the same
                    self._board.exclude(source, blob)
                    self._listener(Note(f"{source.name} {fault}; {blob.entry.path} is not taken from it."))
            case NoRanges():
                self._board.whole_only(source, blob)
            case Misbehaved():
                if self._board.misbehaved(source, str(fault), now):
                    self._listener(SourceDropped(source.name, str(fault)))
            case _:
                self._board.broken(source, now)

    # When nothing comes

    def _check_orphans(self, manifest: Manifest) -> None:
        for blob in self._board.orphans():
            incoming = self._incoming[blob]
            spare = self._court.witnesses(incoming)
            if incoming.standing is not None and spare:  # who stood for it cannot give it: the next one
                self._let_stand(blob, incoming, spare)
            elif all(task.done() for task in self._asking.values()):
                raise self._court.hopeless(manifest, blob.entry, self._page)

    def _check_standing(self) -> None:
        """Who stands for a file may be down for long, while others could give it."""
        for blob, incoming in self._incoming.items():
            standing = incoming.standing
            if standing is not None and self._board.sources[standing].failures >= _STANDS_BADLY:
                spare = self._court.witnesses(incoming)
                if spare:
                    self._let_stand(blob, incoming, spare)

    def _let_stand(self, blob: Blob, incoming: Incoming, names: Sequence[str]) -> None:
        incoming.standing = None
        for name in names:
            self._offer(name, blob)

    def _check_patience(self, now: float) -> None:
        if not self._hashing():
            self._patience.check(now, idle=not self._running, carried=bool(self._carriages and self._carriages.is_busy))

    def _hashing(self) -> bool:
        """Whether all that is left is verification and publication, for which no source is to blame."""
        return not self._waiting and all(blob.complete for blob in self._incoming)
