"""Counts what the swarm gives to whom: libtorrent's totals by connection, sampled, as bytes of peers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from edgecdn_agent.swarm.session import PeerTraffic, Swarm

__all__ = ["SwarmMeter"]

_EVERY_S = 1.0


class SwarmMeter:
    """`sent(address, count)` is told of bytes given since the last look, by address of the peer."""

    def __init__(self, swarm: Swarm, sent: Callable[[str, int], None]) -> None:
        self._swarm = swarm
        self._sent = sent
        self._seen: dict[tuple[int, str, int], int] = {}

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            if self._swarm.torrents:
                self.count(await asyncio.to_thread(self._swarm.traffic))

    def count(self, traffic: Iterable[tuple[int, PeerTraffic]]) -> None:
        """Tell what is new in a sample; connections that are gone are forgotten."""
        seen: dict[tuple[int, str, int], int] = {}
        for torrent, peer in traffic:
            key = (torrent, peer.address, peer.port)
            seen[key] = peer.up_bytes
            fresh = peer.up_bytes - self._seen.get(key, 0)
            if fresh > 0:
                self._sent(peer.address, fresh)
        self._seen = seen
