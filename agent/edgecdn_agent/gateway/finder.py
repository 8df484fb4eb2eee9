"""From repo, revision and path to the file that is meant, for one caller: what resolve and ensure begin with."""

from __future__ import annotations

import asyncio

from edgecdn.fileset import harmless
from edgecdn.names import RepoId, Revision
from edgecdn.repopath import RepoPath
from edgecdn_agent.deliver.delivery import Wanted
from edgecdn_agent.gateway.access import Access
from edgecdn_agent.gateway.errors import HubRefusal, Moved, NoAnswer, StillListing
from edgecdn_agent.gateway.listings import Listings

__all__ = ["Finder", "HubRefusal", "Moved", "NoAnswer", "StillListing"]

_FIND_S = 8.5
"""Clients wait 10 s for the answer to a HEAD."""

LISTING_S = 4.0
"""A listing that takes longer goes on without the caller."""


class Finder:
    """Asks whether the caller may see it, and what it is."""

    def __init__(self, access: Access, listings: Listings) -> None:
        self._access = access
        self._listings = listings

    async def find(
        self, repo: RepoId, revision: Revision, path: RepoPath, token: str | None, *, listing_s: float = LISTING_S
    ) -> Wanted:
        """The file, and the token it may be brought with (None: everybody may see it).

        `listing_s`: how long a listing is waited for. Raises HubRefusal (what the hub says to this
        caller; Moved, one of them, where the repo has another name now), StillListing, and NoAnswer.
        """
        try:
            async with asyncio.timeout(max(_FIND_S, listing_s + _FIND_S - LISTING_S)):
                return await self._find(repo, revision, path, token, listing_s)
        except TimeoutError as error:
            raise NoAnswer(f"The hub takes too long to answer for {repo}.") from error

    async def _find(
        self, repo: RepoId, revision: Revision, path: RepoPath, token: str | None, listing_s: float
    ) -> Wanted:
        public = await self._access.check(repo, token, (revision, path))
        own = None if public else token
        commit = await self._listings.commit(repo, revision, own)
        manifest = await self._listings.manifest(repo, commit, own, listing_s)
        entry = manifest.by_path.get(str(path))
        if entry is None:
            raise HubRefusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.hex})
        if self._listings.is_claimed(repo, commit):
            if not harmless((entry,))[0]:
                raise NoAnswer(f"Only the lab vouches for {path} of {repo}, which may hold code.")
            return Wanted(manifest, entry, "", own)  # no page: as `Resolved.provisional`
        branch = self._listings.branches.get(repo, commit)
        return Wanted(manifest, entry, self._listings.page(repo), own, revision=branch)
