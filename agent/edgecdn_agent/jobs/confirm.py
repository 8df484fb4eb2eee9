"""Listings that only peers vouched for are put to the hubs, once one answers again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from edgecdn.cache.provisional import Provisional
from edgecdn.cache.store import open_repo
from edgecdn.errors import EdgecdnError, Unreachable
from edgecdn.local_fetch import FetchParts, open_pipeline
from edgecdn.manifest import Manifest
from edgecdn.names import CommitId, ModelRef, RepoId, Revision
from edgecdn.settings import Settings

__all__ = ["Pauses", "confirm_listings"]

_log = logging.getLogger(__name__)

_EVERY_S = 600.0
_LONGEST_PAUSE_S = 24 * 3600.0


class Pauses:
    """When each commit is to be asked about again: what hubs do not confirm, less and less often. No I/O."""

    def __init__(self) -> None:
        self._until: dict[tuple[RepoId, CommitId], tuple[float, float]] = {}

    def due(self, pairs: Iterable[tuple[RepoId, CommitId]], now_s: float) -> list[tuple[RepoId, CommitId]]:
        """Those to be asked about now; what is not among `pairs` any more is forgotten."""
        listed = list(pairs)
        self._until = {pair: self._until[pair] for pair in listed if pair in self._until}
        return [pair for pair in listed if self._until.get(pair, (0.0, now_s))[1] <= now_s]

    def refused(self, pair: tuple[RepoId, CommitId], now_s: float) -> None:
        """A hub answered, and does not confirm it: ten minutes, doubling to a day."""
        before_s, _ = self._until.get(pair, (0.0, 0.0))
        pause_s = min(2 * before_s, _LONGEST_PAUSE_S) or _EVERY_S
        self._until[pair] = pause_s, now_s + pause_s


async def confirm_listings(settings: Settings) -> None:
    """Ask every ten minutes (what a hub did not confirm: less often), while there is something to; until cancelled.

    A listing the hub confirms counts from then on. Of one it does not, the user is told: the next
    fetch corrects it, and brings what differs.
    """
    provisional = Provisional(settings.home)
    pauses = Pauses()
    while True:
        for repo, commit in pauses.due(await asyncio.to_thread(provisional.all), time.monotonic()):
            try:
                confirmed = await _is_confirmed(settings, repo, commit)
            except (EdgecdnError, FileNotFoundError) as error:
                _log.info("the listing of %s is still unconfirmed: %s", repo, error)
                if not isinstance(error, Unreachable):  # when a hub is back, it is asked at once
                    pauses.refused((repo, commit), time.monotonic())
                continue
            if confirmed:
                await asyncio.to_thread(provisional.confirm, repo, commit)
                _log.info("a hub confirms the listing of %s at %s", repo, commit.hex[:12])
            else:
                pauses.refused((repo, commit), time.monotonic())
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
