"""Bringing one wanted file: the library's pipeline with the lab, in the name of those who want it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from edgecdn.cache.store import open_repo
from edgecdn.errors import AccessDenied, FileMissing
from edgecdn.events import BlobPublished, Event, Listener
from edgecdn.lately import Lately
from edgecdn.local_fetch import FetchParts, caller_client, open_pipeline
from edgecdn.names import RepoId, Revision
from edgecdn.pace import Pace
from edgecdn.pipeline import Prepared
from edgecdn.resolve import Resolved
from edgecdn.settings import Settings
from edgecdn.together import Together
from edgecdn.transfer.incoming import Pools
from edgecdn_agent.deliver.clients import Clients
from edgecdn_agent.deliver.delivery import Wanted
from edgecdn_agent.holdings.sharing import SharingRule
from edgecdn_agent.jobs.peers import JobLab

__all__ = ["Bringer"]

_RULE_S = 2.0
"""How long a file waits to learn whether its repo is everybody's; else it comes in the caller's name, without swarm."""

_RULE_AGAIN_S = 60.0
"""A repo that is not everybody's is asked for again after this (seconds), not for each of its files."""

_LEAST_CONNECTIONS = 2
"""To each hub, for each of many files at a time."""


class Bringer:
    """Brings files. `lab` is made anew for each, `published` is told of a repo that has new blobs."""

    def __init__(
        self,
        settings: Settings,
        lab: Callable[[], JobLab],
        rule: SharingRule,
        wan: Pace,
        published: Callable[[RepoId], None],
        together: Together,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._lab = lab
        self._rule = rule
        self._wan = wan
        self._published = published
        self._together = together
        self._clients = Clients(lambda token, hub: caller_client(settings, token, hub))
        self._pools: Pools | None = None
        self._asked: Lately[bool] = Lately(_RULE_AGAIN_S, clock)
        self._asking = asyncio.Lock()
        self._active = 0

    async def run(self) -> None:
        """Hold what deliveries share, until cancelled; they must have ended by then."""
        self._pools = Pools.start()
        try:
            await self._clients.keep()
        finally:
            pools, self._pools = self._pools, None
            await asyncio.to_thread(pools.stop)

    async def bring(self, wanted: Wanted, tokens: Sequence[str], listener: Listener) -> None:
        """Have it verified and linked in the cache. `tokens`: of those who want it, tried where one is needed.

        It may grow meanwhile. Raises any EdgecdnError.
        """
        repo = wanted.manifest.repo
        public = await self._is_public(repo)
        used = -1 if public or not tokens else 0
        while True:
            try:
                return await self._bring(wanted, tokens[used] if used >= 0 else None, listener)
            except (AccessDenied, FileMissing):  # who may not see a repo is told that there is none
                if used < 0:  # what was known of the repo is not true any more
                    self._rule.learn(repo, again=True)
                used += 1
                if used >= len(tokens):
                    raise

    async def _bring(self, wanted: Wanted, token: str | None, listener: Listener) -> None:
        manifest = wanted.manifest

        def heard(event: Event) -> None:
            if isinstance(event, BlobPublished):
                self._published(manifest.repo)
            listener(event)

        revision, ref = Revision(manifest.commit.hex), await asyncio.to_thread(self._new_ref, wanted)
        resolved = Resolved(manifest, revision, ref, wanted.page, provisional=not wanted.page)
        with self._counted(), self._clients.use(token, wanted.hub) as client:
            parts = FetchParts(
                listener=heard,
                hub=wanted.hub,
                lab=self._lab(),
                wan=self._wan,
                together=self._together,
                pools=self._pools,
                client=client,
                connections=max(_LEAST_CONNECTIONS, self._settings.fetch_connections // self._active),
                urgent=True,
            )
            async with open_pipeline(self._settings, parts) as pipeline:
                await pipeline.bring(Prepared(resolved, (wanted.entry,)))

    def _new_ref(self, wanted: Wanted) -> Revision | None:
        """The branch it was asked by, where none is known here yet: what offline users and peers then find it by.

        One that is known stays: its snapshot may be whole, and this one has few files so far. Blocks.
        """
        if wanted.revision is None:
            return None
        try:
            with open_repo(self._settings.cache_dir, wanted.manifest.repo) as store:
                known = store.read_ref(wanted.revision)
        except FileNotFoundError:
            known = None
        return None if known is not None else wanted.revision

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1

    async def _is_public(self, repo: RepoId) -> bool:
        """Whether everybody may have it, asked now if that is not known: it decides about the swarm too."""
        if not self._rule.is_public(repo):
            with suppress(TimeoutError):
                async with asyncio.timeout(_RULE_S), self._asking:
                    if not self._asked.get(repo):
                        self._asked.put(repo, True)
                        await self._rule.refresh(repo)
        return self._rule.is_public(repo) is True
