"""Listings that only peers vouched for are put to the hubs, once one answers again."""

from __future__ import annotations

import asyncio
import logging

from edgecdn.cache.provisional import Provisional
from edgecdn.cache.store import open_repo
from edgecdn.errors import EdgecdnError, Unreachable
from edgecdn.local_fetch import FetchParts, open_pipeline
from edgecdn.manifest import Manifest
from edgecdn.names import CommitId, ModelRef, RepoId, Revision
from edgecdn.settings import Settings

__all__ = ["confirm_listings"]

_log = logging.getLogger(__name__)

_EVERY_S = 600.0


async def confirm_listings(settings: Settings) -> None:
    """Ask every ten minutes, while there is something to ask; until cancelled.

    A listing the hub confirms counts from then on. Of one it does not, the user is told: the next
    fetch corrects it, and brings what differs.
    """
    provisional = Provisional(settings.home)
    while True:
        for repo, commit in await asyncio.to_thread(provisional.all):
            try:
                confirmed = await _is_confirmed(settings, repo, commit)
            except (EdgecdnError, FileNotFoundError) as error:
                _log.info("the listing of %s is still unconfirmed: %s", repo, error)
                continue
            if confirmed:
                await asyncio.to_thread(provisional.confirm, repo, commit)
                _log.info("a hub confirms the listing of %s at %s", repo, commit.hex[:12])
            else:
                _log.warning(
                    "a hub has other files for %s at %s than peers said: fetch it again", repo, commit.hex[:12]
                )
        await asyncio.sleep(_EVERY_S)


async def _is_confirmed(settings: Settings, repo: RepoId, commit: CommitId) -> bool:
    async with open_pipeline(settings, FetchParts()) as pipeline:
        told = await pipeline.resolver.resolve(ModelRef(repo.name, repo.type, Revision(commit.hex)))
    if told.provisional:
        raise Unreachable("no hub answers")
    known = await asyncio.to_thread(_listing, settings, repo, commit)
    return known is not None and {e.path: e.digest for e in known.files} == {
        e.path: e.digest for e in told.manifest.files
    }


def _listing(settings: Settings, repo: RepoId, commit: CommitId) -> Manifest | None:
    with open_repo(settings.cache_dir, repo) as store:
        return store.read_tree(commit)
