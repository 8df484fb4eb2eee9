"""HTTP for bytes: one session, redirects followed by hand, addresses checked after resolution.

The token goes only to the origin (scheme, host, port) it belongs to, whatever redirects say; a
redirect goes only where `edgecdn.sources.reach` lets it. Name look-ups are remembered, so that
the address that was checked is the one that is connected to.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from edgecdn.lately import Lately
from edgecdn.sources.answers import refuse_status
from edgecdn.sources.faults import Broken, Misbehaved
from edgecdn.sources.kept import Kept
from edgecdn.sources.own_thread import in_own_thread
from edgecdn.sources.reach import Reach, may_redirect, reach_of
from edgecdn.version import VERSION

__all__ = ["STALL_S", "ByteClient", "Credentials"]

STALL_S = 20.0
"""No byte for this long on a connection is a fault (seconds)."""

_CONNECT_S = 10.0
_NUMERIC = socket.AI_NUMERICHOST
_JSON_S = 30.0
_MOST_JSON_BYTES = 64 << 20
_HOPS = 5
"""Most redirects followed for one request."""

_READ_BUFFER_BYTES = 256 << 10
_MOST_IN_FLIGHT_BYTES = 2 << 20
"""Window of one connection: what a crash or a split loses of it. 16 of them carry 1 Gbit/s over 250 ms."""

_LOOKUP_MEMORY_S = 60.0
_MOST_LOOKUPS = 256
"""Storage hosts that hubs redirect to may have many names."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Credentials:
    """A token and the one hub it belongs to. Never shown by `repr`. `cookie`: its name where one is wanted too."""

    endpoint: str
    token: str = field(repr=False)
    cookie: str = ""

    def headers_for(self, url: URL) -> dict[str, str]:
        """What authorises a request for `url`: nothing for any other origin."""
        if URL(self.endpoint).origin() != url.origin():
            return {}
        cookie = {"Cookie": f"{self.cookie}={self.token}"} if self.cookie else {}
        return {"Authorization": f"Bearer {self.token}", **cookie}


class RememberingResolver(AbstractResolver):
    """Name look-ups by the system, kept for a minute."""

    def __init__(self) -> None:
        self._known: Lately[list[ResolveResult]] = Lately(_LOOKUP_MEMORY_S, most=_MOST_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        known = self._known.get((host, port))
        if known is None:
            known = await self._look_up(host, port)
            self._known.put((host, port), known)
        return [r for r in known if family in (socket.AF_UNSPEC, r["family"])]

    async def close(self) -> None:
        """Nothing is held open."""

    @staticmethod
    async def _look_up(host: str, port: int) -> list[ResolveResult]:
        """Ask the system, in a thread that a hanging name server does not keep us waiting for."""

        def ask() -> list[ResolveResult]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            return [
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=port,
                    family=family,
                    proto=proto,
                    flags=_NUMERIC,
                )
                for family, _, proto, _, address in found
            ]

        try:
            return await in_own_thread(ask, _CONNECT_S)
        except TimeoutError as error:
            raise OSError(None, f"the name {host} is not answered for") from error
        except UnicodeError as error:  # a label of more than 63 characters, an empty one
            raise OSError(None, f"{host[:80]} is no name") from error


class ByteClient:
    """GET and HEAD requests for file bytes. One per job, or for jobs with the same rights; close it at the end.

    `kept`: what sources asked of their servers through it.
    """

    def __init__(self, credentials: Sequence[Credentials] = (), *, resolver: AbstractResolver | None = None) -> None:
        self.kept = Kept()
        self._credentials = credentials
        self._resolver = resolver or RememberingResolver()
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def get(
        self, url: URL, headers: dict[str, str]
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, list[aiohttp.ClientResponse]]]:
        """The final answer, and the redirects that led to it (closed; for their headers).

        Raises Broken for anything the network does, Misbehaved for a redirect that is refused.
        """
        hops: list[aiohttp.ClientResponse] = []
        start = url
        while True:
            async with self._request(url, headers) as response:
                if response.status not in _REDIRECTS:
                    yield response, hops
                    return
                hops.append(response)
                url = await self._next_hop(start, response, len(hops))

    async def get_json(self, url: URL) -> Any:
        """A small JSON document (at most 64 MiB, within 30 s).

        Raises the fault of an error status, Broken for what is no JSON, as `get` else.
        """
        async with asyncio.timeout(_JSON_S), self.get(url, {}) as (response, _):
            refuse_status(response.status, response.headers, datetime.now(tz=UTC))
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > _MOST_JSON_BYTES:
                    raise Misbehaved("answers with more than a listing can be")
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Broken("answers something that is not JSON (a login page of this network?)") from error

    async def check_reach(self, hub: URL, target: URL) -> None:
        """Raise Misbehaved when `hub` may not send us to `target`."""
        if target.origin() != hub.origin() and get_proxy(target) is None:
            from_hub, reached = await asyncio.gather(self._reach(hub), self._reach(target))
            if not may_redirect(from_hub, reached):
                where = ", ".join(sorted({r.value for r in reached}))
                raise Misbehaved(f"redirects to the {where} address of {target.host}, which is refused")

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self._resolver.close()

    @asynccontextmanager
    async def _request(self, url: URL, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        sent = {"Accept-Encoding": "identity", **headers}
        for own in self._credentials:
            sent |= own.headers_for(url)
        try:
            async with await self._send(url, sent) as response:
                yield response
        except TimeoutError as error:
            raise Broken(f"gave no byte for {STALL_S:.0f} s") from error
        except aiohttp.ClientError as error:
            raise Broken(_reason(error)) from error
        except OSError as error:
            raise Broken(error.strerror or type(error).__name__) from error

    async def _send(self, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        try:
            return await self._open_session().get(url, headers=headers, allow_redirects=False, proxy=get_proxy(url))
        except ValueError as error:  # aiohttp's InvalidURL too: an impossible host, a user in the URL beside a token
            raise Misbehaved(f"leads to an address that cannot be asked ({type(error).__name__})") from error

    async def _next_hop(self, start: URL, response: aiohttp.ClientResponse, hop: int) -> URL:
        if hop > _HOPS:
            raise Misbehaved(f"redirects more than {_HOPS} times")
        try:
            target = response.url.join(URL(response.headers.get("Location", ""), encoded=True))
            is_web = target.scheme in ("http", "https") and bool(target.host) and target.port != 0
        except ValueError as error:
            raise Misbehaved("redirects to something that is no URL") from error
        if not is_web or target == response.url:
            raise Misbehaved("redirects to something that is no web address")
        if start.scheme == "https" and target.scheme != "https":
            raise Misbehaved(f"redirects from https to plain http at {target.host}")
        await self.check_reach(start, target)
        return target

    async def _reach(self, url: URL) -> list[Reach]:
        host = url.host or ""
        try:
            return [reach_of(host)]
        except ValueError:
            pass
        try:
            return [reach_of(found["host"]) for found in await self._resolver.resolve(host, url.port or 0)]
        except OSError as error:
            raise Broken(f"the name {host[:80]} does not resolve") from error

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=0, resolver=self._resolver, use_dns_cache=False, socket_factory=_small_window
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=STALL_S),
                headers={"User-Agent": f"edgecdn/{VERSION}"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_READ_BUFFER_BYTES,
                trust_env=False,  # it would send what ~/.netrc says to every host; proxies: `get_proxy`
            )
        return self._session


def _small_window(address: AddrInfoType) -> socket.socket:
    """A socket that lets no more than `_MOST_IN_FLIGHT_BYTES` be on their way.

    A clamp, not a buffer size: that would end the kernel's own tuning and be cut to rmem_max.
    """
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    clamp = getattr(socket, "TCP_WINDOW_CLAMP", None)  # Linux
    if clamp is not None:
        made.setsockopt(socket.IPPROTO_TCP, clamp, _MOST_IN_FLIGHT_BYTES)
    return made


def get_proxy(url: URL) -> URL | None:
    """The http proxy the environment names for `url`, if any: then the proxy resolves names, not we.

    A user and password for it are taken from its URL, never from ~/.netrc. Raises ValueError for
    what is no URL.
    """
    named = getproxies().get(url.scheme)
    if not named or not url.host or proxy_bypass(url.host):
        return None
    proxy = URL(named if "://" in named else f"http://{named}")
    return proxy if proxy.scheme == "http" and proxy.host else None


def _reason(error: aiohttp.ClientError) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"the name {error.host} does not resolve"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot be connected to ({error.strerror or error.os_error})"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "ended its answer early"
    return f"broke off ({type(error).__name__})"
