"""What this machine holds: the table behind `Holdings`. No I/O; safe to use from threads.

A blob file is in one of four states:
1. held: its bytes are known to be what its name says;
2. pending: nobody knows yet, or its piece tree is not known (it may be held at the same time);
3. suspect: pending, and what the catalog says of it counts no longer: reading it failed;
4. bad: it was read and is wrong or unreadable. It stays so until another file has its name.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from edgecdn.cache.catalog import Verified
from edgecdn.digest import Digest
from edgecdn.names import RepoId
from edgecdn_agent.holdings.held_files import Holding

__all__ = ["Counts", "HeldTable"]


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is held: repos with at least one blob, different blobs, their bytes."""

    repos: int
    blobs: int
    bytes: int


@dataclass(slots=True)
class _Repo:
    held: dict[Digest, Holding] = field(default_factory=dict)
    pending: set[Holding] = field(default_factory=set)
    suspect: set[Holding] = field(default_factory=set)
    bad: set[Holding] = field(default_factory=set)


class HeldTable:
    """All blob files by repo, those held also by digest."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._repos: dict[RepoId, _Repo] = {}
        self._copies: dict[Digest, tuple[Holding, ...]] = {}
        self._trees: set[str] = set()
        self.additions = 0
        """Grows when something becomes pending."""

    def copies(self, digest: Digest) -> tuple[Holding, ...]:
        """The held files with these bytes, one a repo."""
        return self._copies.get(digest, ())

    def repos(self) -> list[RepoId]:
        """The repos of which at least one blob is held."""
        with self._guard:
            return [repo for repo, state in self._repos.items() if state.held]

    def known_repos(self) -> list[RepoId]:
        """The repos of which there is any file."""
        with self._guard:
            return list(self._repos)

    def counts(self) -> Counts:
        """How much is held; the same bytes in two repos count once."""
        with self._guard:
            sizes = [copies[0].size for copies in self._copies.values()]
            return Counts(sum(bool(state.held) for state in self._repos.values()), len(sizes), sum(sizes))

    def digests(self) -> list[Digest]:
        """All that is held."""
        with self._guard:
            return list(self._copies)

    def all_digests(self) -> set[str]:
        """The names (in hex) of all files there are, right or wrong."""
        with self._guard:
            repos = self._repos.values()
            return {one.digest.hex for repo in repos for one in (*repo.held.values(), *repo.pending, *repo.bad)}

    def pending(self) -> list[Holding]:
        """What is to be indexed, smallest first: so most blobs are there soonest."""
        with self._guard:
            return sorted(
                (holding for state in self._repos.values() for holding in state.pending),
                key=lambda holding: (holding.size, holding.digest),
            )

    def suspects(self, digest: Digest) -> list[Holding]:
        """The files of this name that were held, and of which only the bytes can tell now."""
        with self._guard:
            return [held for state in self._repos.values() for held in state.suspect if held.digest == digest]

    def is_pending(self, holding: Holding) -> bool:
        """Whether it is still to be indexed."""
        state = self._repos.get(holding.repo)
        return state is not None and holding in state.pending

    def is_suspect(self, holding: Holding) -> bool:
        """Whether only its bytes can tell."""
        state = self._repos.get(holding.repo)
        return state is not None and holding in state.suspect

    def lacks_tree(self, holding: Holding) -> bool:
        """Whether its piece tree is still to be built."""
        return holding.has_tree and holding.digest.hex not in self._trees

    def add_trees(self, digests: Collection[str]) -> None:
        """These piece trees are known (digests in hex)."""
        with self._guard:
            self._trees.update(digests)

    def drop_trees(self, digests: Collection[str]) -> None:
        """These piece trees are forgotten (digests in hex)."""
        with self._guard:
            self._trees.difference_update(digests)

    def replace(self, repo: RepoId, files: Collection[Holding], verified: Mapping[str, Verified]) -> bool:
        """These are the files of a repo now, `verified` what the catalog says; returns whether what is held changed."""
        with self._guard:
            old = self._repos.get(repo) or _Repo()
            there = set(files)
            new = _Repo(suspect=old.suspect & there, bad=old.bad & there)
            for holding in there - new.bad:
                known = holding not in new.suspect and _agrees(verified.get(str(holding.path)), holding)
                if known or old.held.get(holding.digest) == holding:
                    new.held[holding.digest] = holding
                if holding.digest not in new.held or self.lacks_tree(holding):
                    new.pending.add(holding)
            self.additions += bool(new.pending - old.pending)
            self._repos.pop(repo, None)
            if there:
                self._repos[repo] = new
            for digest in old.held.keys() | new.held.keys():
                self._note(repo, digest, new.held.get(digest))
            return old.held != new.held

    def confirm(self, holding: Holding) -> bool:
        """It was read and is right, and its tree (if it has one) is known; False when it is not there any more."""
        with self._guard:
            state = self._repos.get(holding.repo)
            if state is None or holding not in state.pending:
                return False
            state.pending.discard(holding)
            state.suspect.discard(holding)
            state.held[holding.digest] = holding
            self._note(holding.repo, holding.digest, holding)
            if holding.has_tree:
                self._trees.add(holding.digest.hex)
            return True

    def suspect(self, holding: Holding) -> bool:
        """Hold it no longer, until it was read again; returns whether it was held."""
        return self._unhold(holding, bad=False)

    def reject(self, holding: Holding) -> bool:
        """It was read and is wrong, or cannot be read; returns whether it was held."""
        return self._unhold(holding, bad=True)

    def _unhold(self, holding: Holding, *, bad: bool) -> bool:
        with self._guard:
            state = self._repos.get(holding.repo)
            if state is None:
                return False
            was_held = state.held.get(holding.digest) == holding
            if was_held:
                del state.held[holding.digest]
                self._note(holding.repo, holding.digest, None)
            if bad:
                state.pending.discard(holding)
                state.suspect.discard(holding)
                state.bad.add(holding)
            elif was_held:
                state.suspect.add(holding)
                state.pending.add(holding)
                self.additions += 1
            return was_held

    def _note(self, repo: RepoId, digest: Digest, holding: Holding | None) -> None:
        copies = [copy for copy in self._copies.get(digest, ()) if copy.repo != repo]
        if holding is not None:
            copies.append(holding)
        if copies:
            self._copies[digest] = tuple(copies)
        else:
            self._copies.pop(digest, None)


def _agrees(row: Verified | None, holding: Holding) -> bool:
    return row == (holding.digest.hex, holding.size, holding.mtime_ns, holding.inode)
