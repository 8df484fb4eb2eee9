"""Finding agents on the same network by multicast DNS; the only module that knows zeroconf.

What is heard is a hint and nothing more: an address that `Peers` may look at. Without multicast, or
without an interface, the agent goes on with what the user named and what peers tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

from zeroconf import DNSQuestionType, ServiceStateChange, Zeroconf
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from edgecdn_agent.lab.addresses import Interface, announceable
from edgecdn_agent.lab.reach import parse_ip

__all__ = ["SERVICE_TYPE", "Announcement", "Discovery"]

_log = logging.getLogger(__name__)

SERVICE_TYPE = "_edgecdn._tcp.local."
_INSTANCE = re.compile(r"[0-9a-f]{32}\._edgecdn\._tcp\.local\.\Z", re.IGNORECASE)

_MOST_INSTANCES = 512
"""Names remembered, and names that wait for an address: beyond that somebody makes them up; the oldest go."""

_MOST_ADDRESSES = 8
"""Addresses believed of one name."""

_RESOLVERS = 4
_RESOLVE_MS = 1500
"""How long the address of a name is asked for, when it did not come with the name."""

_REMIND_S = 60.0
"""What mDNS still holds is suggested again so often: after a network was cut in two and healed, it says nothing new."""

_GROUP = socket.inet_aton("224.0.0.251")
_GROUP_6_TEXT = "ff02::fb"
_GROUP_6 = socket.inet_pton(socket.AF_INET6, _GROUP_6_TEXT)
_MDNS_PORT = 5353
_STOP_S = 1.0
_FIRST_RETRY_S = 2.0
_LONGEST_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is told to everybody in hearing. `listen_host`: where the LAN server is bound; ports are the real ones."""

    id: str
    name: str
    version: str
    listen_host: str
    lan_port: int
    swarm_port: int


class Discovery:
    """Announces this agent and passes on what others announce, on interfaces within reach.

    `suggest(host, port)` is called on the loop; `allows` is the reach.
    """

    def __init__(
        self,
        me: Announcement,
        suggest: Callable[[str, int], None],
        allows: Callable[[str], bool],
        interfaces: Iterable[Interface],
    ) -> None:
        self.is_working = False
        self._me = me
        self._suggest = suggest
        self._allows = allows
        self._interfaces = tuple(interfaces)
        self._renew = asyncio.Event()
        self._failures = 0
        self._instances: dict[str, None] = {}
        self._unresolved: asyncio.Queue[str] = asyncio.Queue(_MOST_INSTANCES)

    def update(self, interfaces: Iterable[Interface]) -> None:
        """The machine's addresses are these now, or it slept: announce and ask anew."""
        self._interfaces = tuple(interfaces)
        self._failures = 0
        self._renew.set()

    async def run(self) -> None:
        """Announce and listen until cancelled."""
        while True:
            self._renew.clear()
            try:
                await self._session()
            except (OSError, RuntimeError, ValueError, TimeoutError, ZeroconfError, asyncio.InvalidStateError) as error:
                self._failures += 1
                level = logging.WARNING if self._failures == 1 else logging.DEBUG
                _log.log(level, "no discovery by mDNS: %s: %s", type(error).__name__, str(error)[:200])
                pause_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 8))
                await _wait(self._renew, pause_s)

    async def _session(self) -> None:
        """One life of zeroconf: from here until the addresses change."""
        addresses = _multicast_addresses(self._interfaces, self._allows)
        if not addresses:
            raise OSError("no interface within reach is up")
        async with _zeroconf(addresses) as zeroconf:
            announcing = await zeroconf.async_register_service(self._service(), cooperating_responders=True)
            browser = AsyncServiceBrowser(
                zeroconf.zeroconf,
                SERVICE_TYPE,
                handlers=[self._noticed],
                # Multicast questions only: a unicast answer reaches just one of several agents on a machine.
                question_type=DNSQuestionType.QM,
            )
            self._failures, self.is_working = 0, True
            try:
                await self._listen(zeroconf.zeroconf, announcing)
            finally:
                self.is_working = False
                await _within(browser.async_cancel(), _STOP_S / 4)

    async def _listen(self, zeroconf: Zeroconf, announcing: Awaitable[None]) -> None:
        """Resolve names until told to begin anew; meanwhile the announcement is repeated."""
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(self._resolve_all(zeroconf)) for _ in range(_RESOLVERS)]
            workers.append(group.create_task(self._remind(zeroconf)))
            workers.append(group.create_task(_quietly(announcing)))
            await self._renew.wait()
            for worker in workers:
                worker.cancel()

    def _service(self) -> AsyncServiceInfo:
        """Our own entry. `run` differs each time, so that a restart is news to those who still remember us."""
        me = self._me
        told = announceable(self._interfaces, lambda a: self._allows(a) and _is_served(a, me.listen_host))
        return AsyncServiceInfo(
            SERVICE_TYPE,
            f"{me.id}.{SERVICE_TYPE}",
            port=me.lan_port,
            addresses=[ipaddress.ip_address(a).packed for a in told],
            properties={
                "id": me.id,
                "version": me.version,
                "lan": str(me.lan_port),
                "swarm": str(me.swarm_port),
                "run": secrets.token_hex(4),
            },
            server=f"{_host_label(me.name)}-{me.id[:8]}.local.",
        )

    def _noticed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Zeroconf heard of a name; anyone on the network can make it up."""
        del service_type
        if not _INSTANCE.match(name) or name.lower().startswith(self._me.id):
            return
        self._instances.pop(name, None)
        if state_change is ServiceStateChange.Removed:
            return
        self._instances[name] = None
        if len(self._instances) > _MOST_INSTANCES:
            del self._instances[next(iter(self._instances))]
        self._look_up(zeroconf, name)

    def _look_up(self, zeroconf: Zeroconf, name: str) -> None:
        """Agents say their address with their name; only what was heard of without one waits to be asked for."""
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        if info.load_from_cache(zeroconf):
            self._pass_on(info)
        else:
            self._enqueue(name)

    def _enqueue(self, name: str) -> None:
        with contextlib.suppress(asyncio.QueueFull):  # it is reminded of later
            self._unresolved.put_nowait(name)

    async def _remind(self, zeroconf: Zeroconf) -> None:
        while True:
            await asyncio.sleep(_REMIND_S)
            for name in list(self._instances):
                self._look_up(zeroconf, name)

    async def _resolve_all(self, zeroconf: Zeroconf) -> None:
        while True:
            info = AsyncServiceInfo(SERVICE_TYPE, await self._unresolved.get())
            if await info.async_request(zeroconf, _RESOLVE_MS, DNSQuestionType.QM):
                self._pass_on(info)

    def _pass_on(self, info: AsyncServiceInfo) -> None:
        port = info.port or 0
        for address in info.parsed_scoped_addresses()[:_MOST_ADDRESSES]:
            self._suggest(address, port)


def _multicast_addresses(interfaces: Iterable[Interface], allows: Callable[[str], bool]) -> list[str]:
    """Where to speak: every address within reach, and one of IPv6 for each interface. Loopback too."""
    found: list[str] = []
    for interface in (i for i in interfaces if i.is_up):
        near = [str(a.ip) for a in interface.addresses if allows(str(a.ip))]
        texts = [text for text in near if _is_usable(text, interface.name)]
        found += [text for text in texts if ":" not in text]
        # Link-local first: it is what other machines' answers are sent to.
        found += sorted((text for text in texts if ":" in text), key=lambda t: not t.startswith("fe80:"))[:1]
    return list(dict.fromkeys(found))


def _is_usable(address: str, interface: str) -> bool:
    """Whether the system speaks at this address now; zeroconf fails as a whole over one that has gone."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            if ":" in address:
                index = socket.if_nametoindex(interface)
                probe.bind((address, 0, 0, index))
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, _GROUP_6 + struct.pack("@I", index))
                probe.connect((_GROUP_6_TEXT, _MDNS_PORT, 0, index))  # sends nothing; fails where no route leads there
            else:
                probe.bind((address, 0))
                probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _GROUP + socket.inet_aton(address))
    except OSError:
        return False
    return True


@contextlib.asynccontextmanager
async def _zeroconf(addresses: list[str]) -> AsyncIterator[AsyncZeroconf]:
    """Zeroconf on these addresses; on IPv4 alone where IPv6 does not work. Says goodbye at the end."""
    try:
        zeroconf = AsyncZeroconf(interfaces=list(addresses))
    except (OSError, RuntimeError):
        four = [address for address in addresses if ":" not in address]
        if not four or len(four) == len(addresses):
            raise
        zeroconf = AsyncZeroconf(interfaces=list(four))
    try:
        await zeroconf.zeroconf.async_wait_for_start()
        yield zeroconf
    finally:
        await _within(zeroconf.async_close(), _STOP_S * 3 / 4)


async def _within(work: Awaitable[None], limit_s: float) -> None:
    """Clean up, but not for long, and whatever fails in it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await _quietly(work)


async def _quietly(work: Awaitable[None]) -> None:
    with contextlib.suppress(OSError, RuntimeError, ZeroconfError):
        await work


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await event.wait()


def _is_served(address: str, listen_host: str) -> bool:
    """Whether a server bound to `listen_host` answers at `address`; of a name nobody knows, so it is tried."""
    listen = parse_ip(listen_host)
    if listen is None:
        return True
    return listen.version == (6 if ":" in address else 4) if listen.is_unspecified else str(listen) == address


def _host_label(name: str) -> str:
    """A host name as one DNS label."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "agent"
