"""How the agent fetches: the library's pipeline, with the lab."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edgecdn.control import FetchRequest
from edgecdn.errors import BadInput
from edgecdn.events import BlobPublished, Event, Kind, Listener
from edgecdn.fileset import FileSet
from edgecdn.local_fetch import FetchParts, open_pipeline
from edgecdn.names import ModelRef, RepoId, RepoType
from edgecdn.pace import Pace
from edgecdn.pipeline import Fetched
from edgecdn.pipeline import Prepared as Work
from edgecdn.settings import Settings
from edgecdn.together import Together
from edgecdn_agent.holdings.sharing import SharingRule
from edgecdn_agent.jobs.book import Prepared
from edgecdn_agent.jobs.peers import JobLab, LabNames

__all__ = ["PipelineRunner"]

_RULE_S = 2.0
"""How long a fetch waits to learn whether its repo may be shared; without the answer it takes by HTTP alone."""


_TELL_S = 1.0


@dataclass(frozen=True, slots=True)
class _Ready(Prepared):
    """A request that was resolved, and what was said meanwhile."""

    work: Work
    notes: tuple[Event, ...]


class PipelineRunner:
    """A `JobRunner`. `lab` is made anew for each fetch.

    `published` is told of a repo that has new blobs, `settle` has peers know of them before it returns.
    `together`: what fetches of this agent share.
    """

    def __init__(
        self,
        settings: Settings,
        lab: Callable[[], JobLab],
        names: LabNames,
        rule: SharingRule,
        wan: Pace,
        published: Callable[[RepoId], None],
        settle: Callable[[], Awaitable[None]],
        together: Together | None = None,
    ) -> None:
        self._settings = settings
        self._lab = lab
        self._names = names
        self._rule = rule
        self._wan = wan
        self._published = published
        self._settle = settle
        self._together = together or Together()

    async def prepare(self, request: FetchRequest) -> Prepared:
        """Find out what a request is of. Raises BadInput for what the command line would not have sent."""
        ref = ModelRef.parse(request.model, RepoType(request.type) if request.type else None)
        files = FileSet(request.include, request.exclude, request.all_formats)
        notes: list[Event] = []
        async with open_pipeline(self._settings_for(request), self._parts(request, notes.append)) as pipeline:
            work = await pipeline.prepare(ref, files)
        manifest = work.resolved.manifest
        key = (*work.key, request.local_dir, request.kinds, request.hub, request.offline)
        return _Ready(key, f"{manifest.repo}@{manifest.commit.hex[:12]}", work, tuple(notes))

    async def run(self, request: FetchRequest, prepared: Prepared, listener: Listener) -> Fetched:
        """Fetch it."""
        assert isinstance(prepared, _Ready)
        for note in prepared.notes:
            listener(note)
        repo = prepared.work.resolved.manifest.repo
        if not request.offline and not self._rule.allows(repo):
            with suppress(TimeoutError):
                async with asyncio.timeout(_RULE_S):
                    await self._rule.refresh(repo)

        def heard(event: Event) -> None:
            if isinstance(event, BlobPublished):
                self._published(repo)
            listener(event)

        local_dir = None if request.local_dir is None else Path(request.local_dir)
        async with open_pipeline(self._settings_for(request), self._parts(request, heard)) as pipeline:
            fetched = await pipeline.bring(prepared.work, local_dir)
        await self._settle()  # who is told that it is here can tell others to get it from here
        return fetched

    def _settings_for(self, request: FetchRequest) -> Settings:
        return replace(self._settings, offline=True) if request.offline else self._settings

    def _parts(self, request: FetchRequest, listener: Listener) -> FetchParts:
        if request.cache_dir not in (None, str(self._settings.cache_dir)):
            raise BadInput(f"this agent keeps its files in {self._settings.cache_dir}, not in {request.cache_dir}")
        try:
            kinds = frozenset(Kind) if request.kinds is None else frozenset({Kind.CACHE, *map(Kind, request.kinds)})
        except ValueError as error:
            raise BadInput(f"there is no such kind of source ({error})") from error
        return FetchParts(
            listener=listener,
            kinds=kinds,
            hub=request.hub,
            lab=self._lab(),
            lab_index=self._names if Kind.LAN in kinds else None,
            accept_lab=request.accept_lan_manifest,
            wan=self._wan,
            together=self._together,
        )
