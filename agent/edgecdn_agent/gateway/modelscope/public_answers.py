"""What ModelScope said to strangers, kept on disk for when it does not answer: its SDK has no fallback of its own.

Derived state: lost or damaged, it is only asked for again. Blocking; called in threads.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgecdn.cache.safedir import SafeDir
from edgecdn.errors import EdgecdnError

__all__ = ["GOOD_S", "PublicAnswers"]

_log = logging.getLogger(__name__)

GOOD_S = 7 * 86400.0
"""How long an answer counts when ModelScope does not answer: as long as what hubs say of who may have a repo."""

_AGAIN_S = 3600.0
"""An unchanged answer is written again so often, for its date."""

_MOST_FILES = 2000
_MOST_BYTES = 8 << 20
"""Of one answer; the largest listing of ModelScope has some 2 MB."""


class PublicAnswers:
    """A folder of small files, one a question, the oldest removed first."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = home / "modelscope"
        self._clock = clock

    def get(self, question: str) -> bytes | None:
        """The body of the last answer, if it is not too old."""
        try:
            with SafeDir.at(self._path) as folder:
                seen = folder.lstat(_name(question))
                if seen is None or not -_AGAIN_S < self._clock() - seen.st_mtime < GOOD_S:
                    return None
                with os.fdopen(folder.open(_name(question), os.O_RDONLY), "rb") as file:
                    said, _, body = file.read(_MOST_BYTES + len(question) + 1).partition(b"\n")
        except (OSError, EdgecdnError):
            return None
        return body if said == question.encode() else None

    def put(self, question: str, body: bytes) -> None:
        """Keep an answer; a full or broken disk only means that it is not kept."""
        name = _name(question)
        if len(body) > _MOST_BYTES:
            return
        try:
            with SafeDir.at(self._path, create=True) as folder:
                seen = folder.lstat(name)
                unchanged = seen is not None and 0 <= self._clock() - seen.st_mtime < _AGAIN_S
                if unchanged and self.get(question) == body:
                    return
                folder.write_whole(name, question.encode() + b"\n" + body, sync=False)
                if seen is None:
                    _prune(folder)
        except (OSError, EdgecdnError) as error:
            _log.info("an answer is not kept reason=%s", error)

    def forget(self, question: str) -> None:
        """It holds no longer."""
        with suppress(OSError, EdgecdnError), SafeDir.at(self._path) as folder:
            folder.unlink(_name(question))


def _name(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()


def _prune(folder: SafeDir) -> None:
    names = folder.names()
    if len(names) <= _MOST_FILES:
        return
    dated = sorted((seen.st_mtime, name) for name in names if (seen := folder.lstat(name)) is not None)
    for _, name in dated[: len(dated) - _MOST_FILES * 9 // 10]:
        folder.unlink(name)
