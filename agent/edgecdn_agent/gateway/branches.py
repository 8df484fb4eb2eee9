"""Which branch or tag a hub last said to be at a commit: a client asks for files by the commit alone."""

from __future__ import annotations

from collections import OrderedDict

from edgecdn.names import CommitId, RepoId, Revision

__all__ = ["Branches"]

_MOST = 4096


class Branches:
    """Remembers it, the newest of them."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[RepoId, CommitId], Revision] = OrderedDict()

    def get(self, repo: RepoId, commit: CommitId) -> Revision | None:
        """The branch or tag; None where no hub told of one."""
        return self._known.get((repo, commit))

    def learn(self, repo: RepoId, revision: Revision, commit: CommitId) -> None:
        """A hub just said where a branch or tag is."""
        if revision.commit is None:
            self._known[repo, commit] = revision
            self._known.move_to_end((repo, commit))
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
