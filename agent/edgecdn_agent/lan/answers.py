"""What the LAN server is told by the rest of the agent: listings, refs, downloads; the sharing rule applied."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from edgecdn.cache.provisional import Provisional
from edgecdn.cache.store import open_repo
from edgecdn.cache.trees import encode_tree
from edgecdn.digest import Digest
from edgecdn.errors import EdgecdnError
from edgecdn.lan_wire import BlobState
from edgecdn.names import CommitId, RepoId, Revision
from edgecdn_agent.holdings.downloads import Downloads
from edgecdn_agent.holdings.sharing import SharingRule

__all__ = ["LanAnswers"]


class LanAnswers:
    """Answers of one cache. What may not be shared, and what only peers vouch for, is as if it were not there."""

    def __init__(self, cache_dir: Path, home: Path, rule: SharingRule, downloads: Downloads) -> None:
        self._cache_dir = cache_dir
        self._provisional = Provisional(home)
        self._rule = rule
        self._downloads = downloads

    async def manifest(self, repo: RepoId, commit: CommitId) -> bytes | None:
        """The listing of a commit."""
        return await asyncio.to_thread(self._manifest, repo, commit) if self._rule.allows(repo) else None

    async def ref(self, repo: RepoId, revision: Revision) -> CommitId | None:
        """The commit a branch or tag stands for."""
        return await asyncio.to_thread(self._ref, repo, revision) if self._rule.allows(repo) else None

    def downloading(self) -> Mapping[Digest, BlobState]:
        """What is being received over the swarm: only repos that may be shared are."""
        return {
            digest: BlobState(tree.size, complete=False, root=tree.root.hex())
            for digest, tree in self._downloads.all().items()
        }

    def _manifest(self, repo: RepoId, commit: CommitId) -> bytes | None:
        try:
            with open_repo(self._cache_dir, repo) as store:
                known = store.read_tree(commit)
        except (FileNotFoundError, EdgecdnError):
            return None
        return None if known is None or (repo, commit) in self._provisional else encode_tree(known)

    def _ref(self, repo: RepoId, revision: Revision) -> CommitId | None:
        try:
            with open_repo(self._cache_dir, repo) as store:
                commit = store.read_ref(revision)
        except (FileNotFoundError, EdgecdnError):
            return None
        return None if commit is None or (repo, commit) in self._provisional else commit
