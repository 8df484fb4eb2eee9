"""On disk: the files of which bytes were given before they were proven, so that a restart does not forget it.

Some clients keep what they have of a file for days and resume on top of it. An empty file named by the digest
says that what they have may never have been proven; it goes when the same delivery proves the whole.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgecdn.cache.safedir import SafeDir
from edgecdn.digest import Digest
from edgecdn.errors import BadInput, EdgecdnError

__all__ = ["HandedOut"]

_log = logging.getLogger(__name__)

_KEPT_S = 30 * 86400.0
"""Who comes back later than this is not known to begin anew."""


class HandedOut:
    """One home's digests. `in` tells whether somebody may have unproven bytes of one.

    Those of earlier runs (`before`), and those that were wrong once, stay: nobody knows who has what of them.
    """

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = home / "handed-out"
        self._clock = clock
        self.before = frozenset(self._read())
        self._given = set(self.before)
        self._kept = set(self.before)

    def __contains__(self, digest: object) -> bool:
        return digest in self._given

    def keep(self, digest: Digest) -> None:
        """Bytes of it were wrong."""
        self._kept.add(digest)

    async def open(self, digest: Digest) -> None:
        """Bytes of it are about to be given; on disk when this returns."""
        if digest not in self._given:
            self._given.add(digest)
            await asyncio.to_thread(self._write, digest)

    async def close(self, digest: Digest) -> None:
        """All that was given of it is proven."""
        if digest in self._given - self._kept:
            self._given.discard(digest)
            await asyncio.to_thread(self._remove, digest)

    def _read(self) -> Iterator[Digest]:
        """Blocks; a folder that cannot be read tells nothing."""
        oldest = self._clock() - _KEPT_S
        with suppress(FileNotFoundError), _failing_quietly(), SafeDir.at(self._folder) as folder:
            for name in folder.names():
                seen = folder.lstat(name)
                if seen is not None and seen.st_mtime < oldest:
                    folder.unlink(name)
                    continue
                with suppress(BadInput):
                    yield Digest.parse(name)

    def _write(self, digest: Digest) -> None:
        with _failing_quietly(), SafeDir.at(self._folder, create=True) as folder:
            os.close(folder.open(digest.hex, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            folder.sync()

    def _remove(self, digest: Digest) -> None:
        with suppress(FileNotFoundError), _failing_quietly(), SafeDir.at(self._folder) as folder:
            folder.unlink(digest.hex)


@contextmanager
def _failing_quietly() -> Iterator[None]:
    """A home that is full or read-only keeps nobody from a file; after a restart, then, no more is known."""
    try:
        yield
    except (OSError, EdgecdnError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        _log.warning("what was given is not remembered on disk reason=%s", error)
