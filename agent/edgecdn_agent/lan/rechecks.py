"""Blobs that peers call rotten are read again: one at a time, each once in a while, however many complain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edgecdn.digest import Digest

__all__ = ["Rechecks"]

_log = logging.getLogger(__name__)

_MOST_WAITING = 64
_MOST_REMEMBERED = 10_000


class Rechecks:
    """A queue of blobs to read again; `run` works it off."""

    def __init__(
        self, recheck: Callable[[Digest], Awaitable[bool]], pause_s: float, clock: Callable[[], float]
    ) -> None:
        self._recheck = recheck
        self._pause_s = pause_s
        self._clock = clock
        self._asked_s: dict[Digest, float] = {}
        self._waiting: asyncio.Queue[Digest] = asyncio.Queue(_MOST_WAITING)

    def ask(self, digest: Digest) -> None:
        """Have a blob read again, unless it was asked for just now or too many wait."""
        now_s = self._clock()
        last_s = self._asked_s.get(digest)
        if self._waiting.full() or (last_s is not None and now_s - last_s < self._pause_s):
            return
        if len(self._asked_s) >= _MOST_REMEMBERED:
            self._asked_s.clear()
        self._asked_s[digest] = now_s
        self._waiting.put_nowait(digest)

    async def run(self) -> None:
        """Until cancelled. What a check raises is logged and ends nothing."""
        while True:
            digest = await self._waiting.get()
            try:
                right = await self._recheck(digest)
                _log.info("a peer called a blob rotten digest=%s is_rotten=%s", digest.hex[:12], not right)
            except Exception:  # noqa: BLE001 - logged; the next one is checked all the same
                _log.exception("a blob that a peer called rotten could not be checked digest=%s", digest.hex[:12])
