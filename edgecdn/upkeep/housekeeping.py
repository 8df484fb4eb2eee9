"""Removing repos and leftovers: what `edgecdn rm` and `edgecdn gc` do, under each repo's job lock."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.leftovers import Leftovers, find_leftovers, remove_leftovers, stray_journals
from edgecdn.cache.locks import FileLock
from edgecdn.cache.removal import Removal, brought_blobs, plan_removal, read_links, remove
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.scan import cached_repos, scan_repo
from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.digest import Digest
from edgecdn.errors import BadInput, CacheRefused, Pinned
from edgecdn.local_names import matching_commits
from edgecdn.names import CommitId, RepoId, Revision
from edgecdn.pipeline import partials_dir, partials_name
from edgecdn.settings import Settings
from edgecdn.upkeep.pins import Pin, is_pinned, pinned_commits, read_pins

__all__ = [
    "Cleaned",
    "RemovedRepo",
    "Skipped",
    "clean_quarantine",
    "clean_repos",
    "clean_strays",
    "job_lock",
    "remove_repo",
]


@dataclass(frozen=True, slots=True)
class RemovedRepo:
    """What a removal took (or would take), partial files of ours included."""

    repo: RepoId
    plan: Removal
    leftovers: Leftovers

    @property
    def size(self) -> int:
        """Bytes freed."""
        return self.plan.size + self.leftovers.size


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a clean-up took (or would take) of one repo."""

    repo: RepoId
    leftovers: Leftovers


@dataclass(frozen=True, slots=True)
class Skipped:
    """A repo a clean-up left alone, and why."""

    repo: RepoId
    reason: str


@contextmanager
def job_lock(state: SafeDir) -> Iterator[bool]:
    """Hold the lock that a fetch of the repo holds; yields whether it was free."""
    lock = FileLock(state, "job.lock")
    held = lock.try_acquire()
    try:
        yield held
    finally:
        lock.release()


def remove_repo(
    settings: Settings, catalog: Catalog, repo: RepoId, revision: Revision | None, *, dry_run: bool
) -> RemovedRepo:
    """Remove a repo, or the commits a revision names, as far as edgecdn brought them.

    Raises Pinned, RevisionMissing, AmbiguousName, BadInput while a fetch of it runs.
    """
    with open_repo(settings.cache_dir, repo) as store, partials_dir(settings, store) as state, job_lock(state) as held:
        if not held:
            stop = f"Ctrl-C where it runs; the agent's: `edgecdn cancel {repo}`"
            raise BadInput(f"{repo} is being fetched right now", hint=f"Wait for that, or stop it ({stop}).")
        found = scan_repo(settings.cache_dir, repo)
        commits = matching_commits(found, revision)
        pins = read_pins(settings.home)
        refuse_pinned(repo, commits, pinned_commits(pins, found), whole=revision is None and is_pinned(pins, repo))
        listed = None if revision is None else _listed(store, commits)
        plan = plan_removal(commits, read_links(store), found.blobs, brought_blobs(catalog, found.blobs), listed)
        whole = revision is None
        leftovers = find_leftovers(store, state, catalog, time.time(), 0.0, keep_blobs=True)
        taken = RemovedRepo(repo, plan, leftovers if whole else Leftovers((), ()))
        if not dry_run:
            remove_leftovers(store, state, catalog, taken.leftovers)
            remove(store, catalog, plan)
        return taken


def refuse_pinned(repo: RepoId, commits: Sequence[CommitId], kept: dict[CommitId, Pin], *, whole: bool) -> None:
    """Raise Pinned when one of `commits` is kept, or `whole` the repo."""
    for commit in commits:
        if commit in kept:
            raise Pinned(name=kept[commit])
    if whole:
        raise Pinned(name=repo)


def clean_repos(
    settings: Settings, catalog: Catalog, older_than_s: float, *, dry_run: bool
) -> Iterator[Cleaned | Skipped]:
    """Take the leftovers of every repo in the cache that was ever fetched by edgecdn."""
    pins = read_pins(settings.home)
    for repo in cached_repos(settings.cache_dir):
        try:
            with open_repo(settings.cache_dir, repo) as store:
                if not (settings.home / "partials" / partials_name(store)).is_dir():
                    continue
                yield _clean(settings, catalog, store, older_than_s, pinned=is_pinned(pins, repo), dry_run=dry_run)
        except FileNotFoundError:
            continue  # it went away meanwhile
        except CacheRefused as refusal:
            yield Skipped(repo, refusal.message)


def clean_strays(settings: Settings, older_than_s: float, *, dry_run: bool) -> list[Path]:
    """Take old journals whose repo is gone; returns them."""
    known = []
    for repo in cached_repos(settings.cache_dir):
        try:
            with open_repo(settings.cache_dir, repo) as store:
                known.append(partials_name(store))
        except (FileNotFoundError, CacheRefused):
            continue
    found = stray_journals(settings.home / "partials", known, time.time(), older_than_s)
    for path in found if not dry_run else ():
        with SafeDir.at(path.parent) as state, job_lock(state) as held:
            if held:
                state.unlink(path.name)
    return found


def clean_quarantine(settings: Settings, *, dry_run: bool) -> list[tuple[str, int]]:
    """Take what was set aside; returns names and bytes. Folders, and links out of it, are not entered."""
    try:
        folder = SafeDir.at(settings.home).sub("quarantine")
    except FileNotFoundError:
        return []
    taken = []
    with folder:
        for name in folder.names():
            seen = folder.lstat(name)
            if seen is None or stat.S_ISDIR(seen.st_mode):
                continue
            taken.append((name, seen.st_size))
            if not dry_run:
                folder.unlink(name)
    return taken


def _clean(
    settings: Settings, catalog: Catalog, store: RepoStore, older_than_s: float, *, pinned: bool, dry_run: bool
) -> Cleaned | Skipped:
    with partials_dir(settings, store) as state, job_lock(state) as held:
        if not held:
            return Skipped(store.repo, "it is being fetched right now")
        found = find_leftovers(store, state, catalog, time.time(), older_than_s, keep_blobs=pinned)
        if not dry_run:
            remove_leftovers(store, state, catalog, found)
        return Cleaned(store.repo, found)


def _listed(store: RepoStore, commits: Sequence[CommitId]) -> set[Digest]:
    trees = [store.read_tree(commit) for commit in commits]
    return {entry.digest for tree in trees if tree is not None for entry in tree.files}
