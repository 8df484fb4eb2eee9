"""A hub's metadata: names, commits, listings, through huggingface_hub.

Its calls block and some have no time limit of their own, so each runs in a thread of its own that
nobody has to wait for, and every wait has a limit. Its errors are translated here, once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status, http_backoff

from edgecdn import errors
from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import BadInput
from edgecdn.manifest import MAX_FILES, FileEntry, Manifest
from edgecdn.names import CommitId, RepoId, RepoType, Revision
from edgecdn.repopath import RepoPath
from edgecdn.sources.answers import retry_after_s
from edgecdn.sources.faults import Broken, Busy, SourceFault
from edgecdn.sources.http import Credentials
from edgecdn.sources.hub_client import HUB_TIMEOUT, next_page
from edgecdn.sources.own_thread import in_own_thread

__all__ = ["HubApi", "HubHead", "user_token"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_ANSWER_S = 15.0
"""A single question is answered within this, or the endpoint counts as not answering (seconds)."""

_LISTING_IDLE_S = 40.0
"""A listing in pages may pause this long (the client's own back-off sums to 23 s)."""

_SEARCH_S = 8.0
_LISTING_BATCH = 500


@dataclass(frozen=True, slots=True)
class HubHead:
    """What a hub says of a revision."""

    commit: CommitId


def user_token() -> str | None:
    """The user's own token, where huggingface_hub keeps it (HF_TOKEN, `hf auth login`)."""
    return get_token()


class HubApi:
    """One endpoint's metadata. `credentials` are used only where they belong."""

    owns_refs = True

    def __init__(self, endpoint: str, credentials: Credentials | None) -> None:
        self.endpoint = endpoint
        self.name = endpoint.partition("://")[2]
        own = credentials is not None and credentials.endpoint == endpoint
        self._token: str | bool = credentials.token if credentials is not None and own else False
        self._api = HfApi(endpoint=endpoint, token=self._token)

    async def head(self, repo: RepoId, revision: Revision | None) -> HubHead:
        """Resolve a branch, tag or commit (None: the default branch).

        Raises RepoMissing, RevisionMissing, AccessDenied, or Broken when it gives no usable answer.
        """
        ask = functools.partial(
            self._api.repo_info,
            repo.name,
            repo_type=repo.type.value,
            revision=str(revision) if revision else None,
            timeout=_ANSWER_S,
        )
        info: Any = await self._ask(ask, repo, revision, _ANSWER_S)
        try:
            commit = CommitId(str(info.sha))
        except BadInput as error:
            raise Broken("names no commit for it") from error
        return HubHead(commit)

    async def manifest(self, repo: RepoId, commit: CommitId) -> Manifest:
        """The complete listing of a commit; raises as `head`, and ManifestRefused for a hostile one."""
        listing = await self._ask_pages(lambda: self._tree(repo, commit), repo, Revision(commit.hex))
        try:
            return Manifest.of(repo, commit, (_entry(file) for file in listing))
        except BadInput as error:
            raise errors.ManifestRefused(str(error).rstrip("."), name=repo, where=self.name) from error

    def _tree(self, repo: RepoId, commit: CommitId) -> Iterator[RepoFile]:
        """The files of a commit, page by page, with huggingface_hub's requests and retries.

        Its own `list_repo_tree` has no time limit and follows `Link: rel="next"` to any host, with the token.
        """
        url: str | None = f"{self.endpoint}/api/{repo.type.plural}/{repo.name}/tree/{commit}?recursive=true"
        headers = build_hf_headers(token=self._token)
        while url is not None:
            response = http_backoff("GET", url, headers=headers, timeout=HUB_TIMEOUT)
            hf_raise_for_status(response)
            for item in response.json():
                if item["type"] == "file":
                    yield RepoFile(**item)  # type: ignore[no-untyped-call]  # the library's parser of an entry
            url = next_page(response)

    async def search(self, text: str, repo_type: RepoType, limit: int = 10) -> list[str]:
        """Names of repos like `text`, most downloaded first; empty when the hub does not say."""
        lister = self._api.list_datasets if repo_type is RepoType.DATASET else self._api.list_models

        def ask() -> list[str]:
            return [str(found.id) for found in lister(search=text, limit=limit, token=False)]

        try:
            return await in_own_thread(ask, _SEARCH_S)
        except Exception as error:  # noqa: BLE001 - a courtesy: whatever goes wrong, there is no suggestion
            _log.info("%s gives no suggestions: %s", self.name, _first_line(error))
            return []

    async def revisions(self, repo: RepoId) -> list[str]:
        """Branches and tags, for suggestions; empty when the hub does not say."""

        def ask() -> list[str]:
            refs = self._api.list_repo_refs(repo.name, repo_type=repo.type.value)
            return [ref.name for ref in (*refs.branches, *refs.tags)]

        try:
            return await in_own_thread(ask, _SEARCH_S)
        except Exception as error:  # noqa: BLE001 - a courtesy: whatever goes wrong, there is no suggestion
            _log.info("%s gives no suggestions: %s", self.name, _first_line(error))
            return []

    async def commits(self, repo: RepoId, revision: Revision | None) -> list[CommitId]:
        """The newest commits of a branch, newest first; raises as `head`."""

        def ask() -> list[CommitId]:
            found = self._api.list_repo_commits(
                repo.name, repo_type=repo.type.value, revision=str(revision) if revision else None
            )
            return [CommitId(c.commit_id) for c in found]

        return await self._ask(ask, repo, revision, _LISTING_IDLE_S)

    async def _ask(self, call: Callable[[], _T], repo: RepoId, revision: Revision | None, limit_s: float) -> _T:
        try:
            return await in_own_thread(call, limit_s)
        except Exception as error:
            raise self._translate(error, repo, revision) from error

    async def _ask_pages(
        self, pages: Callable[[], Iterator[RepoFile]], repo: RepoId, revision: Revision
    ) -> list[RepoFile]:
        collected: list[RepoFile] = []
        iterator: list[Iterator[RepoFile]] = []

        def next_batch() -> bool:
            if not iterator:
                iterator.append(pages())
            for _, file in zip(range(_LISTING_BATCH), iterator[0], strict=False):
                collected.append(file)
            return len(collected) % _LISTING_BATCH == 0 and bool(collected)

        while True:
            before = len(collected)
            more = await self._ask(next_batch, repo, revision, _LISTING_IDLE_S)
            if not more or len(collected) == before:
                return collected
            if len(collected) > MAX_FILES:
                raise errors.ManifestRefused("it has too many files", name=repo, where=self.name)

    def _translate(self, error: Exception, repo: RepoId, revision: Revision | None) -> Exception:  # noqa: PLR0911 - a table
        """A client's exception as ours; see the table in `docs/protocol.md`."""
        if isinstance(error, GatedRepoError):
            page = f"{self.endpoint}/{repo.url_path}"
            return errors.GatedRepo(name=repo, page=page, where=self.name, reason="")
        if isinstance(error, RevisionNotFoundError):
            return errors.RevisionMissing(name=repo, revision=revision or "main", nearest="")
        if isinstance(error, (RepositoryNotFoundError, HFValidationError)):
            return errors.RepoMissing(type=repo.type.value, name=repo.name, where=self.name, nearest="")
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code if error.response is not None else 0
            if status in (408, 425, 429, 503):
                headers = error.response.headers
                return Busy(f"is busy (HTTP {status})", retry_after_s(headers, datetime.now(tz=UTC)))
            if status in (401, 403):
                reason = f" ({error.server_message})" if getattr(error, "server_message", None) else ""
                return errors.AccessDenied(where=self.name, name=repo, reason=reason)
            return Broken(f"answers HTTP {status}")
        return self._translate_failure(error)

    @staticmethod
    def _translate_failure(error: Exception) -> SourceFault:
        """What is no answer of a hub."""
        if isinstance(error, SourceFault):
            return error
        if isinstance(error, OfflineModeIsEnabled):
            return Broken("is not asked (HF_HUB_OFFLINE is set)")
        if isinstance(error, TimeoutError):
            return Broken("does not answer in time")
        if isinstance(error, (ValueError, KeyError, TypeError, RecursionError, AttributeError)):
            return Broken("answers something that is not a hub's (a login page of this network?)")
        return Broken(f"does not answer ({_first_line(error)})")


def _entry(file: RepoFile) -> FileEntry:
    oid = Digest(DigestKind.GIT_SHA1, str(file.blob_id))
    size = file.size
    digest = oid
    if file.lfs is not None:
        digest = Digest(DigestKind.SHA256, str(file.lfs.sha256))
        size = file.lfs.size
    if not isinstance(size, int) or isinstance(size, bool):
        raise BadInput(f"{str(file.path)[:80]!r} has no size")
    xet = file.xet_hash if isinstance(file.xet_hash, str) else None
    return FileEntry(RepoPath.parse(str(file.path)), size, digest, oid, xet)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
