"""Which commit a revision is, and what a commit holds. A branch is asked for again after a minute, a commit never."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

import msgspec

from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import BadInput
from edgecdn.manifest import MAX_FILES, FileEntry, Manifest
from edgecdn.names import CommitId, RepoId, Revision
from edgecdn.repopath import RepoPath
from edgecdn.token_owner import token_key
from edgecdn_agent.gateway.answers import next_target
from edgecdn_agent.gateway.branches import Branches
from edgecdn_agent.gateway.errors import Moved, NoAnswer, StillListing
from edgecdn_agent.gateway.hubs import HubAnswer, Question
from edgecdn_agent.gateway.local import Local
from edgecdn_agent.gateway.metadata import Metadata, refusal_of
from edgecdn_agent.gateway.moved import moved_to
from edgecdn_agent.gateway.paths import commits_target, info_target, tree_target
from edgecdn_agent.gateway.single import SingleFlight

__all__ = ["Listings"]

_log = logging.getLogger(__name__)

_MOST_COMMITS = 256
_MOST_FILES = 50_000
"""Files of all listings that are remembered together: some 50 MB at worst; a larger one is kept alone."""

_TRIES = 3
_PAUSE_S = 1.0
"""A page of a long listing that a hub does not answer is asked for again after this."""


class _Lfs(msgspec.Struct):
    oid: str
    size: int


class _Listed(msgspec.Struct):
    type: str
    path: str
    oid: str
    size: int = 0
    lfs: _Lfs | None = None
    xet: str | None = msgspec.field(default=None, name="xetHash")


class _Page(msgspec.Struct):
    sha: str


class _Commit(msgspec.Struct):
    id: str


class Listings:
    """Finds and remembers both. Whether the caller may know is asked before (`Access`)."""

    def __init__(self, metadata: Metadata, local: Local, single: SingleFlight) -> None:
        self.branches = Branches()
        self._metadata = metadata
        self._local = local
        self._single = single
        self._known: OrderedDict[tuple[RepoId, CommitId], Manifest] = OrderedDict()
        self._claimed: set[tuple[RepoId, CommitId]] = set()
        self._files = 0
        self._read: dict[tuple[RepoId, Revision], tuple[HubAnswer, CommitId]] = {}

    def page(self, repo: RepoId) -> str:
        """The repo's page on its hub."""
        return f"{self._metadata.hubs.endpoints[0]}/{repo.url_path}"

    def is_claimed(self, repo: RepoId, commit: CommitId) -> bool:
        """Whether only peers vouch for the listing that `manifest` gave."""
        return (repo, commit) in self._claimed

    async def commit(self, repo: RepoId, revision: Revision, token: str | None) -> CommitId:
        """The commit; as last known when no hub answers. Raises HubRefusal (Moved), NoAnswer."""
        if revision.commit is not None:
            return revision.commit
        question = Question("GET", info_target(repo, revision))
        kept = self._metadata.kept(question, token)
        recent = kept is not None and self._metadata.is_recent(kept)
        here = None if recent else await self._local.ref(repo, revision)
        try:
            reply = await self._metadata.ask(question, token, hurry=here is not None)
        except NoAnswer:
            found = here or await self._local.claimed_commit(repo, revision)
            if found is None:
                raise
            return found
        moved = moved_to(reply.answer, repo)
        if moved is not None:
            raise Moved(reply.answer.status, moved)
        if reply.answer.status != 200:
            raise refusal_of(reply.answer)
        found = await self._commit(repo, revision, reply.answer, here)
        if reply.stale_s is None:
            self.branches.learn(repo, revision, found)
        return found

    async def here(self, repo: RepoId, commit: CommitId) -> Manifest | None:
        """The listing, if it is known without asking."""
        known = self._known.get((repo, commit))
        if known is not None:
            self._known.move_to_end((repo, commit))
            return None if (repo, commit) in self._claimed else known
        found = await self._local.tree(repo, commit)
        if found is not None:
            self._remember(found)
        return found

    async def manifest(self, repo: RepoId, commit: CommitId, token: str | None, limit_s: float) -> Manifest:
        """The listing. `token`: None where everybody may see the repo.

        Raises HubRefusal, NoAnswer; StillListing after `limit_s` seconds: it goes on, for who asks next.
        """
        found = await self.here(repo, commit)
        if found is not None:
            return found
        listing = self._single.once(
            ("listing", repo, commit, token_key(token)), lambda: self._from_hubs(repo, commit, token)
        )
        try:
            async with asyncio.timeout(limit_s):
                return await listing
        except TimeoutError as error:
            raise StillListing(f"The listing of {repo} takes long; it goes on.", limit_s) from error
        except StillListing:
            raise
        except NoAnswer:
            claimed = await self._local.claimed_tree(repo, commit)
            if claimed is None:
                raise
            self._remember(claimed, claimed=True)
            return claimed

    async def _from_hubs(self, repo: RepoId, commit: CommitId, token: str | None) -> Manifest:
        """All pages; a client that asked for the same ones a moment ago had them remembered."""
        target: str | None = tree_target(repo, commit)
        entries: list[FileEntry] = []
        only = ""
        while target is not None:
            answer = await self._ask_page(Question("GET", target, only=only), token)
            if answer.status != 200:
                raise refusal_of(answer)
            only, target = answer.endpoint, next_target(answer)
            try:
                entries += await asyncio.to_thread(_entries, answer.body)
            except (BadInput, msgspec.DecodeError) as error:
                raise NoAnswer(f"The listing of {repo} is refused: {error}") from error
            if len(entries) > MAX_FILES:
                raise NoAnswer(f"The listing of {repo} has too many files.")
        try:
            found = await asyncio.to_thread(Manifest.of, repo, commit, entries)
        except BadInput as error:
            raise NoAnswer(f"The listing of {repo} is refused: {error}") from error
        self._remember(found)
        return found

    async def _ask_page(self, question: Question, token: str | None) -> HubAnswer:
        for attempt in range(1, _TRIES + 1):
            try:
                return (await self._metadata.ask(question, token, for_ever=True)).answer
            except NoAnswer as silent:
                if not question.only or attempt == _TRIES:  # the first page: nothing is lost yet
                    raise
                await asyncio.sleep(min(silent.retry_after_s or _PAUSE_S, 10 * _PAUSE_S))
        raise AssertionError  # pragma: no cover - the loop returns or raises

    async def _commit(self, repo: RepoId, revision: Revision, answer: HubAnswer, here: CommitId | None) -> CommitId:
        """What an answer says, read once however often it is asked for; no mirror turns a branch back from `here`."""
        read = self._read.get((repo, revision))
        if read is not None and read[0] is answer:
            return read[1]
        if len(self._read) >= _MOST_COMMITS:
            self._read.clear()
        commit = _commit(answer)
        is_first = answer.endpoint == self._metadata.hubs.endpoints[0]
        if not is_first and here not in (None, commit) and not await self._knows(answer.endpoint, repo, revision, here):
            _log.info("a mirror is behind what is here repo=%s mirror=%s", repo, answer.endpoint)
            commit = here or commit
        self._read[repo, revision] = answer, commit
        return commit

    async def _knows(self, endpoint: str, repo: RepoId, revision: Revision, commit: CommitId | None) -> bool:
        """Whether a mirror's history of a branch has a commit that is here."""
        question = Question("GET", commits_target(repo, revision), only=endpoint)
        try:
            answer = (await self._metadata.ask(question, None, hurry=True)).answer
            return any(one.id == str(commit) for one in msgspec.json.decode(answer.body, type=list[_Commit]))
        except (NoAnswer, msgspec.DecodeError):
            return False

    def _remember(self, manifest: Manifest, *, claimed: bool = False) -> None:
        key = manifest.repo, manifest.commit
        self._forget(key)
        self._known[key] = manifest
        self._files += len(manifest.files)
        if claimed:
            self._claimed.add(key)
        while len(self._known) > 1 and (len(self._known) > _MOST_COMMITS or self._files > _MOST_FILES):
            self._forget(next(iter(self._known)))

    def _forget(self, key: tuple[RepoId, CommitId]) -> None:
        self._claimed.discard(key)
        known = self._known.pop(key, None)
        if known is not None:
            self._files -= len(known.files)


def _commit(answer: HubAnswer) -> CommitId:
    try:
        return CommitId(msgspec.json.decode(answer.body, type=_Page).sha)
    except (msgspec.DecodeError, BadInput) as error:
        raise NoAnswer(f"{answer.endpoint} names no commit.") from error


def _entries(body: bytes) -> list[FileEntry]:
    return [_entry(item) for item in msgspec.json.decode(body, type=list[_Listed]) if item.type == "file"]


def _entry(item: _Listed) -> FileEntry:
    oid = Digest(DigestKind.GIT_SHA1, item.oid)
    path = RepoPath.parse(item.path)
    if item.lfs is None:
        return FileEntry(path, item.size, oid, oid, item.xet)
    return FileEntry(path, item.lfs.size, Digest(DigestKind.SHA256, item.lfs.oid), oid, item.xet)
