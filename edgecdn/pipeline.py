"""The fetch, stage by stage: resolve - select - inventory - space - transfer - publish - place.

Read top to bottom, it is what `edgecdn fetch` does. Stages are functions of other modules; this one
only orders them and keeps the counts.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edgecdn import errors
from edgecdn.cache.catalog import Catalog
from edgecdn.cache.inventory import Inventory, quarantine_dir, take_inventory
from edgecdn.cache.local_dir import place, placing_problems
from edgecdn.cache.locks import FileLock
from edgecdn.cache.partial import journaled_bytes
from edgecdn.cache.publish import publish_snapshot
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.events import BytesDiscarded, BytesReceived, Event, FetchPlanned, Kind, Listener, Note
from edgecdn.fileset import FileSet, select
from edgecdn.manifest import FileEntry
from edgecdn.names import ModelRef
from edgecdn.resolve import Resolved, Resolver
from edgecdn.settings import Settings
from edgecdn.shortnames import nearest
from edgecdn.sources import Source
from edgecdn.transfer.engine import Transfer

__all__ = ["Fetched", "Pipeline", "partials_dir"]

_MARGIN_BYTES = 64 << 20
"""Left free on the disk beyond the files themselves: trees, links, catalog, other programs (64 MiB)."""

_LOCK_POLL_S = 0.2
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch did. `bytes_by_source` sums to `bytes_total`; `cache` is what was here already. Times in seconds."""

    repo: str
    type: str
    revision: str
    commit: str
    path: str
    files: int
    bytes_total: int
    bytes_by_source: dict[str, int]
    seconds: float


@dataclass(slots=True)
class Pipeline:
    """One fetch. `sources` makes the job's sources once the commit is known; they are closed at the end."""

    settings: Settings
    resolver: Resolver
    sources: Callable[[], Sequence[Source]]
    catalog: Catalog
    listener: Listener
    _received: Counter[Kind] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    async def fetch(self, ref: ModelRef, wanted: FileSet, local_dir: Path | None = None) -> Fetched:
        """Bring the files and return where they are. Raises any EdgecdnError; can be run again to go on."""
        started = time.monotonic()
        resolved = await self.resolver.resolve(ref)
        for note in self.resolver.notes:
            self._tell(Note(note))
        entries = select_or_fail(resolved, wanted)
        if local_dir is not None:  # before the first byte, what `place` would refuse after the last
            problems = await asyncio.to_thread(placing_problems, local_dir, entries)
            if problems:
                raise errors.BadInput(problems)
        path = await self._complete(resolved, entries)
        if local_dir is not None:
            path = await asyncio.to_thread(place, path, local_dir, resolved.manifest, entries)
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

    async def _complete(self, resolved: Resolved, entries: tuple[FileEntry, ...]) -> Path:
        repo, commit = resolved.manifest.repo, resolved.manifest.commit
        found = await self._interruptible(lambda: self._look(resolved, entries))
        if found is not None:
            return found
        with (
            open_repo(self.settings.cache_dir, repo, create=True) as store,
            partials_dir(self.settings, store) as state,
        ):
            lock = FileLock(state, "job.lock")
            await self._take(lock)
            try:
                if not store.is_current():  # removed while we waited for the lock
                    return await self._complete(resolved, entries)
                inventory = await self._interruptible(lambda: self._inventory(store, entries))
                self._announce(resolved, entries, inventory)
                if inventory.missing:
                    await asyncio.to_thread(self._check_space, store, state, inventory)
                    await self._transfer(resolved, store, state, inventory.missing)
                await asyncio.to_thread(self._publish, resolved, store, entries)
            finally:
                lock.release()
            return store.snapshot_path(commit)

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
                if store.read_tree(manifest.commit) is None:
                    return None
                if resolved.ref is not None and store.read_ref(resolved.ref) != manifest.commit:
                    return None
                inventory = self._inventory(store, entries)
                if inventory.missing:
                    return None
                self._announce(resolved, entries, inventory)
                return store.snapshot_path(manifest.commit)
        except FileNotFoundError:
            return None

    def _inventory(self, store: RepoStore, entries: Sequence[FileEntry]) -> Inventory:
        def hashing(entry: FileEntry) -> None:
            if entry.size > 1 << 28:
                self._tell(Note(f"Checking {entry.path}, which is here already and was never verified ..."))

        inventory = take_inventory(store, self.catalog, entries, self.settings.home, hashing, self._stop)
        for entry in inventory.rotten:
            where = self.settings.home / "quarantine"
            self._tell(Note(f"{entry.path} in the cache was damaged; it is set aside in {where} and fetched again."))
        return inventory

    def _announce(self, resolved: Resolved, entries: Sequence[FileEntry], inventory: Inventory) -> None:
        missing = {entry.digest for entry in inventory.missing}
        here = [entry for entry in entries if entry.digest not in missing]
        total = sum(e.size for e in entries)
        to_come = sum(e.size for e in inventory.missing)
        manifest = resolved.manifest
        self._tell(
            FetchPlanned(str(manifest.repo), manifest.commit.hex, len(entries), len(here), total, total - to_come)
        )

    def _check_space(self, store: RepoStore, state: SafeDir, inventory: Inventory) -> None:
        begun = sum(journaled_bytes(state, entry.digest) for entry in inventory.missing)
        needed = sum(entry.size for entry in inventory.missing) - begun
        free = shutil.disk_usage(store.path).free
        if needed + _MARGIN_BYTES > free:
            detail = f"{_size(needed)} more are needed and {_size(free)} are free"
            raise errors.NoSpace(detail, where=self.settings.cache_dir)
        if os.fstatvfs(store.folder.fd).f_files and os.fstatvfs(store.folder.fd).f_favail < 2 * len(inventory.missing):
            raise errors.NoSpace(
                "the file system has no free inodes left for so many files", where=self.settings.cache_dir
            )

    async def _transfer(
        self, resolved: Resolved, store: RepoStore, state: SafeDir, missing: Sequence[FileEntry]
    ) -> None:
        def remember(entry: FileEntry, seen: os.stat_result) -> None:
            self.catalog.set_verified(store.path / "blobs" / entry.digest.hex, entry.digest, seen, brought=True)

        sources = self.sources()
        transfer = Transfer(
            store,
            state,
            sources,
            self._tell,
            patience_s=self.settings.fetch_patience_s,
            on_publishing=remember,
            page=resolved.page,
        )
        try:
            await transfer.run(resolved.manifest, missing)
        finally:
            for source in sources:
                await source.close()

    def _publish(self, resolved: Resolved, store: RepoStore, entries: Sequence[FileEntry]) -> None:
        with quarantine_dir(self.settings.home) as aside:
            moved = publish_snapshot(store, resolved.manifest, entries, resolved.ref, aside)
            for kept in moved:
                self._tell(Note(f"A file stood where the snapshot's {kept.stem} belongs; it is kept as {kept}."))

    async def _take(self, lock: FileLock) -> None:
        told = False
        while not lock.try_acquire():
            if not told:
                self._tell(Note("Another edgecdn is fetching this repo here; waiting for it ..."))
                told = True
            await asyncio.sleep(_LOCK_POLL_S)

    def _tell(self, event: Event) -> None:
        if isinstance(event, BytesReceived):
            self._received[event.kind] += event.count
        elif isinstance(event, BytesDiscarded):
            self._received[event.kind] -= event.count
        self.listener(event)


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
    seen = os.fstat(store.folder.fd)
    return SafeDir.at(settings.home / "partials" / f"{seen.st_dev:x}-{seen.st_ino:x}", create=True)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
