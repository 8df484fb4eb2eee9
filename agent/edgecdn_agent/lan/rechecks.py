"""Blobs that peers call rotten are read again: one at a time, each once in a while, however many complain.

Reading a blob costs the disk minutes, so only who was given it lately may call it rotten, and each of
them not often.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from edgecdn.digest import Digest

__all__ = ["Rechecks"]

_log = logging.getLogger(__name__)

_MOST_WAITING = 64
_MOST_REMEMBERED = 10_000
_MOST_GIVEN = 1000
"""Blobs remembered of one peer."""

_MOST_HOSTS = 1000
_LATELY_S = 600.0


class _Times:
    """When something was last, by key; of too many the oldest are forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._at_s: OrderedDict[object, float] = OrderedDict()

    def note(self, key: object, now_s: float) -> None:
        self._at_s[key] = now_s
        self._at_s.move_to_end(key)
        if len(self._at_s) > self._most:
            self._at_s.popitem(last=False)

    def is_within(self, key: object, now_s: float, limit_s: float) -> bool:
        at_s = self._at_s.get(key)
        return at_s is not None and now_s - at_s < limit_s


class Rechecks:
    """A queue of blobs to read again; `run` works it off."""

    def __init__(
        self, recheck: Callable[[Digest], Awaitable[bool]], pause_s: float, clock: Callable[[], float]
    ) -> None:
        self._recheck = recheck
        self._pause_s = pause_s
        self._clock = clock
        self._given: OrderedDict[str, _Times] = OrderedDict()
        self._asked = _Times(_MOST_REMEMBERED)
        self._asked_by = _Times(_MOST_HOSTS)
        self._waiting: asyncio.Queue[Digest] = asyncio.Queue(_MOST_WAITING)

    def given(self, host: str, digest: Digest) -> None:
        """A peer was given bytes of a blob, or its tree: it may call it rotten for a while."""
        given = self._given.setdefault(host, _Times(_MOST_GIVEN))
        self._given.move_to_end(host)
        given.note(digest, self._clock())
        if len(self._given) > _MOST_HOSTS:
            self._given.popitem(last=False)

    def ask(self, host: str, digest: Digest) -> None:
        """Have a blob read again, unless it or this peer had its turn just now, or it was never given to it."""
        now_s = self._clock()
        given = self._given.get(host)
        if given is None or not given.is_within(digest, now_s, _LATELY_S) or self._waiting.full():
            return
        if self._asked.is_within(digest, now_s, self._pause_s) or self._asked_by.is_within(host, now_s, self._pause_s):
            return
        self._asked.note(digest, now_s)
        self._asked_by.note(host, now_s)
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
