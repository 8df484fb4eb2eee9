"""What this machine's cache and the lab know of a repo: for when no hub answers, and of commits, which never change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from edgecdn.cache.provisional import Provisional
from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.errors import EdgecdnError
from edgecdn.manifest import Manifest
from edgecdn.names import CommitId, RepoId, Revision
from edgecdn.resolve import LabIndex
from edgecdn.settings import Settings

__all__ = ["Local"]

_T = TypeVar("_T")
_LAB_S = 4.0
"""Peers that take longer to say what they have are done without."""


class Local:
    """Reads trees and refs, in threads. `accept_lab`: the user takes the lab's word while no hub answers."""

    def __init__(self, settings: Settings, lab: LabIndex | None = None, *, accept_lab: bool = False) -> None:
        self._settings = settings
        self._lab = lab if accept_lab else None

    async def tree(self, repo: RepoId, commit: CommitId) -> Manifest | None:
        """The listing of a commit that a hub once gave."""

        def read(store: RepoStore) -> Manifest | None:
            found = store.read_tree(commit)  # before the list of claims: a tree is written after its entry there
            return None if commit in self._claimed(repo) else found

        return await self._read(repo, read)

    async def ref(self, repo: RepoId, revision: Revision) -> CommitId | None:
        """Where a branch or tag was last seen; not where only peers say it is, unless their word is taken."""

        def read(store: RepoStore) -> CommitId | None:
            commit = revision.commit or store.read_ref(revision)
            known = commit is not None and store.read_tree(commit) is not None
            claimed = self._lab is None and commit in self._claimed(repo)
            return commit if known and not claimed else None

        return await self._read(repo, read)

    async def refs(self, repo: RepoId) -> Mapping[str, CommitId]:
        """All branches and tags known here."""
        return await self._read(repo, RepoStore.refs) or {}

    async def vouched(self, repo: RepoId) -> bool:
        """Whether all that is here of a repo (nothing, too) came by the lab's word alone, which the user takes."""
        if self._lab is None:
            return False

        def read(store: RepoStore) -> bool:
            return set(store.commits()) <= self._claimed(repo)

        return await self._read(repo, read) is not False

    async def claimed_commit(self, repo: RepoId, revision: Revision) -> CommitId | None:
        """What most peers say a revision stands for."""
        if self._lab is None:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAB_S):
                claims = await self._lab.claims(repo, revision)
                return max(claims, key=lambda claim: len(claim.peers)).commit if claims else None
        return None

    async def claimed_tree(self, repo: RepoId, commit: CommitId) -> Manifest | None:
        """The listing that only peers vouch for: kept as such, before anything of it is."""
        if self._lab is None:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAB_S):
                kept = await self._read(repo, lambda store: store.read_tree(commit))
                manifest = kept or await self._lab.manifest(repo, commit)
                if manifest is not None and kept is None:
                    await asyncio.to_thread(Provisional(self._settings.home).add, repo, commit)
                return manifest
        return None

    def _claimed(self, repo: RepoId) -> frozenset[CommitId]:
        return frozenset(commit for of, commit in Provisional(self._settings.home).all() if of == repo)

    async def _read(self, repo: RepoId, read: Callable[[RepoStore], _T]) -> _T | None:
        """None when there is no such repo here, or it cannot be read."""

        def look() -> _T | None:
            try:
                with open_repo(self._settings.cache_dir, repo) as store:
                    return read(store)
            except (OSError, EdgecdnError):
                return None

        return await asyncio.to_thread(look)
