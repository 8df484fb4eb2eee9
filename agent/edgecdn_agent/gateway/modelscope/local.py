"""ModelScope's answers made from the cache, for when it is silent: of repos that are here under their hub's name.

Only what the sharing rule knows to be public is told. ModelScope's default branch is taken for the
hub's. Files that are not here are listed too, since peers may have them, except the other formats of
weights that a fetch leaves out anyway.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from edgecdn.cache.store import open_repo
from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import EdgecdnError
from edgecdn.fileset import FileSet, select
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import RepoId, RepoType, Revision
from edgecdn_agent.gateway.modelscope.paths import DEFAULT_REVISION, Asked, Files, Info, Revisions
from edgecdn_agent.holdings.shelf import Holding, Holdings

__all__ = ["LocalListings"]

_READ_BYTES = 1 << 20
_PAGE = 100
_MOST_NUMBERS = 1000


class LocalListings:
    """Made from trees and refs of the cache; `is_public`: what the sharing rule knows of a repo."""

    def __init__(self, holdings: Holdings, is_public: Callable[[RepoId], bool | None]) -> None:
        self._holdings = holdings
        self._is_public = is_public
        self._sha256: dict[Digest, str] = {}
        self._numbers: dict[str, RepoId] = {}

    async def manifest(self, repo: RepoId, revision: str) -> Manifest | None:
        """The hub's listing of a repo that is here and public; None where there is none."""
        if not self._is_public(repo):
            return None
        return await asyncio.to_thread(self._manifest, repo, Revision(revision))

    async def answer(self, asked: Asked) -> Any:
        """The `Data` of an answer; None where nothing is known."""
        repo = asked.repo if isinstance(asked, Info | Revisions | Files) else None
        if isinstance(asked, Files) and repo is None:
            repo = self._numbers.get(asked.scope)
        if repo is None:
            return None
        revision = asked.revision if isinstance(asked, Files) else DEFAULT_REVISION
        manifest = await self.manifest(repo, revision)
        if manifest is None:
            return None
        if isinstance(asked, Info):
            return self._info(repo)
        if isinstance(asked, Revisions):
            branch = {"Revision": DEFAULT_REVISION, "CreatedAt": 0}
            return {"RevisionMap": {"Branches": [branch], "Tags": []}}
        assert isinstance(asked, Files)
        return await self._files(manifest, asked)

    def _info(self, repo: RepoId) -> Mapping[str, Any]:
        owner, _, name = repo.name.partition("/")
        number = int.from_bytes(hashlib.sha256(repo.name.encode()).digest()[:4], "big") >> 1
        if repo.type is RepoType.DATASET:
            if len(self._numbers) >= _MOST_NUMBERS:
                self._numbers.clear()
            self._numbers[f"datasets/{number}"] = repo
        return {"Id": number, "Path": owner, "Name": name, "Revision": DEFAULT_REVISION, "Type": 1}

    async def _files(self, manifest: Manifest, asked: Files) -> Mapping[str, Any]:
        usual = {entry.path for entry in select(manifest, FileSet())}
        shown = [e for e in manifest.files if e.path in usual or self._holdings.get(e.digest) is not None]
        by_path = {str(entry.path): entry for entry in shown}
        paths = _paths(by_path, asked.root, recursive=asked.recursive)
        size = asked.size or _PAGE
        page = paths[(asked.page - 1) * size : asked.page * size] if asked.page else paths
        there = [entry for path in page if (entry := by_path.get(path)) is not None]
        await self._hash(there)
        commit = manifest.commit.hex
        items = [self._item(path, by_path.get(path), commit) for path in page]
        committer = {"Id": commit, "ShortId": commit[:8]}
        return {"Files": items, "LatestCommitter": committer, "TotalCount": len(paths)}

    async def _hash(self, entries: Iterable[FileEntry]) -> None:
        """Small files go by their git id on hubs; ModelScope's clients want the SHA-256 of each."""
        for entry in entries:
            if entry.digest.kind is DigestKind.GIT_SHA1 and entry.digest not in self._sha256:
                holding = self._holdings.get(entry.digest)
                found = None if holding is None else await asyncio.to_thread(self._sha256_of, holding)
                if found is not None:
                    self._sha256[entry.digest] = found

    def _item(self, path: str, entry: FileEntry | None, commit: str) -> Mapping[str, Any]:
        item = {
            "Name": PurePosixPath(path).name,
            "Path": path,
            "Type": "tree" if entry is None else "blob",
            "Size": 0 if entry is None else entry.size,
            "Revision": commit,
            "IsLFS": entry is not None and entry.digest.kind is DigestKind.SHA256,
            "Mode": "040000" if entry is None else "100644",
            "CommittedDate": 0,
        }
        if entry is None:
            return item
        known = entry.digest.hex if entry.digest.kind is DigestKind.SHA256 else self._sha256.get(entry.digest)
        return item if known is None else item | {"Sha256": known}  # an empty one would be compared with

    def _manifest(self, repo: RepoId, revision: Revision) -> Manifest | None:
        names = [Revision("main"), revision] if str(revision) == DEFAULT_REVISION else [revision]
        with suppress(FileNotFoundError, EdgecdnError), open_repo(self._holdings.settings.cache_dir, repo) as store:
            if revision.commit is not None:
                return store.read_tree(revision.commit)
            for name in names:
                commit = store.read_ref(name)
                if commit is not None:
                    return store.read_tree(commit)
        return None

    def _sha256_of(self, holding: Holding) -> str | None:
        hasher = hashlib.sha256()
        try:
            fd = self._holdings.open(holding)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file, suppress(OSError):
            while piece := file.read(_READ_BYTES):
                hasher.update(piece)
            return hasher.hexdigest()
        return None


def _paths(files: Iterable[str], root: str, *, recursive: bool) -> list[str]:
    """Files and folders below `root`, as ModelScope lists them."""
    found: set[str] = set()
    for path in files:
        found.add(path)
        found.update(str(folder) for folder in PurePosixPath(path).parents if str(folder) != ".")
    inside = [path for path in found if not root or path.startswith(f"{root}/")]
    if not recursive:
        inside = [path for path in inside if str(PurePosixPath(path).parent) == (root or ".")]
    return sorted(inside)
