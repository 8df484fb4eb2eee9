"""What interrupted fetches left and nobody came back for: partial files, journals without one, blobs without a link."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.journal import read_journal
from edgecdn.cache.removal import brought_blobs, read_links, remove_blobs
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.scan import BlobOnDisk, blobs_on_disk
from edgecdn.cache.store import RepoStore

__all__ = ["Leftovers", "StrayJournal", "find_leftovers", "remove_leftovers", "stray_journals"]

_JOURNAL = ".journal"


@dataclass(frozen=True, slots=True)
class StrayJournal:
    """A journal, and the partial file it speaks of where that is still there (`partial` empty: it is not)."""

    name: str
    partial: str
    size: int
    """Bytes the partial file takes on the disk."""
    age_s: float
    is_done: bool = False
    """Whether the whole file is here by now: somebody else brought it."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What can go from one repo."""

    journals: tuple[StrayJournal, ...]
    blobs: tuple[BlobOnDisk, ...]

    @property
    def size(self) -> int:
        """Bytes that would be freed."""
        return sum(j.size for j in self.journals) + sum(b.size for b in self.blobs)


def find_leftovers(
    store: RepoStore, state: SafeDir, catalog: Catalog, now_s: float, older_than_s: float, *, keep_blobs: bool = False
) -> Leftovers:
    """Partial files of ours and unlinked brought blobs at least so old; journals and partial files of no more use."""
    journals = [j for j in _journals(store, state, now_s) if not j.partial or j.is_done or j.age_s >= older_than_s]
    blobs: Sequence[BlobOnDisk] = [] if keep_blobs else list(blobs_on_disk(store))
    linked = {link.named for link in read_links(store)}
    loose = [b for b in blobs if b.digest not in linked and now_s - b.path.lstat().st_mtime >= older_than_s]
    ours = brought_blobs(catalog, loose)
    return Leftovers(tuple(journals), tuple(b for b in loose if b.digest in ours))


def remove_leftovers(store: RepoStore, state: SafeDir, catalog: Catalog, found: Leftovers) -> None:
    """Delete them; the caller holds the repo's job lock. The partial file goes first: its journal says it is ours."""
    for journal in found.journals:
        if journal.partial:
            with store.blobs() as blobs:
                blobs.unlink(journal.partial)
        state.unlink(journal.name)
    remove_blobs(store, catalog, found.blobs)


def stray_journals(partials: Path, known: Sequence[str], now_s: float, older_than_s: float) -> list[Path]:
    """Journals of repos that are gone (`known`: the folders of those that are there), at least so old."""
    folders = [f for f in sorted(partials.glob("*")) if f.is_dir() and f.name not in known]
    return [p for f in folders for p in sorted(f.glob(f"*{_JOURNAL}")) if now_s - p.lstat().st_mtime >= older_than_s]


def _journals(store: RepoStore, state: SafeDir, now_s: float) -> Iterator[StrayJournal]:
    whole = {(blob.digest.hex, blob.size) for blob in blobs_on_disk(store)}
    for name in state.names():
        seen = state.lstat(name) if name.endswith(_JOURNAL) else None
        if seen is None:
            continue
        partial = _partial(store, state, name)
        newest = max(seen.st_mtime, partial[1].st_mtime if partial else 0.0)
        size = partial[1].st_blocks * 512 if partial else 0
        is_done = partial is not None and (name.removesuffix(_JOURNAL), partial[1].st_size) in whole
        yield StrayJournal(name, partial[0] if partial else "", size, now_s - newest, is_done)


def _partial(store: RepoStore, state: SafeDir, journal: str) -> tuple[str, os.stat_result] | None:
    """The partial file a journal speaks of, if it is still the one that was journaled."""
    found = read_journal(state, journal)
    if found is None or "/" in found[0].partial or not found[0].partial.endswith(".incomplete"):
        return None
    try:
        with store.blobs() as blobs:
            there = blobs.lstat(found[0].partial)
    except FileNotFoundError:
        return None
    return (found[0].partial, there) if there is not None and there.st_ino == found[0].inode else None
