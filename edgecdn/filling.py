"""Which files a fetch brings itself, and which it leaves to others of its process that are at them already."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgecdn.cache.inventory import Glance, Inventory
from edgecdn.cache.store import open_repo
from edgecdn.digest import Digest
from edgecdn.manifest import FileEntry
from edgecdn.names import RepoId
from edgecdn.rooms import Claims, Room
from edgecdn.transfer.arrivals import Arrivals, StandingFile, same_file

__all__ = ["Ended", "Filling", "Round"]


@dataclass(frozen=True, slots=True)
class Round:
    """What became of files that were looked for. `missing` are claimed by us, `busy` by others."""

    here: tuple[FileEntry, ...]
    missing: tuple[FileEntry, ...]
    busy: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of files that others bring: with those of `ended` they are at an end, well or not."""

    ended: tuple[FileEntry, ...]
    busy: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True)
class Filling:
    """One fetch in the room of its repo.

    `glance` looks without hashing; `inventory` hashes what was never checked, and sets aside what is wrong.
    """

    cache_dir: Path
    repo: RepoId
    room: Room
    claims: Claims
    arrivals: Arrivals
    glance: Callable[[Sequence[FileEntry]], Awaitable[Glance]]
    inventory: Callable[[Sequence[FileEntry]], Awaitable[Inventory]]

    async def look(self, wanted: Sequence[FileEntry]) -> Round:
        """Claim what is not here of `wanted`, one entry a digest.

        1. A file that stands there unproven is hashed, and set aside when it is wrong, only under the
           claim of its digest, as it is brought: so nobody moves away what another has just put there.
        2. What is absent is claimed after that, so that a long hashing keeps nobody from files that are
           no part of it; and looked for once more, since who had it claimed may have brought it meanwhile.
        """
        seen = await self.glance(wanted)
        here, missing, busy = [*seen.here], list[FileEntry](), list[FileEntry]()
        for group in (tuple(seen.unproven), seen.absent):
            mine = [entry for entry in group if self.claims.take(entry.digest)]
            busy += set(group) - set(mine)
            if not mine:
                continue
            found = await self._prove(mine, seen)
            for entry in found.here:
                self.claims.release(entry.digest)
            here += found.here
            missing += found.missing
        return Round(tuple(here), tuple(missing), tuple(busy))

    async def others(self, busy: Sequence[FileEntry], *, urgent: bool) -> Ended:
        """Wait until others have ended with one of `busy`; those files are to be looked for again.

        `urgent`: they are told that somebody waits. Nothing may be claimed by us meanwhile.
        """
        if urgent:
            for entry in busy:
                self.room.hurry(entry.digest)
        free: set[Digest] = await self.room.any_free(entry.digest for entry in busy)
        ended = tuple(entry for entry in busy if entry.digest in free)
        return Ended(ended, tuple(entry for entry in busy if entry.digest not in free))

    async def _prove(self, mine: Sequence[FileEntry], seen: Glance) -> Inventory:
        """Look closer. Who waits for a file that stands there can read it before all of it is hashed."""
        with ExitStack() as shown:
            arrivals = {}
            for entry in mine:
                stands = seen.unproven.get(entry)
                if stands is not None and stands.st_size == entry.size:
                    arrival = shown.enter_context(self.arrivals.bring(self.repo, entry))
                    arrival.show(StandingFile(stands, lambda digest=entry.digest: self._open(digest)))  # type: ignore[misc]
                    arrivals[entry] = arrival
            found = await self.inventory(mine)
            for entry in arrivals.keys() & set(found.missing):
                arrivals[entry].take_back()
            for entry in arrivals.keys() & set(found.here):
                proven = found.seen[entry.digest]
                if not same_file(seen.unproven[entry], proven):  # its readers have bytes of another
                    arrivals[entry].take_back()
                arrivals[entry].publish(proven)
            return found

    def _open(self, digest: Digest) -> int | None:
        """By the cache, not by the fetch's own folder: that may be closed meanwhile."""
        with open_repo(self.cache_dir, self.repo) as store:
            return store.open_blob(digest)
