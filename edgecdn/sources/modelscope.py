"""ModelScope: another hub with another API, whose listing gives the SHA-256 of every file (docs/protocol.md).

As a source it gives bytes of files whose SHA-256 and size equal what is wanted, whatever their path
there. As an index it serves repos that are only there.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from yarl import URL

from edgecdn import errors
from edgecdn.digest import Digest, DigestKind, lfs_pointer_oid
from edgecdn.errors import BadInput
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, RepoId, RepoType, Revision
from edgecdn.repopath import RepoPath
from edgecdn.sources import Offer
from edgecdn.sources.faults import Broken, Denied, Missing, SourceFault
from edgecdn.sources.http import ByteClient
from edgecdn.sources.ranged import RangedOffer, read_ranged
from edgecdn.spans import Span

__all__ = ["LISTING_LIMIT", "ModelScopeApi", "ModelScopeSource", "listed_entries", "manifest_of"]

_DEFAULT_REVISION = "master"
LISTING_LIMIT = 3000
"""Its model listing is silently cut here."""

_PAGE = 200
_MOST_PAGES = 2500


@dataclass(frozen=True, slots=True)
class _Listed:
    """One file of its listing."""

    path: RepoPath
    size: int
    digest: Digest


class _Api:
    """What source and index share: the listing."""

    def __init__(self, endpoint: str, client: ByteClient) -> None:
        self.endpoint = endpoint
        self.name = endpoint.partition("://")[2]
        self.client = client

    def file_url(self, repo: RepoId, revision: str, path: RepoPath) -> URL:
        """Where a file's bytes are asked for."""
        return self._base(repo) / "repo" % {"Revision": revision, "FilePath": str(path)}

    async def listing(self, repo: RepoId, revision: str) -> tuple[str, list[_Listed]]:
        """The commit it says (or empty) and the files; raises Missing, Denied, Broken, BadInput."""
        if repo.type is RepoType.DATASET:
            return "", await self._dataset_files(repo, revision)
        url = self._base(repo) / "repo" / "files" % {"Revision": revision, "Recursive": "True"}
        data = await self._data(url)
        committer = data.get("LatestCommitter")
        commit = str(committer.get("Id") or "") if isinstance(committer, dict) else ""
        return commit, _files(data.get("Files"))

    async def revisions(self, repo: RepoId) -> dict[str, Any]:
        """Its branches and tags, as it says them."""
        return await self._data(self._base(repo) / "revisions")

    async def _dataset_files(self, repo: RepoId, revision: str) -> list[_Listed]:
        found: list[_Listed] = []
        for page in range(1, _MOST_PAGES + 1):
            query = {"Revision": revision, "Recursive": "True", "PageNumber": str(page), "PageSize": str(_PAGE)}
            raw = (await self._data(self._base(repo) / "repo" / "tree" % query)).get("Files")
            found += _files(raw)
            if not isinstance(raw, list) or len(raw) < _PAGE:
                break
        return found

    async def _data(self, url: URL) -> dict[str, Any]:
        try:
            envelope = await self.client.get_json(url)
        except TimeoutError as error:
            raise Broken("does not answer in time") from error
        if not isinstance(envelope, dict) or envelope.get("Success") is False:
            raise Missing("does not have it")
        data = envelope.get("Data")
        return data if isinstance(data, dict) else {}

    def _base(self, repo: RepoId) -> URL:
        return URL(self.endpoint) / "api" / "v1" / repo.type.plural / repo.name


class ModelScopeSource:
    """Bytes of files it also has, matched by SHA-256 and size. `own`: the commits it is asked about are its own."""

    def __init__(self, endpoint: str, kind: Kind, client: ByteClient, *, connections: int, own: bool = False) -> None:
        self._api = _Api(endpoint, client)
        self._own = own
        self.name = self._api.name
        self.kind = kind
        self.connections = connections

    async def offer(self, manifest: Manifest, wanted: Sequence[FileEntry]) -> Mapping[Digest, Offer]:
        """The files of the repo of the same name that are the same; raises Missing, Broken."""
        wanted = [entry for entry in wanted if entry.digest.kind is DigestKind.SHA256]  # it lists no other digest
        if manifest.repo.type is RepoType.SPACE or not wanted:
            return {}
        if self._own and manifest.commit == _commit("", manifest.files):  # a data set's: many pages, all read already
            return {e.digest: self._ranged(manifest.repo, _DEFAULT_REVISION, e, e.path) for e in wanted}
        found = await self._offer(manifest.repo, _DEFAULT_REVISION, wanted)
        missing = [entry for entry in wanted if entry.digest not in found]
        if missing and self._own:  # of another branch than the default one
            with suppress(Missing):
                found |= await self._offer(manifest.repo, manifest.commit.hex, missing)
        return found

    async def _offer(self, repo: RepoId, revision: str, wanted: Sequence[FileEntry]) -> dict[Digest, Offer]:
        try:
            question = (self._api.endpoint, repo, revision)
            _, files = await self._api.client.kept.ask(question, lambda: self._api.listing(repo, revision))
        except BadInput as error:
            raise Broken(f"lists something impossible ({error})") from error
        there = {(file.digest, file.size): file for file in files}
        found: dict[Digest, Offer] = {}
        for entry in wanted:
            file = there.get((entry.digest, entry.size))
            if file is not None:
                found[entry.digest] = self._ranged(repo, revision, entry, file.path)
        return found

    def _ranged(self, repo: RepoId, revision: str, entry: FileEntry, path: RepoPath) -> RangedOffer:
        return RangedOffer(entry, None, self._api.file_url(repo, revision, path))

    def read(self, offer: Offer, span: Span) -> AsyncGenerator[bytes, None]:
        """The bytes of `span`; see `Source.read`."""
        assert isinstance(offer, RangedOffer)
        return read_ranged(self._api.client, offer, span)

    async def close(self) -> None:
        """The client belongs to the job; nothing here."""


@dataclass(frozen=True, slots=True)
class _Head:
    commit: CommitId


class ModelScopeApi:
    """Names and listings of repos that are only there (`--hub modelscope`).

    It has no commit for every state of a repo; where it names none, the commit is made from the
    listing itself, so that equal files give an equal commit.
    """

    owns_refs = False

    def __init__(self, endpoint: str, client: ByteClient) -> None:
        self._api = _Api(endpoint, client)
        self.endpoint = endpoint
        self.name = self._api.name
        self._listed: dict[tuple[RepoId, CommitId], list[_Listed]] = {}

    async def head(self, repo: RepoId, revision: Revision | None) -> _Head:
        """The commit of a revision (None: master); raises as `Index.head`."""
        shown = str(revision) if revision else _DEFAULT_REVISION
        try:
            said, files = await self._api.listing(repo, shown)
        except Missing as fault:
            raise errors.RepoMissing(type=repo.type.value, name=repo.name, where=self.name, nearest="") from fault
        except Denied as fault:
            raise errors.AccessDenied(where=self.name, name=repo, reason=f" ({fault})") from fault
        except BadInput as error:
            raise errors.ManifestRefused(str(error).rstrip("."), name=repo, where=self.name) from error
        if not files:
            raise errors.RevisionMissing(name=repo, revision=shown, nearest="")
        if len(files) >= LISTING_LIMIT and repo.type is RepoType.MODEL:
            raise errors.ManifestRefused(f"it is cut at {LISTING_LIMIT} files", name=repo, where=self.name)
        commit = _commit(said, files)
        self._listed[repo, commit] = files
        return _Head(commit)

    async def manifest(self, repo: RepoId, commit: CommitId) -> Manifest:
        """The listing that `head` saw."""
        files = self._listed.get((repo, commit), [])
        try:
            return Manifest.of(repo, commit, map(_entry, files))
        except BadInput as error:
            raise errors.ManifestRefused(str(error).rstrip("."), name=repo, where=self.name) from error

    async def search(self, text: str, repo_type: RepoType, limit: int = 10) -> list[str]:  # noqa: ARG002 - the interface's
        """It has no public search that was seen to work; nothing."""
        return []

    async def revisions(self, repo: RepoId) -> list[str]:
        """Its branches and tags, for suggestions."""
        try:
            data = await self._api.revisions(repo)
        except SourceFault:
            return []
        kinds = data.get("RevisionMap") or {}
        return [
            str(r.get("Revision"))
            for kind in ("Branches", "Tags")
            for r in kinds.get(kind) or []
            if isinstance(r, dict)
        ]

    async def commits(self, repo: RepoId, revision: Revision | None) -> list[CommitId]:
        """Only the newest is known."""
        return [(await self.head(repo, revision)).commit]


def listed_entries(raw: object) -> list[FileEntry]:
    """The files of a listing (its `Files`), those without a SHA-256 left out; raises BadInput."""
    return [_entry(file) for file in _files(raw)]


def manifest_of(repo: RepoId, said: str, entries: Sequence[FileEntry]) -> Manifest:
    """A whole listing as a manifest; `said`: the commit it names, or empty. Raises BadInput."""
    return Manifest.of(repo, _commit(said, entries), entries)


def _entry(file: _Listed) -> FileEntry:
    return FileEntry(file.path, file.size, file.digest, lfs_pointer_oid(file.digest, file.size))


def _files(raw: object) -> list[_Listed]:
    """The files of a listing; entries without a SHA-256 (folders, odd ones) are left out. Raises BadInput."""
    found: list[_Listed] = []
    for item in raw if isinstance(raw, list) else ():
        if not isinstance(item, dict) or item.get("Type") == "tree" or not item.get("Sha256"):
            continue
        size = item.get("Size")
        if not isinstance(size, int):
            raise BadInput(f"{str(item.get('Path'))[:80]!r} has no size")
        digest = Digest(DigestKind.SHA256, str(item["Sha256"]))
        found.append(_Listed(RepoPath.parse(str(item.get("Path"))), size, digest))
    return found


def _commit(said: str, files: Sequence[_Listed | FileEntry]) -> CommitId:
    try:
        return CommitId(said)
    except BadInput:
        listing = "\n".join(sorted(f"{file.path}\0{file.digest}" for file in files))
        return CommitId(hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest())
