"""The fetch, stage by stage: resolve - select - inventory - space - transfer - publish - place.

Read top to bottom, it is what `edgecdn fetch` does. Stages are functions of other modules; this one
only orders them and keeps the counts.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from edgecdn import errors
from edgecdn.cache.catalog import Catalog
from edgecdn.cache.inventory import Glance, Inventory, glance, quarantine_dir, take_inventory
from edgecdn.cache.local_dir import PlacingPlan, place, plan_placing
from edgecdn.cache.partial import journaled_bytes
from edgecdn.cache.provisional import Provisional
from edgecdn.cache.publish import publish_snapshot
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.events import (
    BlobPublished,
    BytesDiscarded,
    BytesReceived,
    Event,
    FetchPlanned,
    Kind,
    Listener,
    Note,
    Waiting,
)
from edgecdn.fetched import Fetched
from edgecdn.fileset import FileSet, harmless, select
from edgecdn.filling import Filling, Round
from edgecdn.manifest import FileEntry
from edgecdn.names import ModelRef
from edgecdn.resolve import Resolved, Resolver
from edgecdn.rooms import Claims, Room
from edgecdn.settings import Settings
from edgecdn.shortnames import nearest
from edgecdn.sizes import human_bytes
from edgecdn.sources import Source
from edgecdn.spans import UNIT_BYTES
from edgecdn.together import Together
from edgecdn.transfer.carrier import Lab
from edgecdn.transfer.engine import Transfer
from edgecdn.transfer.incoming import Pools

__all__ = ["Fetched", "Pipeline", "Prepared", "partials_dir", "partials_name"]

_MARGIN_BYTES = 64_000_000
"""Left free on the disk beyond the files themselves: trees, links, catalog, other programs (64 MB)."""

_MOST_NAMED = 5

_OTHERS = "another fetch"
"""What is said to have given the bytes that another fetch of this process brought."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a fetch is of: a commit with its listing, and the files that are wanted."""

    resolved: Resolved
    entries: tuple[FileEntry, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for fetches that would do the same."""
        manifest = self.resolved.manifest
        return manifest.repo, manifest.commit, self.resolved.ref, self.entries


@dataclass(slots=True)
class Pipeline:
    """One fetch. `sources` makes the job's sources once the commit is known; they are closed at the end.

    `lab`: the peers, for who is in a lab. `together`: what it shares with the other fetches of the process.
    `urgent`: somebody reads the files as they come. `pools`: threads that are shared.
    """

    settings: Settings
    resolver: Resolver
    sources: Callable[[], Sequence[Source]]
    catalog: Catalog
    listener: Listener
    lab: Lab | None = None
    together: Together = field(default_factory=Together)
    urgent: bool = False
    pools: Pools | None = None
    _received: Counter[Kind] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _claims: Claims = field(default_factory=Claims)

    async def fetch(self, ref: ModelRef, wanted: FileSet, local_dir: Path | None = None) -> Fetched:
        """Bring the files and return where they are. Raises any EdgecdnError; can be run again to go on."""
        started = time.monotonic()
        return await self.bring(await self.prepare(ref, wanted), local_dir, started)

    async def prepare(self, ref: ModelRef, wanted: FileSet) -> Prepared:
        """Find out what is meant: the commit, its files, those of them that are wanted."""
        self._loop = asyncio.get_running_loop()
        resolved = await self.resolver.resolve(ref)
        for note in self.resolver.notes:
            self._tell(Note(note))
        entries = select_or_fail(resolved, wanted)
        if resolved.provisional:
            entries = self._only_harmless(resolved, entries)
        return Prepared(resolved, entries)

    async def look(self, prepared: Prepared) -> Fetched | None:
        """The result, when everything is here and right already; nothing is fetched or written."""
        started = time.monotonic()
        found = await self._interruptible(lambda: self._look(prepared.resolved, prepared.entries))
        return None if found is None else self._fetched(prepared, found, started)

    async def bring(self, prepared: Prepared, local_dir: Path | None = None, started: float | None = None) -> Fetched:
        """Fetch what is missing, publish, place. `started`: when the user asked (monotonic seconds)."""
        started = time.monotonic() if started is None else started
        self._loop = asyncio.get_running_loop()
        resolved, entries = prepared.resolved, prepared.entries
        plan = None if local_dir is None else await self._plan(local_dir, entries)
        path = await self._complete(resolved, entries, plan)
        if plan is not None:
            path = await self._interruptible(partial(place, plan, path, resolved.manifest, self._stop))
        return self._fetched(prepared, path, started)

    def _fetched(self, prepared: Prepared, path: Path, started: float) -> Fetched:
        resolved, entries = prepared.resolved, prepared.entries
        total = sum(entry.size for entry in entries)
        counts = {kind.value: self._received[kind] for kind in Kind}
        counts[Kind.CACHE.value] = max(0, total - sum(self._received[k] for k in Kind if k is not Kind.CACHE))
        manifest = resolved.manifest
        return Fetched(
            repo=manifest.repo.name,
            type=manifest.repo.type.value,
            revision=str(resolved.revision),
            commit=manifest.commit.hex,
            path=str(path),
            files=len(entries),
            bytes_total=total,
            bytes_by_source=counts,
            seconds=round(time.monotonic() - started, 3),
        )

    async def _plan(self, local_dir: Path, entries: tuple[FileEntry, ...]) -> PlacingPlan:
        """Before the first byte, what `place` would refuse after the last."""
        inside = await asyncio.to_thread(_first_around, local_dir, (self.settings.cache_dir, self.settings.home))
        if inside is not None:
            raise errors.BadInput(f"--local-dir {local_dir} lies in {inside}", hint="Choose a folder of its own.")
        plan = await self._interruptible(lambda: plan_placing(local_dir, entries, self._stop))
        if plan.problem:
            raise errors.BadInput(plan.problem)
        return plan

    async def _complete(self, resolved: Resolved, entries: tuple[FileEntry, ...], plan: PlacingPlan | None) -> Path:
        repo = resolved.manifest.repo
        while True:
            found = await self._interruptible(lambda: self._look(resolved, entries))
            if found is not None:
                return found
            with await asyncio.to_thread(open_repo, self.settings.cache_dir, repo, create=True) as store:
                if await self._bring(resolved, store, entries, plan):
                    return store.snapshot_path(resolved.manifest.commit)

    async def _bring(
        self, resolved: Resolved, store: RepoStore, entries: tuple[FileEntry, ...], plan: PlacingPlan | None
    ) -> bool:
        """Fetch and publish what is missing; False when the repo was removed while we waited for the lock."""
        with await self._open_state(store) as state:
            async with self.together.rooms.enter(state, self._say_others_fetch) as room:
                try:
                    async with room.door:
                        if not store.is_current():
                            return False
                    await self._fill(resolved, store, state, entries, plan, room)
                    await self._show(resolved, store, entries, room)
                except BaseException:
                    await _leave(room, store)
                    raise
                return True

    async def _open_state(self, store: RepoStore) -> SafeDir:
        try:
            return await asyncio.to_thread(partials_dir, self.settings, store)
        except errors.EdgecdnError:
            await asyncio.to_thread(store.remove_if_empty)
            raise

    async def _fill(
        self,
        resolved: Resolved,
        store: RepoStore,
        state: SafeDir,
        entries: tuple[FileEntry, ...],
        plan: PlacingPlan | None,
        room: Room,
    ) -> None:
        """Have every file here: what nobody else brings is brought, what others bring is waited for."""

        async def glanced(those: Sequence[FileEntry]) -> Glance:
            return await self._interruptible(lambda: glance(store, self.catalog, those))

        async def proven(those: Sequence[FileEntry]) -> Inventory:
            return await self._interruptible(lambda: self._inventory(store, those, set_aside_rotten=True))

        ready, announced = tuple({entry.digest: entry for entry in entries}.values()), False
        busy: tuple[FileEntry, ...] = ()
        with room.claims() as self._claims:
            filling = Filling(store.cache_dir, store.repo, room, self._claims, self.together.arrivals, glanced, proven)
            while ready:
                found = await filling.look(ready)
                busy += found.busy
                begun = await asyncio.to_thread(_begun_bytes, store, state, found.missing)
                if announced:
                    self._tell_brought(found, begun)
                else:
                    self._announce(resolved, entries, [*found.missing, *busy], begun)
                    announced = True
                if found.missing:
                    await asyncio.to_thread(self._check_space, store, found.missing, begun, plan)
                    await self._transfer(resolved, store, state, found.missing)
                self._claims.release_all()  # before waiting, so that no two fetches wait for each other
                if not busy:
                    return
                self._tell(Waiting(f"Another fetch here brings {busy[0].path}; waiting for it ..."))
                others = await filling.others(busy, urgent=self.urgent)
                ready, busy = others.ended, others.busy

    def _tell_brought(self, found: Round, begun: int) -> None:
        """What others have brought of our files, and what they left of one that we go on with."""
        for entry in found.here:
            self._tell(BytesReceived(_OTHERS, Kind.CACHE, entry.size))
            self._tell(BlobPublished(str(entry.path), entry.size))
        if begun:
            self._tell(BytesReceived(_OTHERS, Kind.CACHE, begun))

    async def _interruptible(self, work: Callable[[], _T]) -> _T:
        """Run blocking work that hashes; when cancelled, it ends soon instead of being waited for to its end."""
        try:
            return await asyncio.to_thread(work)
        except asyncio.CancelledError:
            self._stop.set()
            raise

    def _look(self, resolved: Resolved, entries: tuple[FileEntry, ...]) -> Path | None:
        """The snapshot, when everything is here already: then nothing is written, not even a lock."""
        manifest = resolved.manifest
        try:
            with open_repo(self.settings.cache_dir, manifest.repo) as store:
                if not all(store.has_link(manifest.commit, entry) for entry in entries):
                    return None
                if store.read_tree(manifest.commit) is None or self._is_to_confirm(resolved):
                    return None
                if resolved.ref is not None and store.read_ref(resolved.ref) != manifest.commit:
                    return None
                if self.urgent:  # what is hashed is read meanwhile, by a claim
                    missing = len(glance(store, self.catalog, entries).here) < len(entries)
                else:
                    missing = bool(self._inventory(store, entries, set_aside_rotten=False).missing)
                if missing:
                    return None
                self._announce(resolved, entries)
                return store.snapshot_path(manifest.commit)
        except FileNotFoundError:
            return None

    def _inventory(self, store: RepoStore, entries: Sequence[FileEntry], *, set_aside_rotten: bool) -> Inventory:
        def hashing(entry: FileEntry) -> None:
            if entry.size > 1 << 28:
                self._tell(Note(f"Checking {entry.path}, which is here already and was never verified ..."))

        home = self.settings.home
        inventory = take_inventory(
            store, self.catalog, entries, home, hashing, self._stop, set_aside_rotten=set_aside_rotten
        )
        for entry in inventory.rotten if set_aside_rotten else ():
            kept = inventory.aside.get(entry.digest)
            done = f"set aside in {kept.parent} and fetched again" if kept is not None else "fetched again"
            self._tell(Note(f"{entry.path} in the cache was damaged; it is {done}."))
        return inventory

    def _announce(
        self, resolved: Resolved, entries: Sequence[FileEntry], missing: Sequence[FileEntry] = (), begun_bytes: int = 0
    ) -> None:
        lacking = {entry.digest for entry in missing}
        here = [entry for entry in entries if entry.digest not in lacking]
        total = sum(e.size for e in entries)
        to_come = sum(e.size for e in missing) - begun_bytes
        manifest = resolved.manifest
        self._tell(
            FetchPlanned(str(manifest.repo), manifest.commit.hex, len(entries), len(here), total, total - to_come)
        )

    def _check_space(
        self, store: RepoStore, missing: Sequence[FileEntry], begun: int, plan: PlacingPlan | None
    ) -> None:
        needed = sum(entry.size for entry in missing) - begun
        if plan is not None:
            needed += plan.needed_on(os.fstat(store.folder.fd).st_dev)
        free = shutil.disk_usage(store.path).free
        if needed + _MARGIN_BYTES > free:
            kept = f"{human_bytes(_MARGIN_BYTES)} are kept free beyond that"
            detail = f"{human_bytes(needed)} more are needed, {kept}, and {human_bytes(free)} are free"
            raise errors.NoSpace(detail, where=self.settings.cache_dir)
        if os.fstatvfs(store.folder.fd).f_files and os.fstatvfs(store.folder.fd).f_favail < 2 * len(missing):
            raise errors.NoSpace(
                "the file system has no free inodes left for so many files", where=self.settings.cache_dir
            )

    async def _transfer(
        self, resolved: Resolved, store: RepoStore, state: SafeDir, missing: Sequence[FileEntry]
    ) -> None:
        def remember(entry: FileEntry, seen: os.stat_result) -> None:
            self.catalog.set_verified(store.path / "blobs" / entry.digest.hex, entry.digest, seen, brought=True)

        claims, together = self._claims, self.together
        sources = [*self.sources(), *(self.lab.sources() if self.lab else ())]
        transfer = Transfer(
            store,
            state,
            sources,
            self._tell,
            patience_s=self.settings.fetch_patience_s,
            on_publishing=remember,
            page=resolved.page,
            carrier=self.lab.carrier if self.lab else None,
            on_published=lambda entry: claims.release(entry.digest),
            arrivals=together.arrivals,
            pools=self.pools,
        )
        if self.urgent:
            for entry in missing:
                claims.hurry(entry.digest)
        claims.tell_hurry(transfer.hurry)

        def joined(source: Source) -> None:
            if source not in sources:
                sources.append(source)
            transfer.join(source)

        unwatch = self.lab.watch(joined) if self.lab else _nothing
        try:
            await transfer.run(resolved.manifest, missing)
        finally:
            claims.tell_hurry(None)
            unwatch()
            for source in sources:
                await source.close()

    def _only_harmless(self, resolved: Resolved, entries: Sequence[FileEntry]) -> tuple[FileEntry, ...]:
        """What peers alone vouch for may be data, never code: a listing can be made up so that its hashes are right."""
        kept, left_out = harmless(entries)
        if left_out:
            named = ", ".join(str(entry.path) for entry in left_out[:_MOST_NAMED])
            more = " ..." if len(left_out) > _MOST_NAMED else ""
            self._tell(Note(f"Left out until a hub confirms the listing: {named}{more}."))
        if not kept:
            raise errors.NothingMatched(name=resolved.manifest.repo, patterns="safetensors or text", nearest="")
        return kept

    def _is_to_confirm(self, resolved: Resolved) -> bool:
        """Whether a hub's listing is to replace what only peers have said of the commit."""
        manifest = resolved.manifest
        return not resolved.provisional and (manifest.repo, manifest.commit) in Provisional(self.settings.home)

    async def _show(self, resolved: Resolved, store: RepoStore, entries: Sequence[FileEntry], room: Room) -> None:
        """Publish; fetches of single files that end at the same time are published together."""

        async def publish(those: Sequence[FileEntry]) -> None:
            await asyncio.to_thread(self._publish, resolved, store, those)

        alone = resolved.ref is not None or resolved.provisional
        await room.publications.do(id(self) if alone else resolved.manifest.commit, entries, publish)

    def _publish(self, resolved: Resolved, store: RepoStore, entries: Sequence[FileEntry]) -> None:
        repo, commit = resolved.manifest.repo, resolved.manifest.commit
        confirmed = self._is_to_confirm(resolved)
        if resolved.provisional:
            Provisional(self.settings.home).add(repo, commit)
        elif confirmed:
            self._drop_false_links(resolved, store)
        with quarantine_dir(self.settings.home) as aside:
            moved = publish_snapshot(store, resolved.manifest, entries, resolved.ref, aside, self.together.trees)
            for kept in moved:
                self._tell(Note(f"A file stood where the snapshot's {kept.stem} belongs; it is kept as {kept}."))
        if confirmed:  # not before the hub's listing is written: until then the peers' stands there
            Provisional(self.settings.home).confirm(repo, commit)

    def _drop_false_links(self, resolved: Resolved, store: RepoStore) -> None:
        """What peers listed and the hub does not: a loader must not find it in the snapshot."""
        claimed = store.read_tree(resolved.manifest.commit)
        told = {entry.path: entry.digest for entry in resolved.manifest.files}
        for entry in claimed.files if claimed else ():
            if told.get(entry.path) != entry.digest:
                store.unlink(resolved.manifest.commit, entry)

    def _say_others_fetch(self) -> None:
        self._tell(Note("Another edgecdn is fetching this repo here; waiting for it ..."))

    def _tell(self, event: Event) -> None:
        """Count it and pass it on, from any thread; what threads tell comes before what follows their end."""
        if self._loop is None or _running_loop() is self._loop:
            self._deliver(event)
            return
        with suppress(RuntimeError):  # the loop is closed: the fetch was cancelled, and nobody listens
            self._loop.call_soon_threadsafe(self._deliver, event)

    def _deliver(self, event: Event) -> None:
        if isinstance(event, BytesReceived):
            self._received[event.kind] += event.count
        elif isinstance(event, BytesDiscarded):
            self._received[event.kind] -= event.count
        self.listener(event)


async def _leave(room: Room, store: RepoStore) -> None:
    """A refused fetch leaves no odd folder behind, unless others are about to fill it."""
    async with room.door:
        if room.is_lonely:
            await asyncio.to_thread(store.remove_if_empty)


def _begun_bytes(store: RepoStore, state: SafeDir, missing: Sequence[FileEntry]) -> int:
    """What earlier runs have left of the files that are missing; small ones are never left half."""
    try:
        with store.blobs() as blobs:
            large = [entry for entry in missing if entry.size > UNIT_BYTES]
            return sum(journaled_bytes(blobs, state, entry.digest, entry.size) for entry in large)
    except FileNotFoundError:
        return 0


def _first_around(inner: Path, outers: Sequence[Path]) -> Path | None:
    """The first of `outers` that `inner` lies in, or is."""
    return next((outer for outer in outers if inner.resolve().is_relative_to(outer.resolve())), None)


def select_or_fail(resolved: Resolved, wanted: FileSet) -> tuple[FileEntry, ...]:
    """The entries the user wants; raises NothingMatched with the nearest names when there are none."""
    entries = select(resolved.manifest, wanted)
    if not entries and (resolved.manifest.files or wanted.include):
        paths = list(resolved.manifest.by_path)
        near = [n for pattern in wanted.include for n in nearest(pattern, paths)]
        told = f" Did you mean {', '.join(dict.fromkeys(near))}?" if near else f" It has {', '.join(paths[:5])} ..."
        patterns = ", ".join(wanted.include) or "what was asked for"
        raise errors.NothingMatched(name=resolved.manifest.repo, patterns=patterns, nearest=told)
    return entries


def partials_dir(settings: Settings, store: RepoStore) -> SafeDir:
    """The folder of journals for one repo of one cache, in our state."""
    return SafeDir.at(settings.home / "partials" / partials_name(store), create=True)


def partials_name(store: RepoStore) -> str:
    """That folder's name: of where the repo's folder is, since device and inode numbers change with a mount."""
    return hashlib.sha256(os.fsencode(os.path.realpath(store.path))).hexdigest()[:16]


def _nothing() -> None:
    """Where there is no lab to stop watching."""


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
