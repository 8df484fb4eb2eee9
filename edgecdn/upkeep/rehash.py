"""Hashing what is in the cache again, setting aside what rotted, fetching that anew: what `edgecdn verify` does."""

from __future__ import annotations

import asyncio
import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.inventory import BlobCheck, check_blob, set_aside
from edgecdn.cache.scan import BlobOnDisk, RepoOnDisk
from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.digest import Digest
from edgecdn.errors import CacheRefused, EdgecdnError
from edgecdn.events import Listener
from edgecdn.fileset import FileSet
from edgecdn.local_fetch import run_fetch
from edgecdn.names import CommitId, ModelRef, RepoId, Revision
from edgecdn.pipeline import partials_dir
from edgecdn.settings import Settings
from edgecdn.upkeep.housekeeping import job_lock

__all__ = ["Checked", "blobs_to_check", "check_again", "commits_to_refetch", "missing_blobs", "refetch_all"]


@dataclass(frozen=True, slots=True)
class Checked:
    """One blob after it was hashed. `quarantined`: where a wrong one is now; None when it could not be moved.

    `missing`: a commit links it and it is not here (it rotted before, or somebody removed it).
    """

    repo: RepoId
    blob: BlobOnDisk
    paths: tuple[str, ...]
    ok: bool
    quarantined: str | None = None
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Refetch:
    """A commit with rotten files, and all its files that were here."""

    repo: RepoId
    commit: CommitId
    files: tuple[str, ...]


def blobs_to_check(
    found: RepoOnDisk, commits: Sequence[CommitId], *, unlinked: bool
) -> list[tuple[BlobOnDisk, tuple[str, ...]]]:
    """Blobs that `commits` link, with the paths they have there; `unlinked`: also those that no commit links."""
    paths: dict[str, list[str]] = {}
    for commit in found.commits:
        for path, digest in commit.files.items():
            if digest is not None:
                paths.setdefault(digest.hex, []).extend([path] if commit.commit in commits else [""])
    chosen = []
    for blob in found.blobs:
        linked = paths.get(blob.digest.hex)
        named = tuple(dict.fromkeys(filter(None, linked or ())))
        if named or (unlinked and linked is None):
            chosen.append((blob, named))
    return chosen


def check_again(
    settings: Settings, catalog: Catalog, repo: RepoId, chosen: Sequence[tuple[BlobOnDisk, tuple[str, ...]]]
) -> Iterator[Checked]:
    """Hash each on all cores, in order; a wrong one is hashed once more and then set aside."""
    stop = Event()
    with open_repo(settings.cache_dir, repo) as store, ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        try:
            verdicts = pool.map(lambda item: _check(store, catalog, item[0], stop), chosen)
            for (blob, paths), found in zip(chosen, verdicts, strict=True):
                if found is None:
                    continue  # it went away meanwhile
                aside = None if found.right else _set_aside(settings, store, catalog, blob)
                yield Checked(repo, blob, paths, ok=found.right, quarantined=aside)
        finally:
            stop.set()  # nobody waits for the rest


def missing_blobs(found: RepoOnDisk, commits: Sequence[CommitId]) -> list[Checked]:
    """What `commits` link and is not here."""
    here = {blob.digest for blob in found.blobs}
    paths: dict[Digest, list[str]] = {}
    for commit in found.commits:
        for path, digest in commit.files.items() if commit.commit in commits else ():
            if digest is not None and digest not in here:
                paths.setdefault(digest, []).append(path)
    return [
        Checked(
            found.repo, BlobOnDisk(digest, 0, Path(digest.hex)), tuple(dict.fromkeys(named)), ok=False, missing=True
        )
        for digest, named in paths.items()
    ]


def commits_to_refetch(found: RepoOnDisk, rotten: Sequence[Checked]) -> list[Refetch]:
    """Which commits lost a file, with every file that was here of them."""
    wrong = {checked.blob.digest for checked in rotten if checked.repo == found.repo}
    return [
        Refetch(found.repo, commit.commit, tuple(path for path, digest in commit.files.items() if digest is not None))
        for commit in found.commits
        if wrong & set(commit.files.values())
    ]


async def _refetch(settings: Settings, wanted: Sequence[Refetch], listener: Listener) -> list[EdgecdnError]:
    """Fetch each again, just the files that were there; returns what failed."""
    failures = []
    for item in wanted:
        ref = ModelRef(item.repo.name, item.repo.type, Revision(item.commit.hex))
        files = FileSet(include=tuple(glob.escape(path) for path in item.files))
        try:
            await run_fetch(ref, files, settings, listener=listener)
        except EdgecdnError as error:
            failures.append(error)
    return failures


def refetch_all(settings: Settings, wanted: Sequence[Refetch], listener: Listener) -> None:
    """Fetch each again, just the files that were there; raises the first failure after all were tried."""
    failures = asyncio.run(_refetch(settings, wanted, listener))
    if failures:
        raise failures[0]


def _check(store: RepoStore, catalog: Catalog, blob: BlobOnDisk, stop: Event | None = None) -> BlobCheck | None:
    try:
        return check_blob(store, catalog, blob.digest, blob.size, lambda: None, again=True, stop=stop)
    except CacheRefused:
        return None  # a link to elsewhere: not the cache's own


def _set_aside(settings: Settings, store: RepoStore, catalog: Catalog, blob: BlobOnDisk) -> str | None:
    with partials_dir(settings, store) as state, job_lock(state) as held:
        found = _check(store, catalog, blob) if held else None
        if found is None or found.right:
            return None  # a fetch of the repo runs and checks by itself, or has done so
        moved = set_aside(store, catalog, blob.digest, settings.home, found.seen)
        return str(moved) if moved is not None else None
