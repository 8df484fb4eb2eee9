"""Bytes of ModelScope for one caller alone, kept nowhere: parts of absent files, and all of repos not for everybody."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from edgecdn.names import CommitId, RepoId
from edgecdn.sources.faults import Broken
from edgecdn.spans import Span
from edgecdn_agent.deliver.delivery import Wanted
from edgecdn_agent.gateway.errors import NoAnswer
from edgecdn_agent.gateway.modelscope.callers import STRANGER
from edgecdn_agent.gateway.modelscope.upstream import Upstream
from edgecdn_agent.gateway.stream import Origin

__all__ = ["ModelScopeRelay"]

_MOST = 1000


class ModelScopeRelay:
    """What is wanted of ModelScope comes from there, as a stranger gets it; everything else from `hubs`."""

    def __init__(self, upstream: Upstream, hubs: Origin) -> None:
        self._upstream = upstream
        self._hubs = hubs
        self._revisions: OrderedDict[tuple[RepoId, CommitId], str] = OrderedDict()

    def learn(self, wanted: Wanted, revision: str) -> None:
        """How its state is named there: not every one has a commit id that could be asked for."""
        if not wanted.hub:
            return
        self._revisions[wanted.manifest.repo, wanted.manifest.commit] = revision
        while len(self._revisions) > _MOST:
            self._revisions.popitem(last=False)

    @asynccontextmanager
    async def open(self, wanted: Wanted, span: Span | None) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of `span` (None: all) of a file. Raises SourceFault, here or while they are read."""
        if wanted.hub != "modelscope":
            async with self._hubs.open(wanted, span) as pieces:
                yield pieces
            return
        manifest, entry = wanted.manifest, wanted.entry
        revision = self._revisions.get((manifest.repo, manifest.commit), manifest.commit.hex)
        asked = span or Span(0, entry.size)
        async with aclosing(self._upstream.read(manifest.repo, revision, entry, asked, STRANGER)) as pieces:
            try:
                yield pieces
            except NoAnswer as error:
                raise Broken("is not asked") from error
