"""The work behind an ensure: find what is meant, have it verified in the agent's cache, place it in the client's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from threading import Event

from edgecdn.cache.store import open_repo
from edgecdn.control import FetchRequest
from edgecdn.errors import AgentNotRunning, BadInput
from edgecdn.fetched import Fetched
from edgecdn.names import CommitId, RepoId, RepoType, Revision
from edgecdn.repopath import RepoPath
from edgecdn_agent.deliver.deliveries import Deliveries
from edgecdn_agent.deliver.delivery import Delivery, DeliveryState, Wanted
from edgecdn_agent.gateway.ensure import Lease
from edgecdn_agent.gateway.finder import Finder
from edgecdn_agent.gateway.held import holding_of
from edgecdn_agent.gateway.placing import has_blob, place_blob, place_snapshot
from edgecdn_agent.holdings.shelf import Holdings
from edgecdn_agent.jobs.book import Jobs

__all__ = ["Placer"]

_LISTING_S = 600.0
"""The client polls, so the listing of a very large repo can be waited for."""

_BEAT_S = 0.2


class Placer:
    """`place` is what `EnsureService` calls. `offline_lan`: the user lets the lab stand for what no hub is asked."""

    def __init__(
        self,
        finder: Finder,
        deliveries: Deliveries,
        holdings: Holdings,
        jobs: Jobs,
        cache_dir: Path,
        *,
        offline_lan: bool = False,
    ) -> None:
        self._finder = finder
        self._deliveries = deliveries
        self._holdings = holdings
        self._jobs = jobs
        self._cache_dir = cache_dir
        self._offline_lan = offline_lan

    async def place(self, lease: Lease) -> None:
        """Have it in the cache the client looks in. Raises what keeps it from there."""
        asked = lease.asked
        cache_dir = Path(asked.cache_dir)
        if not cache_dir.is_absolute():
            raise BadInput("a cache is named by its whole path")
        repo, revision = RepoId(RepoType(asked.type), asked.repo), Revision(asked.revision)
        if not asked.path:
            await self._place_all(lease, repo, revision, cache_dir)
            return
        wanted = await self._finder.find(repo, revision, RepoPath.parse(asked.path), asked.token, listing_s=_LISTING_S)
        entry = wanted.entry
        lease.commit, lease.etag, lease.total_bytes = wanted.manifest.commit.hex, entry.digest.hex, entry.size
        delivery = None
        if holding_of(self._holdings, wanted) is None:
            delivery = await self._deliver(lease, wanted)
        kept_as = RepoId(repo.type, asked.stored_as or asked.repo)
        await self._place_one(lease, wanted, delivery, cache_dir, kept_as)
        lease.done_bytes = entry.size

    async def _deliver(self, lease: Lease, wanted: Wanted) -> Delivery:
        """Until it is verified in our cache. Kept wanted while the lease lives."""
        async with self._deliveries.want(wanted) as delivery:
            while delivery.state is DeliveryState.ARRIVING:
                lease.done_bytes = delivery.done_bytes
                await delivery.changed()
        if delivery.state is DeliveryState.FAILED:
            raise delivery.error or AgentNotRunning(" (it is stopping)")
        return delivery

    async def _place_one(
        self, lease: Lease, wanted: Wanted, delivery: Delivery | None, cache_dir: Path, kept_as: RepoId
    ) -> None:
        entry = wanted.entry

        def place(stop: Event) -> None:
            if has_blob(cache_dir, kept_as, entry.digest):
                return
            holding = holding_of(self._holdings, wanted)
            if holding is not None:
                source = self._holdings.open(holding)
            elif delivery is not None:  # it was brought a moment ago, and is looked at soon
                source = delivery.open()
            else:
                raise FileNotFoundError(f"{entry.path} went away")
            try:
                place_blob(source, cache_dir, kept_as, entry, _counting(lease), stop)
            finally:
                os.close(source)

        await _in_thread(place)

    async def _place_all(self, lease: Lease, repo: RepoId, revision: Revision, cache_dir: Path) -> None:
        """A fetch with no hub asked, of what the lab has."""
        if not self._offline_lan or "/" not in repo.name:  # a name without an owner is a short name to a fetch
            raise BadInput("the lab is not asked for it")
        request = FetchRequest(
            f"{repo.name}@{revision}", repo.type.value, all_formats=lease.asked.all_formats,
            accept_lan_manifest=True, offline=True,
        )  # fmt: skip
        fetched = await self._fetched(lease, request)
        lease.commit = fetched.commit

        def place(stop: Event) -> None:
            if cache_dir.resolve() == self._cache_dir.resolve():
                return
            with open_repo(self._cache_dir, RepoId(repo.type, fetched.repo)) as own:
                manifest = own.read_tree(CommitId(fetched.commit))
                if manifest is None:
                    raise FileNotFoundError(f"the listing of {repo} went away")
                place_snapshot(own, cache_dir, manifest, revision, _counting(lease), stop)

        await _in_thread(place)

    async def _fetched(self, lease: Lease, request: FetchRequest) -> Fetched:
        asker = self._jobs.ask(request)
        try:
            while asker.outcome is None:
                await asker.take(_BEAT_S)
                job = next((job for job in self._jobs.infos() if job.id == asker.job_id), None)
                if job is not None:
                    lease.done_bytes, lease.total_bytes = job.done_bytes, job.total_bytes
        finally:
            self._jobs.leave(asker)
        if asker.outcome.error is not None:
            raise asker.outcome.error
        if asker.outcome.fetched is None:
            raise AgentNotRunning(" (it is stopping)")
        return asker.outcome.fetched


def _counting(lease: Lease) -> Callable[[int], None]:
    def count(done: int) -> None:
        lease.done_bytes = done

    return count


async def _in_thread(work: Callable[[Event], None]) -> None:
    """In a thread that stops soon after we are cancelled."""
    stop = Event()
    async with AsyncExitStack() as left:
        left.callback(stop.set)
        await asyncio.to_thread(work, stop)
