"""Counts what the swarm gives to whom: libtorrent's totals by connection, sampled, as bytes of peers.

A connection that ended between two samples is not in the second one; what it took since the first is the
rest between its torrent's total and what was told of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from edgecdn_agent.swarm.session import PeerTraffic, Swarm

__all__ = ["SwarmMeter"]

_EVERY_S = 1.0

_Connection = tuple[int, str, int]


class SwarmMeter:
    """`sent(address, count)` is told of bytes given since the last look, by address of the peer ("": not known)."""

    def __init__(self, swarm: Swarm, sent: Callable[[str, int], None]) -> None:
        self._swarm = swarm
        self._sent = sent
        self._seen: dict[_Connection, int] = {}
        self._told: Counter[int] = Counter()

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            if self._swarm.torrents:
                # In this order: what is given between the two is then no rest, but told of a connection.
                given = await asyncio.to_thread(self._swarm.given)
                self.count(given, await asyncio.to_thread(self._swarm.traffic))

    def count(self, given: Mapping[int, int], traffic: Iterable[tuple[int, PeerTraffic]]) -> None:
        """Tell what is new in a sample: `given` in all by torrent, and by connection."""
        seen: dict[_Connection, int] = {}
        for torrent, peer in traffic:
            key = (torrent, peer.address, peer.port)
            seen[key] = peer.up_bytes
            self._tell(torrent, peer.address, peer.up_bytes - self._seen.get(key, 0))
        for torrent, total in given.items():
            gone = {address for number, address, port in self._seen if number == torrent} - {
                address for number, address, port in seen if number == torrent
            }
            self._tell(torrent, gone.pop() if len(gone) == 1 else "", total - self._told[torrent])
        self._seen = seen
        self._told = Counter({torrent: self._told[torrent] for torrent in given})

    def _tell(self, torrent: int, address: str, count: int) -> None:
        if count > 0:
            self._told[torrent] += count
            self._sent(address, count)
