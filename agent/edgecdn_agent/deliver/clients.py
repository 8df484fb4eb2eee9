"""Connections to hubs that deliveries share: one set for each token, so that small files need no new ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgecdn.sources.http import ByteClient
from edgecdn.token_owner import token_key

__all__ = ["Clients"]

_KEPT_S = 30.0
"""An idle set, with the token in it, is kept for so long (seconds): tools take one small file after the other."""


@dataclass(slots=True)
class _Open:
    client: ByteClient
    users: int = 0
    idle_since: float = 0.0


class Clients:
    """`make(token, hub)` opens a set. On one event loop."""

    def __init__(
        self, make: Callable[[str | None, str], ByteClient], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._clock = clock
        self._open: dict[tuple[str, str], _Open] = {}

    @contextmanager
    def use(self, token: str | None, hub: str) -> Iterator[ByteClient]:
        """The set for a token (None: none) and a kind of hub."""
        key = token_key(token), hub
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = _Open(self._make(token, hub))
        found.users += 1
        try:
            yield found.client
        finally:
            found.users -= 1
            found.idle_since = self._clock()

    async def keep(self) -> None:
        """Close what is idle for long, until cancelled; then all."""
        try:
            while True:
                await asyncio.sleep(_KEPT_S / 2)
                await self._close(self._clock() - _KEPT_S)
        finally:
            await self._close(self._clock())

    async def _close(self, idle_since: float) -> None:
        idle = [key for key, it in self._open.items() if not it.users and it.idle_since <= idle_since]
        for made in [self._open.pop(key) for key in idle]:
            await made.client.close()
