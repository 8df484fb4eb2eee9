"""From what the user typed to a manifest: name, repo, revision, commit, listing.

The first hub that answers is believed. A commit is never asked for twice: a listing that is in the
cache is used. When no hub answers, what this machine last saw under the name is used, and said so.

A resolver may run where many others do: the disk is only read in threads.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from edgecdn.cache.provisional import Provisional
from edgecdn.cache.scan import cached_repos
from edgecdn.cache.store import open_repo
from edgecdn.digest import DigestKind
from edgecdn.errors import (
    AmbiguousName,
    EdgecdnError,
    FileMissing,
    RepoMissing,
    RevisionMissing,
    Unreachable,
)
from edgecdn.local_names import find_repo
from edgecdn.manifest import Manifest
from edgecdn.names import CommitId, ModelRef, RepoId, RepoType, Revision
from edgecdn.plan.backoff import backoff_s
from edgecdn.settings import DEFAULT_ENDPOINT, Settings
from edgecdn.shortnames import lookup, nearest, shipped_names
from edgecdn.sources.faults import Broken, Busy, SourceFault

__all__ = ["Claim", "Index", "LabIndex", "Resolved", "Resolver"]

_LISTED = 5
"""Most names listed in a message."""

_ROUNDS = 3
"""How often all hubs are asked before the network is taken for down."""

_HURRY_S = 10.0
"""How long a hub may stay silent where there is another way: what was seen here before, or the lab."""

_LONGEST_WAIT_S = 60.0
"""A pause a hub asks for is kept up to this long while resolving."""


class Head(Protocol):
    """What an index says of a revision."""

    @property
    def commit(self) -> CommitId: ...


class Index(Protocol):
    """A hub's metadata; implemented by `HubApi` and `ModelScopeApi`."""

    @property
    def name(self) -> str: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def owns_refs(self) -> bool: ...
    async def head(self, repo: RepoId, revision: Revision | None) -> Head: ...
    async def manifest(self, repo: RepoId, commit: CommitId) -> Manifest: ...
    async def search(self, text: str, repo_type: RepoType, limit: int = 10) -> list[str]: ...
    async def revisions(self, repo: RepoId) -> list[str]: ...
    async def commits(self, repo: RepoId, revision: Revision | None) -> list[CommitId]: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """What peers say a revision stands for, and which of them say so."""

    commit: CommitId
    peers: tuple[str, ...]


class LabIndex(Protocol):
    """What the lab says of names, for when no hub answers. Claims: nobody can check them before a hub is back."""

    async def claims(self, repo: RepoId, revision: Revision) -> Sequence[Claim]: ...
    async def manifest(self, repo: RepoId, commit: CommitId) -> Manifest | None: ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """A commit and all its files. `ref` is the branch or tag to move when the fetch is complete (None: none).

    `provisional`: only peers say so.
    """

    manifest: Manifest
    revision: Revision
    ref: Revision | None
    page: str
    provisional: bool = False


@dataclass(frozen=True, slots=True)
class _Local:
    """What this machine knows of a revision.

    `typed`: the listing of the commit the user typed. `commit`, `seen`: where the branch or tag was last
    seen, and the listing of that. `claimed`: commits of the repo that only peers vouch for.
    """

    typed: Manifest | None
    commit: CommitId | None
    seen: Manifest | None
    claimed: frozenset[CommitId]

    def is_a_hubs(self) -> bool:
        """Whether the branch came from a hub with commits of its own: then its listing has git ids."""
        if self.commit is None or self.seen is None:
            return self.commit is not None
        return any(e.digest.kind is DigestKind.GIT_SHA1 for e in self.seen.files)


@dataclass(slots=True)
class Resolver:
    """Resolves names. `hubs` in the user's order; `lab` is asked when none of them answers.

    `accept_lab`: the user takes the lab's word for what a name stands for.
    """

    settings: Settings
    hubs: Sequence[Index]
    lab: LabIndex | None = None
    accept_lab: bool = False
    notes: list[str] = field(default_factory=list)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def resolve(self, ref: ModelRef) -> Resolved:
        """Find the commit and its listing.

        Raises RepoMissing, RevisionMissing, AmbiguousName, AccessDenied, ManifestRefused, Unreachable.
        """
        repo = await asyncio.to_thread(self._known_name, ref)
        if repo is not None:
            try:
                return await self._resolve_repo(repo, ref.revision)
            except RepoMissing as missing:
                if ref.is_full:
                    raise
                told = f" '{ref.name}' stands for it.{missing.fields['nearest']}"
                raise RepoMissing(**{**missing.fields, "nearest": told}) from missing  # type: ignore[arg-type]  # as made
        literal = ref.repo()
        try:
            return await self._resolve_repo(literal, ref.revision)
        except RepoMissing as missing:
            if ref.is_full:
                raise
            found = await self._search(ref, missing)
            return await self._resolve_repo(found, ref.revision)

    def _known_name(self, ref: ModelRef) -> RepoId | None:
        """1. Typed in full. 2. The user's or the shipped short names. 3. What is in the cache. Blocks."""
        if ref.is_full:
            return ref.repo()
        found = lookup(ref.name, ref.type, self.settings.aliases)
        if found is not None:
            return RepoId(*found)
        try:
            return find_repo(ref, self.settings)
        except FileMissing:
            return None

    async def _search(self, ref: ModelRef, missing: RepoMissing) -> RepoId:
        """4. The hub's search: one repo of just that name is taken, several are listed, else the nearest."""
        repo_type = ref.type or RepoType.MODEL
        found: list[str] = []
        for hub in self.hubs:
            found = await _similar(hub, ref.repo())
            if found:
                break
        same = [name for name in found if name.lower().rpartition("/")[2] == ref.name.lower()]
        if len(same) == 1:
            self.notes.append(f"'{ref.name}' is {same[0]}, says the hub's search.")
            return RepoId(repo_type, same[0])
        if same:
            raise AmbiguousName(name=ref.name, candidates=", ".join(same))
        near = nearest(ref.name, [*shipped_names()[RepoType.MODEL], *self.settings.aliases, *found]) or found[:_LISTED]
        raise _with_nearest(missing, near) from missing

    async def _resolve_repo(self, repo: RepoId, revision: Revision | None) -> Resolved:
        shown = revision or Revision("main")
        local = await asyncio.to_thread(self._local_state, repo, shown)
        typed = local.typed
        if typed is not None and typed.commit not in local.claimed:
            return Resolved(typed, shown, None, self._page(self.hubs[0], repo))
        hurried = typed is not None or self.lab is not None or local.seen is not None
        try:
            return await self._ask_hubs(repo, revision, local, hurried=hurried)
        except Unreachable as unreachable:
            if typed is not None:
                return Resolved(typed, shown, None, "", provisional=True)
            found = self._last_seen(local, shown) or await self._ask_lab(repo, shown, unreachable)
            if found is not None:
                return found
            if not unreachable.fields.get("hurried"):
                raise
        return await self._ask_hubs(repo, revision, local)  # there is no other way: patiently

    def _local_state(self, repo: RepoId, revision: Revision) -> _Local:
        """All that is known here; blocks."""
        with suppress(FileNotFoundError), open_repo(self.settings.cache_dir, repo) as store:
            typed = store.read_tree(revision.commit) if revision.commit else None
            commit = store.read_ref(revision)
            seen = store.read_tree(commit) if commit else None
            return _Local(typed, commit, seen, self._claimed(repo))
        return _Local(None, None, None, frozenset())

    def _kept(self, repo: RepoId, commit: CommitId) -> tuple[Manifest | None, bool]:
        """The listing that is here now, and whether only peers vouch for it; blocks."""
        with suppress(FileNotFoundError), open_repo(self.settings.cache_dir, repo) as store:
            return store.read_tree(commit), commit in self._claimed(repo)
        return None, False

    def _claimed(self, repo: RepoId) -> frozenset[CommitId]:
        """Read after a tree, never before: a tree is written after its entry here."""
        return frozenset(commit for of, commit in Provisional(self.settings.home).all() if of == repo)

    async def _ask_hubs(
        self, repo: RepoId, revision: Revision | None, local: _Local, *, hurried: bool = False
    ) -> Resolved:
        """The first answer. `hurried`: a hub that is silent is not asked again; the error then says so in a field."""
        if self.settings.offline:
            quiet = "; ".join(f"{hub.name} is not asked (HF_HUB_OFFLINE is set)" for hub in self.hubs)
            raise Unreachable(quiet, hint="Unset HF_HUB_OFFLINE to ask the hubs.")
        said: dict[str, str] = {}
        silent = False
        for attempt in range(_ROUNDS):
            told_s: float | None = None
            for position, hub in enumerate(self.hubs):
                try:
                    head = await self._head(hub, repo, revision, _HURRY_S if hurried else None)
                    return await self._ask_hub(hub, repo, revision, head.commit, local, first=position == 0)
                except SourceFault as fault:
                    said[hub.name] = str(fault)
                    silent = silent or isinstance(fault, _Silent)
                    if isinstance(fault, Busy) and fault.retry_after_s is not None:
                        told_s = max(told_s or 0.0, fault.retry_after_s)
            if silent or attempt + 1 == _ROUNDS or (told_s or 0.0) > _LONGEST_WAIT_S:
                break
            await self.sleep(backoff_s(attempt + 1, random.random(), told_s))
        raise Unreachable("; ".join(f"{name} {why}" for name, why in said.items()), hurried=silent)

    async def _head(self, hub: Index, repo: RepoId, revision: Revision | None, limit_s: float | None) -> Head:
        try:
            async with asyncio.timeout(limit_s):
                return await hub.head(repo, revision)
        except TimeoutError as error:
            raise _Silent(f"does not answer for {limit_s:.0f} s") from error
        except RevisionMissing as missing:
            existing = await hub.revisions(repo)
            raise _with_nearest(missing, nearest(str(revision), existing) or existing[:_LISTED]) from missing
        except RepoMissing as missing:
            shipped = shipped_names().get(repo.type, {}).values() if hub.endpoint == DEFAULT_ENDPOINT else ()
            cached = await asyncio.to_thread(cached_repos, self.settings.cache_dir)
            here = [found.name for found in cached if found.type is repo.type]
            near = nearest(
                repo.name, [name for name in (*await _similar(hub, repo), *here, *shipped) if name != repo.name]
            )
            raise _with_nearest(missing, near) from missing

    async def _ask_hub(
        self,
        hub: Index,
        repo: RepoId,
        revision: Revision | None,
        told: CommitId,
        local: _Local,
        *,
        first: bool,
    ) -> Resolved:
        ref = None if revision and revision.commit else revision or Revision("main")
        stale = False
        if ref is not None and local.commit not in local.claimed:  # any hub's word counts more than a claim
            if not hub.owns_refs:
                stale = local.is_a_hubs()
            elif not first:
                stale = await _is_behind(hub, repo, ref, told, local.commit)
                if stale and local.seen is not None:
                    self.notes.append(f"{hub.name} is behind what is here; using the commit of {ref} last seen here.")
                    return Resolved(local.seen, ref, None, self._page(hub, repo))
        manifest = await self._manifest(hub, repo, told)
        if stale:
            self.notes.append(f"{hub.name} has another {ref} than the one here; {ref} here stays as it is.")
        return Resolved(manifest, revision or Revision("main"), None if stale else ref, self._page(hub, repo))

    async def _manifest(self, hub: Index, repo: RepoId, commit: CommitId) -> Manifest:
        """The listing that is here, unless only peers vouch for it: then the hub's."""
        known, is_claimed = await asyncio.to_thread(self._kept, repo, commit)
        if known is not None and not is_claimed:
            return known
        told = await hub.manifest(repo, commit)
        if known is not None:
            same = {e.path: e.digest for e in known.files} == {e.path: e.digest for e in told.files}
            said = "confirms" if same else "does not confirm"
            done = "" if same else "; the hub's counts, and what differs is fetched"
            self.notes.append(f"{hub.name} {said} the listing of {commit.hex[:12]} that came from the lab{done}.")
        return told

    async def _ask_lab(self, repo: RepoId, revision: Revision, unreachable: Unreachable) -> Resolved | None:
        """No hub answers and nothing is known here: what peers claim, if the user takes it."""
        claims = await self.lab.claims(repo, revision) if self.lab is not None else ()
        if not claims or self.lab is None:
            return None
        best = max(claims, key=lambda claim: len(claim.peers))
        who = ", ".join(best.peers[:_LISTED])
        if not self.accept_lab:
            have = "has" if len(best.peers) == 1 else "have"
            detail = f"{unreachable.fields['detail']}; {who} of the lab {have} {repo.name} at {best.commit.hex[:12]}"
            raise Unreachable(
                f"{detail}, which only a hub could confirm",
                hint="To take the lab's word for it (safetensors and text files only), add --accept-lan-manifest.",
            )
        manifest = await self.lab.manifest(repo, best.commit)
        if manifest is None:
            return None
        if len(claims) > 1:
            self.notes.append(f"Peers differ on {revision}; most say {best.commit.hex[:12]}.")
        self.notes.append(f"No hub answers; the word of {who} is taken for {revision} of {repo.name}, until one does.")
        ref = None if revision.commit else revision
        return Resolved(manifest, revision, ref, "", provisional=True)

    def _last_seen(self, local: _Local, revision: Revision) -> Resolved | None:
        manifest = local.seen
        if manifest is None:
            return None
        why = "HF_HUB_OFFLINE is set" if self.settings.offline else "No hub answers"
        seen = f"the commit of {revision} that was last seen here ({manifest.commit.hex[:12]})"
        self.notes.append(f"{why}; using {seen}.")
        return Resolved(manifest, revision, None, "", provisional=manifest.commit in local.claimed)

    @staticmethod
    def _page(hub: Index, repo: RepoId) -> str:
        return f"{hub.endpoint}/{repo.url_path}"


class _Silent(Broken):
    """A hub that could not be waited for any longer."""


async def _is_behind(hub: Index, repo: RepoId, ref: Revision, commit: CommitId, ours: CommitId | None) -> bool:
    """Whether a stand-in for the first hub would turn a branch back: its history lacks our commit."""
    if ours is None or ours == commit:
        return False
    try:
        return ours not in await hub.commits(repo, ref)
    except (SourceFault, EdgecdnError):
        return True


async def _similar(hub: Index, repo: RepoId) -> list[str]:
    """What the hub finds for the name, and, hubs' search being literal, for its first half."""
    base = repo.name.rpartition("/")[2]
    found = await asyncio.gather(*(hub.search(text, repo.type) for text in (base, base[: max(3, len(base) // 2)])))
    return [name for names in found for name in names]


def _with_nearest(missing: EdgecdnError, names: Sequence[str]) -> EdgecdnError:
    fields: Mapping[str, object] = missing.fields
    told = f" Did you mean {', '.join(names)}?" if names else ""
    return type(missing)(**{**fields, "nearest": told})  # type: ignore[arg-type]  # the same fields it was made with
