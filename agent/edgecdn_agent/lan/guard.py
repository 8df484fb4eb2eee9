"""How much one peer may ask of the LAN server, so that a single one, broken or hostile, leaves the others their part.

Peers are told apart by their address. An IPv4 address is not chosen freely, an IPv6 one is within its
/64: what is shared out among all (files sent, connections) is counted by that. Many addresses together
can use up everything that is limited in all: then everybody is told to come again. Decisions are
pure: the clock is handed in.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from aiohttp import web

__all__ = ["Bucket", "Connections", "Guard", "Limits", "Refused", "Watched"]

_MOST_PEERS = 1024
"""Addresses remembered; those that ask nothing are forgotten first."""

_LEAST_TAKEN_BYTES = 64 << 10
"""What a reader must take of a waiting answer within `Limits.stall_s`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed; per peer unless said otherwise. Rates are per second."""

    requests_at_once: int = 64
    streams: int = 128
    """Event streams: one for each agent at that address, and a lab on one machine has many."""
    request_rate: float = 200.0
    request_burst: float = 400.0
    digest_rate: float = 20_000.0
    digest_burst: float = 40_000.0
    connections: int = 256
    connections_in_all: int = 1024
    """Half of them for one IPv6 /64."""
    sends_in_all: int = 128
    """A quarter of them for one address (an IPv6 /64): loopback, where a whole lab may be, has no part of its own."""
    manifests: int = 2
    """Listings at once, likewise."""
    first_lines: int = 16
    """First lines of streams at once, likewise: each may be 2 MiB."""
    inline_bytes: int = 16 << 20
    """Of small files within answers that are not sent yet."""
    idle_s: float = 15.0
    """Without a whole request on a connection: it is closed."""
    body_s: float = 10.0
    """For a request's body to arrive."""
    stall_s: float = 20.0
    """For a reader to take nothing, before the connection is cut."""
    beat_s: float = 5.0
    change_s: float = 1.0
    """Between two tellings that something changed."""
    recheck_s: float = 60.0
    """Between two checks of the same blob because peers call it rotten."""


_LOOPBACK = "loopback"


@lru_cache(maxsize=4 * _MOST_PEERS)
def _party(host: str) -> str:
    """Who an address is taken for where parts of a whole are counted."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_loopback:
        return _LOOPBACK
    return address.packed[:8].hex() if isinstance(address, IPv6Address) else str(address)


class Refused(Exception):
    """Too much is asked; `retry_after_s` until it is worth asking again."""

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Bucket:
    """Something used at `rate` a second, `burst` of it at once after a pause."""

    rate: float
    burst: float
    left: float
    at_s: float

    def take(self, count: float, now_s: float) -> float:
        """Take `count` and return 0; or take nothing and return the seconds until it is there."""
        self.left = min(self.burst, self.left + (now_s - self.at_s) * self.rate)
        self.at_s = now_s
        wanted = min(count, self.burst)
        if wanted > self.left:
            return (wanted - self.left) / self.rate
        self.left -= wanted
        return 0.0


@dataclass(slots=True)
class _Use:
    """What one peer is using."""

    requests: Bucket
    digests: Bucket
    at_once: int = 0
    streams: int = 0
    few: Counter[str] = field(default_factory=Counter)
    inline_bytes: int = 0


class Guard:
    """Counts and refuses."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._uses: dict[str, _Use] = {}
        self._sends: Counter[str] = Counter()

    @contextmanager
    def request(self, host: str) -> Iterator[None]:
        """One request of a peer, while it lasts. Raises Refused."""
        use = self._use(host)
        wait_s = use.requests.take(1, self._clock())
        if wait_s:
            raise Refused(wait_s)
        if use.at_once >= self._limits.requests_at_once:
            raise Refused
        use.at_once += 1
        try:
            yield
        finally:
            use.at_once -= 1

    def spend(self, host: str) -> None:
        """One request of a peer, whatever it does at the same time. Raises Refused."""
        wait_s = self._use(host).requests.take(1, self._clock())
        if wait_s:
            raise Refused(wait_s)

    def refund(self, host: str, share: float) -> None:
        """A request was no burden, or only in part: who takes what it asked for may ask as fast as it takes."""
        self._use(host).requests.take(-share, self._clock())

    @contextmanager
    def stream(self, host: str) -> Iterator[None]:
        """One event stream of a peer, while it lasts. Raises Refused."""
        use = self._use(host)
        wait_s = use.requests.take(1, self._clock())
        if wait_s:
            raise Refused(wait_s)
        if use.streams >= self._limits.streams:
            raise Refused
        use.streams += 1
        try:
            yield
        finally:
            use.streams -= 1

    def digests(self, host: str, count: int) -> None:
        """A peer asks for so many digests. Raises Refused."""
        wait_s = self._use(host).digests.take(count, self._clock())
        if wait_s:
            raise Refused(wait_s)

    @contextmanager
    def few(self, host: str, what: str, most: int) -> Iterator[None]:
        """Something a peer may do `most` times at once. Raises Refused."""
        use = self._use(host)
        if use.few[what] >= most:
            raise Refused
        use.few[what] += 1
        try:
            yield
        finally:
            use.few[what] -= 1

    def manifest(self, host: str) -> AbstractContextManager[None]:
        """One listing that is sent to a peer. Raises Refused."""
        return nullcontext() if _party(host) == _LOOPBACK else self.few(host, "manifest", self._limits.manifests)

    def first_line(self, host: str) -> AbstractContextManager[None]:
        """One stream's first line, which may be long, until it is sent. Raises Refused."""
        return nullcontext() if _party(host) == _LOOPBACK else self.few(host, "first line", self._limits.first_lines)

    def inline_left(self, host: str) -> int:
        """How many bytes of small files may be put into an answer now."""
        return max(0, self._limits.inline_bytes - self._use(host).inline_bytes)

    @contextmanager
    def inline(self, host: str, count: int) -> Iterator[None]:
        """So many bytes of small files are in memory for a peer, until they are sent."""
        use = self._use(host)
        use.inline_bytes += count
        try:
            yield
        finally:
            use.inline_bytes -= count

    @contextmanager
    def send(self, host: str) -> Iterator[None]:
        """One of the files that are sent at a time, to all peers together. Raises Refused."""
        party, most = _party(host), self._limits.sends_in_all
        own = most if party == _LOOPBACK else max(1, most // 4)
        if self._sends.total() >= most or self._sends[party] >= own:
            raise Refused
        self._sends[party] += 1
        try:
            yield
        finally:
            self._sends[party] -= 1
            if not self._sends[party]:
                del self._sends[party]

    def _use(self, host: str) -> _Use:
        use = self._uses.pop(host, None)
        if use is None:
            limits, now = self._limits, self._clock()
            use = _Use(
                Bucket(limits.request_rate, limits.request_burst, limits.request_burst, now),
                Bucket(limits.digest_rate, limits.digest_burst, limits.digest_burst, now),
            )
            self._forget_idle()
        self._uses[host] = use  # the order is that of the last request
        return use

    def _forget_idle(self) -> None:
        if len(self._uses) < _MOST_PEERS:
            return
        for host in [host for host, use in self._uses.items() if not use.at_once + use.streams][: _MOST_PEERS // 2]:
            del self._uses[host]


class Connections:
    """The open connections: who may have one, and which are cut."""

    def __init__(self, limits: Limits, allows: Callable[[str], bool]) -> None:
        self._limits = limits
        self._allows = allows
        self._open: dict[Watched, str] = {}

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Watched, host: str) -> bool:
        """Whether one more of this host may be had; then it is counted."""
        if not self._allows(host) or len(self._open) >= self._limits.connections_in_all:
            return False
        if sum(other == host for other in self._open.values()) >= self._limits.connections:
            return False
        party = _party(host)
        if sum(_party(other) == party for other in self._open.values()) >= max(1, self._limits.connections_in_all // 2):
            return False
        self._open[connection] = host
        return True

    def leave(self, connection: Watched) -> None:
        """It is closed."""
        self._open.pop(connection, None)

    def sweep(self, now_s: float) -> None:
        """Cut those whose readers take nothing of what waits for them, and those of who is no peer any more."""
        for connection, host in list(self._open.items()):
            if connection.is_stuck(now_s, self._limits.stall_s) or not self._allows(host):
                connection.abort()


class Watched(asyncio.Protocol):
    """A connection: everything is passed on to aiohttp's handler, once the peer is admitted."""

    def __init__(self, inner: web.RequestHandler, connections: Connections) -> None:
        self._inner = inner
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._waiting_bytes = 0
        self._since_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        peer = transport.get_extra_info("peername")
        if not peer or not self._connections.admit(self, str(peer[0])):
            transport.abort()
            return
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._inner.data_received(data)

    def eof_received(self) -> None:
        if self._transport is not None:
            self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._connections.leave(self)
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def is_stuck(self, now_s: float, limit_s: float) -> bool:
        """Whether what waits to be sent has not got shorter for `limit_s`."""
        waiting = 0 if self._transport is None else self._transport.get_write_buffer_size()
        if not waiting or self._since_s is None or waiting <= self._waiting_bytes - _LEAST_TAKEN_BYTES:
            self._waiting_bytes, self._since_s = waiting, now_s
            return False
        self._waiting_bytes = max(self._waiting_bytes, waiting)
        return now_s - self._since_s >= limit_s

    def abort(self) -> None:
        """Cut it; what is unsent is dropped."""
        if self._transport is not None:
            self._transport.abort()
