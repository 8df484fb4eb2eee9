"""Telling everybody who listens what is new of one blob: encoded once, a few milliseconds' changes a line.

A reader that takes nothing only has lines wait for it, and only so many: then it is behind, and is cut.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from edgecdn_agent.ingest.wire import MOST_LINE_BYTES, Told, encode_told, merge

__all__ = ["Reader", "Teller", "Tempo"]

_MOST_BEHIND_BYTES = 2 * MOST_LINE_BYTES
"""What may wait for one reader: more than all there is to say of any blob, twice."""

_NOTHING = Told()


class _Speaker(Protocol):
    """Whose news they are; see `Shared`."""

    def first(self) -> Told: ...
    def subscribe(self, callback: Callable[[Told], None]) -> Callable[[], None]: ...


@dataclass(frozen=True, slots=True)
class Tempo:
    """How often something is said, seconds."""

    batch_s: float = 0.005
    """Changes within it are one line. Measured with 8 machines: with 50 ms a blob takes 10 % longer."""
    reader_s: float = 0.0002
    """So much for each reader where they are many: ten times what telling one costs (20 us measured), so that
    telling takes a tenth of one core at most: 5 ms up to 25 readers, 40 ms for 200."""
    beat_s: float = 1.0


@dataclass(slots=True, eq=False)
class Reader:
    """One who listens. `ended`: nothing more comes; `behind`: it took too little for too long."""

    lines: deque[bytes] = field(default_factory=deque)
    waiting_bytes: int = 0
    ended: bool = False
    behind: bool = False
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, line: bytes) -> None:
        """One line more for it."""
        self.lines.append(line)
        self.waiting_bytes += len(line)
        self.behind = self.behind or self.waiting_bytes > _MOST_BEHIND_BYTES
        self.woken.set()

    async def take(self) -> bytes:
        """The lines there are, at least one; nothing at the end. Raises TimeoutError when it is behind."""
        while not self.lines and not self.ended:
            self.woken.clear()
            await self.woken.wait()
        if self.behind:
            raise TimeoutError("the reader takes too little")
        taken = self.lines.popleft() if len(self.lines) == 1 else b"".join(self.lines)
        self.lines.clear()
        self.waiting_bytes = 0
        return taken


class Teller:
    """All who listen to one blob. It listens itself while somebody does."""

    def __init__(self, shared: _Speaker, is_there: Callable[[], bool], tempo: Tempo) -> None:
        """`is_there`: whether the blob is still taken here; looked at with each change and each beat."""
        self._shared = shared
        self._is_there = is_there
        self._tempo = tempo
        self._loop = asyncio.get_running_loop()
        self._readers: set[Reader] = set()
        self._changes: list[Told] = []
        self._told_s = 0.0
        self._beats = 0
        self._flushing: asyncio.TimerHandle | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._unsubscribe: Callable[[], None] | None = None

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._readers)

    def join(self) -> Reader:
        """One more listens: all there is to say waits for it already."""
        if self._unsubscribe is None:
            self._unsubscribe = self._shared.subscribe(self._changed)
            self._beating = self._loop.call_later(self._tempo.beat_s, self._beat)
        reader = Reader()
        reader.say(encode_told(self._shared.first()))
        self._readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """It listens no more."""
        self._readers.discard(reader)
        if not self._readers:
            self.end()

    def end(self) -> None:
        """Nothing more is said; what waits is still taken."""
        for timer in (self._flushing, self._beating):
            if timer is not None:
                timer.cancel()
        self._flushing = self._beating = None
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self._tell_changes()
        for reader in self._readers:
            reader.ended = True
            reader.woken.set()
        self._readers.clear()

    def _changed(self, change: Told) -> None:
        self._changes.append(change)
        if self._flushing is None:
            pause_s = max(self._tempo.batch_s, self._tempo.reader_s * len(self._readers))
            self._flushing = self._loop.call_later(max(0.0, self._told_s + pause_s - self._loop.time()), self._flush)

    def _flush(self) -> None:
        self._flushing, self._told_s = None, self._loop.time()
        if self._is_there():
            self._tell_changes()
        else:
            self.end()

    def _tell_changes(self) -> None:
        changes, self._changes = self._changes, []
        told = merge(changes)
        if told != _NOTHING:
            self._tell(told)

    def _beat(self) -> None:
        if not self._is_there():
            self.end()
            return
        self._beats += 1
        self._beating = self._loop.call_later(self._tempo.beat_s, self._beat)
        self._tell(Told(beat=self._beats))

    def _tell(self, told: Told) -> None:
        line = encode_told(told)
        for reader in self._readers:
            reader.say(line)
