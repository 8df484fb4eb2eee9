"""The requests that are not finished, in `jobs.json` of the home: what an agent goes on with when it starts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgecdn.control import FetchRequest, parse
from edgecdn.errors import BadInput
from edgecdn_agent.run_file import write_private

__all__ = ["JobStore", "StoredJob"]

_log = logging.getLogger(__name__)
_FILE = "jobs.json"


class StoredJob(msgspec.Struct, frozen=True):
    """A request and the job it is."""

    id: str
    request: FetchRequest


class JobStore:
    """The file. Blocking; derived state: one that cannot be read is an empty one."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._newest = 0

    def load(self) -> tuple[StoredJob, ...]:
        """What was unfinished."""
        try:
            return parse((self._home / _FILE).read_bytes(), tuple[StoredJob, ...])
        except FileNotFoundError:
            return ()
        except (OSError, BadInput) as error:
            _log.warning("unfinished jobs cannot be read file=%s reason=%s", self._home / _FILE, error)
            return ()

    def save(self, jobs: Sequence[StoredJob], number: int) -> None:
        """Replace them all, whole or not at all. A full disk is told in the log, and the jobs go on.

        `number` grows from list to list: threads may come here in another order than they were sent.
        """
        with self._lock:
            if number < self._newest:
                return
            self._newest = number
            try:
                write_private(self._home, _FILE, msgspec.json.encode(jobs))
            except OSError as error:
                _log.warning("unfinished jobs cannot be remembered file=%s reason=%s", self._home / _FILE, error)
