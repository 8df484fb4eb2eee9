"""One file on its way into the cache because somebody wants it now: how far it is, and its bytes."""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from edgecdn.errors import EdgecdnError, Interrupted
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import Revision
from edgecdn.transfer.arrivals import Arrival

__all__ = ["Delivery", "DeliveryState", "Followed", "Wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that somebody wants: of which commit, and the repo's page on its hub.

    `token`: the caller's, used for repos not everybody may see. `hub`: `modelscope` when names and
    bytes are ModelScope's. `revision`: the branch or tag the hub last told the commit for, if it was asked.
    """

    manifest: Manifest
    entry: FileEntry
    page: str
    token: str | None = field(default=None, repr=False)
    hub: str = ""
    revision: Revision | None = None


class DeliveryState(enum.Enum):
    """ARRIVING: bytes come; HERE: verified, under its final name; FAILED: `Delivery.error` says why."""

    ARRIVING = "arriving"
    HERE = "here"
    FAILED = "failed"


class Delivery:
    """A file on its way, shared by all who want it. On the event loop, but for `open`.

    `find` opens the finished file in the cache (None: it is not there, or another stands in its place).
    """

    def __init__(self, arrival: Arrival, find: Callable[[], int | None]) -> None:
        self.entry: FileEntry = arrival.entry
        self._arrival = arrival
        self._find = find
        self._state = DeliveryState.ARRIVING
        self._error: EdgecdnError | None = None

    @property
    def state(self) -> DeliveryState:
        """Where it is in its life; HERE and FAILED are final."""
        return self._state

    @property
    def error(self) -> EdgecdnError | None:
        """Why it failed."""
        return self._error

    @property
    def mark(self) -> int:
        """Grows whenever bytes that were told as there are taken back; who passed them on must stop."""
        return self._arrival.mark

    @property
    def done_bytes(self) -> int:
        """How much of `entry.size` is there, for progress."""
        return self.entry.size if self.state is DeliveryState.HERE else self._arrival.done_bytes

    def reach(self, start: int) -> int:
        """The bytes [start, reach) are in the file now, not proven right before it is HERE; `start`: none."""
        if self.state is DeliveryState.HERE or self._arrival.published:
            return max(start, self.entry.size)
        return self._arrival.reach(start)

    def changed(self) -> Coroutine[Any, Any, None]:
        """To be awaited: ends at the next change of anything after this call, however late it is awaited."""
        return self._arrival.changed()

    def open(self) -> int:
        """An own descriptor of the partial or final file, to be read by position; the caller closes it. Blocks.

        HERE, it is the very file that was proven. Raises FileNotFoundError where there is none to be read: a file
        of up to 1 MiB is in memory until it is HERE.
        """
        if self._state is not DeliveryState.HERE and not self._arrival.published:
            return self._arrival.open()
        fd = self._find()
        if fd is None:
            raise FileNotFoundError(f"{self.entry.path} is not in the cache any more")
        return fd

    def settle(self, error: EdgecdnError | None = None) -> None:
        """It is over: HERE, or FAILED with `error`."""
        if self._state is DeliveryState.ARRIVING:
            self._state = DeliveryState.HERE if error is None else DeliveryState.FAILED
            self._error = error
            self._arrival.changes.tell()


class Followed(Delivery):
    """A file that a fetch of the agent brings by itself: it is watched, not asked for, and may end at any time."""

    @property
    def state(self) -> DeliveryState:
        if self._arrival.published:
            return DeliveryState.HERE
        return DeliveryState.ARRIVING if self._arrival.bringing else DeliveryState.FAILED

    @property
    def error(self) -> EdgecdnError | None:
        if self.state is not DeliveryState.FAILED:
            return None
        return self._arrival.error or Interrupted(" The fetch that brought it has ended.")
