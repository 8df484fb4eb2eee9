"""From a delivery into an answer: what is there already, as it comes, the end only when all of it is proven.

Bytes are given before they are proven right, so that nobody waits for a whole model. What makes that safe:
the last mebibyte follows when the digest is right, a connection is cut when what it was given is taken
back, and what came past the delivery (from the origin) is compared with the proven file.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from edgecdn.errors import EdgecdnError, SystemFailed
from edgecdn_agent.deliver.delivery import Delivery, DeliveryState
from edgecdn_agent.gateway.outgoing import Outgoing
from edgecdn_agent.lan.sender import ReadFailed
from edgecdn_agent.lan.workers import Workers, open_by

__all__ = ["TAIL_BYTES", "DeliveryFailed", "Feed", "TakenBack"]

TAIL_BYTES = 1 << 20
"""Withheld until the whole file is proven: without them no client takes it for complete."""

_SPARE_BYTES = 32
"""Kept back while more is to come, and given one by one while nothing does ..."""

_SPARE_EACH_S = 5.0
""" ... each so long after the last: clients give up a connection on which nothing comes for 10 s."""

_DISK_S = 20.0
_LOOK_AGAIN_S = 0.1
_GONE_S = 2.0
"""A file that is proven and cannot be opened for so long was removed."""

_GONE = "it was removed from the cache as soon as it was there"
_READ_BYTES = 1 << 20
_RUN_BYTES = 64 << 20


class TakenBack(Exception):
    """Bytes that this reader has are wrong, or may be: it must not get the rest."""


class DeliveryFailed(Exception):
    """The delivery ended without the file: `error` says why."""

    def __init__(self, error: EdgecdnError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(slots=True)
class _Foreign:
    """A run of bytes given that are not the delivery's, and their hash: fast, and nobody can make two alike."""

    start: int
    stop: int
    hasher: hashlib.blake2b = field(default_factory=hashlib.blake2b)

    def takes(self, at: int) -> bool:
        """Whether what comes at `at` goes on with it."""
        return at == self.stop and self.stop - self.start < _RUN_BYTES

    def is_in(self, fd: int) -> bool:
        """Whether a file has the same there. Blocks. Raises ReadFailed."""
        hasher, at = hashlib.blake2b(), self.start
        while at < self.stop:
            data = os.pread(fd, min(_READ_BYTES, self.stop - at), at)
            if not data:
                raise ReadFailed("the file is shorter than it was")
            hasher.update(data)
            at += len(data)
        return hasher.digest() == self.hasher.digest()


class Feed:
    """One answer's part in one delivery. `resumes`: the reader has what lies before, perhaps from here.

    `on_proven` is told which file was proven right, before the reader has the end of it.
    """

    def __init__(
        self,
        delivery: Delivery,
        out: Outgoing,
        disk: Workers,
        *,
        resumes: bool = False,
        on_proven: Callable[[os.stat_result], None] = lambda _: None,
    ) -> None:
        self.delivery = delivery
        self.mark = delivery.mark
        self._out = out
        self._disk = disk
        self._stands = resumes
        self._on_proven = on_proven
        self._gave_unproven = False
        self._foreign: list[_Foreign] = []
        self._fd = -1
        self._opened_as: tuple[int, DeliveryState] | None = None

    @property
    def is_proven(self) -> bool:
        """Whether the whole file is here and right."""
        return self.delivery.state is DeliveryState.HERE

    @property
    def gave_unproven(self) -> bool:
        """Whether the reader has bytes from here that were not proven when they were given."""
        return self._gave_unproven

    @property
    def is_mixed(self) -> bool:
        """Whether the reader has bytes from elsewhere that were not compared yet."""
        return bool(self._foreign)

    def reach(self) -> int:
        """Up to where bytes may be given now."""
        out, size = self._out, self.delivery.entry.size
        if self.is_proven:
            return out.stop
        return max(out.at, min(self.delivery.reach(out.at), out.stop, size - TAIL_BYTES))

    def note_foreign(self, start: int, data: bytes) -> None:
        """The reader got `data` from elsewhere; it is compared before the end is given."""
        if not self._foreign or not self._foreign[-1].takes(start):
            self._foreign.append(_Foreign(start, start))
        run = self._foreign[-1]
        run.hasher.update(data)
        run.stop += len(data)

    def look(self) -> None:
        """Raises TakenBack, and DeliveryFailed."""
        if self.delivery.mark != self.mark:
            if self._stands:
                raise TakenBack("bytes of it were wrong")
            self.mark = self.delivery.mark
        if self.delivery.state is DeliveryState.FAILED:
            assert self.delivery.error is not None
            raise DeliveryFailed(self.delivery.error)

    async def pump(self, patience_s: float | None) -> bool:
        """Give all there is; True: to the answer's stop. False: nothing came for `patience_s`.

        Raises TakenBack and DeliveryFailed, and what `Outgoing.send` raises.
        """
        loop, out = asyncio.get_running_loop(), self._out
        began_s = spared_s = loop.time()
        while not out.is_done:
            self.look()
            reach, left_s = self.reach(), _SPARE_EACH_S
            if reach == out.stop or reach - out.at > _SPARE_BYTES:
                if await self._give(reach if reach == out.stop else reach - _SPARE_BYTES):
                    began_s = spared_s = loop.time()
                    continue
                left_s = _LOOK_AGAIN_S
                if self.is_proven and loop.time() - began_s > _GONE_S:
                    raise DeliveryFailed(SystemFailed(_GONE))
            if patience_s is not None:
                left_s = min(left_s, began_s + patience_s - loop.time())
                if left_s <= 0:
                    return False
            if reach > out.at and out.has_begun and loop.time() - spared_s >= _SPARE_EACH_S:
                await self._give(out.at + 1)
                spared_s = loop.time()
            await self._change(left_s)
        return True

    def close(self) -> None:
        """Let the file go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def _change(self, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self.delivery.changed()
        except TimeoutError:
            return

    async def _give(self, stop: int) -> bool:
        """Send up to `stop`; False where the file is not to be had at this moment."""
        proven = self.is_proven
        if not await self._open():
            return False
        if proven:
            await self._compare()
        self.look()  # opening takes its time
        self._stands = True
        self._gave_unproven = self._gave_unproven or not proven
        await self._out.send(self._fd, stop)
        return True

    async def _open(self) -> bool:
        """Have the file as it is now: after bytes were taken back, and when it is proven, it may be another."""
        wanted = (self.delivery.mark, self.delivery.state)
        if self._opened_as == wanted:
            return True
        seen: list[os.stat_result] = []

        def opening() -> int:
            fd = self.delivery.open()
            seen.append(os.fstat(fd))  # at once: later it may be what somebody made of it
            return fd

        try:
            fd = await open_by(self._disk, opening, _DISK_S)
        except FileNotFoundError:
            return False
        self.close()
        self._fd, self._opened_as = fd, wanted
        if wanted == (self.delivery.mark, DeliveryState.HERE) and seen[0].st_size == self.delivery.entry.size:
            self._on_proven(seen[0])
        return True

    async def _compare(self) -> None:
        """What the reader got from elsewhere with the proven file. Raises TakenBack."""
        while self._foreign:
            run, fd = self._foreign[-1], self._fd
            if not await self._disk.run(lambda: run.is_in(fd), _DISK_S):  # noqa: B023 - it is waited for
                raise TakenBack("the origin gave other bytes than the file has")
            self._foreign.pop()
