"""Seeds: blobs of this machine that the swarm gives, loaded when a peer asks and unloaded when nobody takes.

Thousands of blobs cost nothing at rest. A blob that is gone, or that no longer may be shared, is
withdrawn at once; one of which a wrong piece was seen is withdrawn and hashed again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgecdn.digest import Digest
from edgecdn.errors import EdgecdnError
from edgecdn_agent.holdings.shelf import Holding, Holdings
from edgecdn_agent.swarm.session import Seed, Swarm, Trouble

__all__ = ["Seeding"]

_log = logging.getLogger(__name__)

_IDLE_S = 120.0
"""A seed nobody was connected to for so long is unloaded."""

_TICK_S = 2.0

_MOST_LOADED = 128
"""Seeds at a time: each costs the session memory and an open file. The next one takes the place of another."""


@dataclass(slots=True)
class _Loaded:
    """A seed, the file it gives, and when somebody last took from it."""

    seed: Seed
    holding: Holding
    used_at: float
    is_taken: bool = False
    """Whether somebody was connected to it when it was looked at last."""
    troubles: list[Trouble] = field(default_factory=list)


class Seeding:
    """Loads and unloads seeds; `run` must be running."""

    def __init__(self, swarm: Swarm, holdings: Holdings, clock: Callable[[], float] = time.monotonic) -> None:
        self._swarm = swarm
        self._holdings = holdings
        self._clock = clock
        self._loaded: dict[Digest, _Loaded] = {}
        self._loading: dict[Digest, asyncio.Lock] = {}
        self._look = asyncio.Event()

    @property
    def count(self) -> int:
        """How many are loaded."""
        return len(self._loaded)

    async def ensure(self, digest: Digest) -> bool:
        """Have the swarm give a blob; False when this machine has it not, or may not."""
        async with self._loading.setdefault(digest, asyncio.Lock()):
            try:
                return await self._ensure(digest)
            finally:
                self._loading.pop(digest, None)

    async def run(self) -> None:
        """Unload what is idle, withdraw what is gone; until cancelled."""
        unsubscribe = self._holdings.subscribe(self._look.set)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        async with asyncio.timeout(_TICK_S):
                            await self._look.wait()
                    except TimeoutError:
                        pass
                    self._look.clear()
                    for digest in await self._review():
                        group.create_task(self._holdings.recheck(digest))
        finally:
            unsubscribe()
            for digest in list(self._loaded):
                await self._unload(digest)

    async def _ensure(self, digest: Digest) -> bool:
        holding = self._holdings.shared(digest)
        if holding is None or not self._swarm.port:
            return False
        loaded = self._loaded.get(digest)
        if loaded is not None:
            loaded.used_at = self._clock()
            return True
        tree = await self._holdings.tree(digest)
        if tree is None:
            return False
        troubles: list[Trouble] = []

        def on_trouble(trouble: Trouble) -> None:
            troubles.append(trouble)
            self._look.set()

        await self._make_room()
        try:
            seed = self._swarm.seed(digest, tree, holding.path.parent, on_trouble)
        except EdgecdnError:
            _log.exception("the swarm does not take %s", digest.hex[:12])
            return False
        self._loaded[digest] = _Loaded(seed, holding, self._clock(), troubles=troubles)
        return True

    async def _review(self) -> list[Digest]:
        """Look at every seed; returns what has to be hashed again."""
        now = self._clock()
        doubtful: list[Digest] = []
        for digest, loaded in list(self._loaded.items()):
            if loaded.troubles:
                _log.warning("the copy of %s is withdrawn: %s", digest.hex[:12], loaded.troubles[0].reason)
                await self._unload(digest)
                self._holdings.withdraw(digest)
                doubtful.append(digest)
            elif self._holdings.shared(digest) != loaded.holding:
                await self._unload(digest)
        loaded_now = list(self._loaded.items())
        taken = await asyncio.to_thread(lambda: [bool(loaded.seed.traffic()) for _, loaded in loaded_now])
        for (digest, loaded), is_taken in zip(loaded_now, taken, strict=True):
            loaded.is_taken = is_taken
            if is_taken:
                loaded.used_at = now
            elif now - loaded.used_at > _IDLE_S and self._loaded.get(digest) is loaded:
                await self._unload(digest)
        return doubtful

    async def _make_room(self) -> None:
        """For one more: the longest unused leaves, one that somebody is connected to only when all are."""
        while len(self._loaded) >= _MOST_LOADED:
            await self._unload(min(self._loaded, key=lambda digest: self._order(self._loaded[digest])))

    @staticmethod
    def _order(loaded: _Loaded) -> tuple[bool, float]:
        return loaded.is_taken, loaded.used_at

    async def _unload(self, digest: Digest) -> None:
        loaded = self._loaded.pop(digest, None)
        if loaded is not None:
            await loaded.seed.close()
