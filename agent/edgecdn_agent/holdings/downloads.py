"""What this agent is receiving over the swarm at the moment, so that it can be told to who takes it too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from edgecdn.digest import Digest
from edgecdn.piecetree import PieceTree
from edgecdn_agent.listeners import Listeners

__all__ = ["Downloads"]


class Downloads(Listeners[None]):
    """Trees by digest. Listeners are told when it changes."""

    def __init__(self) -> None:
        super().__init__()
        self._trees: dict[Digest, PieceTree] = {}
        self._count: Counter[Digest] = Counter()

    def add(self, digest: Digest, tree: PieceTree) -> None:
        """It began."""
        self._trees[digest] = tree
        self._count[digest] += 1
        self.tell(None)

    def remove(self, digest: Digest) -> None:
        """It ended, one way or another."""
        self._count[digest] -= 1
        if self._count[digest] <= 0:
            del self._count[digest]
            self._trees.pop(digest, None)
        self.tell(None)

    def all(self) -> Mapping[Digest, PieceTree]:
        """The trees of everything that is being received."""
        return self._trees

    def get(self, digest: Digest) -> PieceTree | None:
        """Its tree, while it is being received."""
        return self._trees.get(digest)
