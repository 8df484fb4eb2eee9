"""How fast one peer gives: bytes of no meaning over HTTP, for a few seconds, like iperf.

Only from the peer to this machine; the other way is measured from there. The peer's `limits.upload` holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from edgecdn.agent_link import AgentLink, find_agent
from edgecdn.control import PeerInfo
from edgecdn.errors import AgentNotRunning, BadInput, Unreachable
from edgecdn.lan_wire import BASE_PATH, PROTOCOL, PROTOCOL_HEADER, format_address, parse_address
from edgecdn.settings import Settings

__all__ = ["Speed", "measure_speed"]

_CONNECTIONS = (1, 4)
_MEASURED_S = 2.0
_WARM_UP_S = 0.3
"""What comes first is not counted: connections grow into their speed."""

_REQUEST_BYTES = 256 << 20
"""The most a peer gives at once; one that is faster is asked again."""

_SILENCE_S = 5.0
_HINT = "On that machine: does its agent run (`edgecdn agent status`), and does its firewall let this port in?"


@dataclass(frozen=True, slots=True)
class Speed:
    """What came from a peer. `rates`: connections to bytes per second."""

    peer: str
    address: str
    rates: dict[int, int]

    @property
    def best(self) -> int:
        """Bytes per second with as many connections as serve best."""
        return max(self.rates.values())


def measure_speed(settings: Settings, wanted: str) -> Speed:
    """Measure `wanted`: a peer's name, the beginning of its id, or HOST:PORT of its LAN server.

    Raises AgentNotRunning, BadInput, Unreachable.
    """
    return asyncio.run(_measure(settings, wanted))


async def _measure(settings: Settings, wanted: str) -> Speed:
    name, host, port = await _find(settings, wanted)
    address = format_address(host, port)
    rates: dict[int, int] = {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
        for count in _CONNECTIONS:
            rates[count] = await _rate(session, address, count)
    return Speed(name, address, rates)


async def _find(settings: Settings, wanted: str) -> tuple[str, str, int]:
    try:
        return (wanted, *parse_address(wanted))
    except BadInput:
        pass
    agent = find_agent(settings.home)
    if agent is None:
        raise AgentNotRunning
    async with AgentLink(agent) as link:
        peer = _named(await link.peers(), wanted)
    return peer.name, peer.host, peer.lan_port


def _named(known: Sequence[PeerInfo], wanted: str) -> PeerInfo:
    found = [p for p in known if p.name == wanted] or [p for p in known if wanted and p.id.startswith(wanted)]
    if len(found) != 1 or not found[0].lan_port:
        names = ", ".join(peer.name for peer in known) or "none"
        raise BadInput(
            f"{wanted} is not the name or id of one peer; known: {names}",
            hint="Type one of them, or the HOST:PORT of its LAN server; `edgecdn peers` lists them.",
        )
    return found[0]


async def _rate(session: aiohttp.ClientSession, address: str, count: int) -> int:
    """Bytes per second over `count` connections at a time."""
    came = [0]
    try:
        async with asyncio.TaskGroup() as group:
            takers = [group.create_task(_take(session, address, came)) for _ in range(count)]
            await asyncio.sleep(_WARM_UP_S)
            began_bytes, began = came[0], time.monotonic()
            await asyncio.sleep(_MEASURED_S)
            rate = (came[0] - began_bytes) / (time.monotonic() - began)
            for taker in takers:
                taker.cancel()
    except* (aiohttp.ClientError, OSError) as errors:  # TimeoutError is an OSError
        first = errors.exceptions[0]
        raise Unreachable(f"{address}: {str(first) or type(first).__name__}", hint=_HINT) from first
    return round(rate)


async def _take(session: aiohttp.ClientSession, address: str, came: list[int]) -> None:
    url = f"http://{address}{BASE_PATH}/speed?bytes={_REQUEST_BYTES}"
    while True:
        async with session.get(url, headers={PROTOCOL_HEADER: str(PROTOCOL)}, allow_redirects=False) as answer:
            answer.raise_for_status()
            async for piece in answer.content.iter_any():
                came[0] += len(piece)
