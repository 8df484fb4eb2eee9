"""The files of a revision, with their digests: ModelScope's listing, or one made from what is in the cache."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from edgecdn.errors import BadInput
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import RepoId, RepoType, Revision
from edgecdn.sources.modelscope import LISTING_LIMIT, listed_entries, manifest_of
from edgecdn_agent.gateway.errors import NoAnswer
from edgecdn_agent.gateway.memory import FRESH_S
from edgecdn_agent.gateway.modelscope.access import Refused
from edgecdn_agent.gateway.modelscope.callers import Caller
from edgecdn_agent.gateway.modelscope.envelope import data_of
from edgecdn_agent.gateway.modelscope.local import LocalListings
from edgecdn_agent.gateway.modelscope.metadata import Metadata, Said
from edgecdn_agent.gateway.modelscope.paths import DEFAULT_REVISION, files_target

__all__ = ["Listing", "Listings"]

_PAGE = 200
"""What its SDK asks for too, so that its pages are remembered already."""

_MOST_PAGES = 100
"""20 000 files: reading more for each new file of a data set would be a burden. Beyond, files are passed on."""

_PAGES_GOOD_S = 600.0
"""While the first page stays as it is, the others are not asked for each minute of a long download."""

_MOST_KEPT = 32


@dataclass(frozen=True, slots=True)
class Listing:
    """A revision's files by path.

    `manifest`: None when it cannot be brought into the cache as it is (cut off, or a state that only its
    revision names). `public`: strangers see it. `hub`: whose digests these are, `modelscope` or
    empty for the Hugging Face hubs.
    """

    repo: RepoId
    revision: str
    entries: Mapping[str, FileEntry]
    manifest: Manifest | None
    public: bool
    hub: str


@dataclass(slots=True)
class _Read:
    """Answers, and what they were read as."""

    said: tuple[Said, ...]
    listing: Listing = field(repr=False)

    def is_of(self, said: tuple[Said, ...]) -> bool:
        return [s.answer.body for s in said] == [s.answer.body for s in self.said]


class Listings:
    """Listings of ModelScope as this caller sees them; from the cache where it is silent and nothing is remembered."""

    def __init__(self, metadata: Metadata, local: LocalListings) -> None:
        self._metadata = metadata
        self._local = local
        self._read: OrderedDict[tuple[RepoId, str, bool], _Read] = OrderedDict()

    async def of(self, repo: RepoId, revision: str, caller: Caller) -> Listing:
        """The files of a revision. Raises Refused (what ModelScope says to this caller), and NoAnswer."""
        try:
            said = await self._ask(repo, revision, caller)
        except NoAnswer:
            manifest = await self._local.manifest(repo, revision)
            if manifest is None:
                raise
            return Listing(repo, revision, manifest.by_path, manifest, public=True, hub="")
        key = (repo, revision, said[0].public)
        known = self._read.get(key)
        if known is None or not known.is_of(said):
            listing = await asyncio.to_thread(_read, repo, revision, said)
            known = self._read[key] = _Read(said, listing)
        self._read.move_to_end(key)
        while len(self._read) > _MOST_KEPT:
            self._read.popitem(last=False)
        return known.listing

    async def _ask(self, repo: RepoId, revision: str, caller: Caller) -> tuple[Said, ...]:
        scope = f"{repo.type.plural}/{repo.name}"
        for_ever = Revision(revision).commit is not None
        said: list[Said] = []
        for page in range(1, (_MOST_PAGES if repo.type is RepoType.DATASET else 1) + 1):
            target = files_target(repo, revision, page, _PAGE)
            good_s = _PAGES_GOOD_S if said and self._begins(repo, revision, said[0]) else FRESH_S
            one = await self._metadata.ask(scope, target, caller, for_ever=for_ever, good_s=good_s)
            if not one.answer.found:
                raise Refused(one.answer)
            said.append(one)
            if repo.type is RepoType.MODEL or _count(one.answer.body) < _PAGE:
                break
        return tuple(said)

    def _begins(self, repo: RepoId, revision: str, first: Said) -> bool:
        """Whether a listing begins as it did when it was read."""
        known = self._read.get((repo, revision, first.public))
        return known is not None and known.said[0].answer.body == first.answer.body


@lru_cache(maxsize=128)
def _count(body: bytes) -> int:
    files = data_of(body).get("Files")
    return len(files) if isinstance(files, list) else 0


def _raw_files(said: Said) -> list[Any]:
    files = data_of(said.answer.body).get("Files")
    return files if isinstance(files, list) else []


def _read(repo: RepoId, revision: str, said: tuple[Said, ...]) -> Listing:
    """Read it; what cannot be believed as a whole has no entries, and its files are passed on."""
    public = all(one.public for one in said)
    raw = [item for one in said for item in _raw_files(one)]
    committer = data_of(said[0].answer.body).get("LatestCommitter")
    named = str(committer.get("Id") or "") if isinstance(committer, dict) else ""
    cut = len(raw) >= (LISTING_LIMIT if repo.type is RepoType.MODEL else _MOST_PAGES * _PAGE)
    try:
        entries = listed_entries(raw)
        manifest = manifest_of(repo, named, entries)
    except BadInput:
        return Listing(repo, revision, {}, None, public, "modelscope")
    findable = manifest.commit.hex == named or revision == DEFAULT_REVISION
    kept = manifest if findable and not cut else None
    return Listing(repo, revision, manifest.by_path, kept, public, "modelscope")
