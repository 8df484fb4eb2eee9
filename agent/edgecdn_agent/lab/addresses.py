"""This machine's network interfaces, and word of their changes and of sleep.

What is decided from them (which networks are private, which addresses to announce) are pure
functions of a snapshot; `AddressWatch` takes one every few seconds in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_interface, ip_network

import psutil

from edgecdn_agent.listeners import Listeners

__all__ = [
    "AddressWatch",
    "Clocks",
    "Interface",
    "MachineChanged",
    "Network",
    "announceable",
    "link_bytes_s",
    "private_networks",
    "read_clocks",
    "read_interfaces",
]

_log = logging.getLogger(__name__)

Network = IPv4Network | IPv6Network

_PRIVATE: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")
)
"""RFC 1918, link-local, unique local. Not 100.64.0.0/10: a provider's NAT is full of strangers."""

_VIRTUAL = re.compile(r"(docker|virbr|lxcbr|podman|cni)\d+\Z|br-[0-9a-f]{12}\Z")
"""Bridges to guests of this machine: every machine has the same addresses on them, so they say nothing to others."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface. `speed_bits_s` 0: unknown."""

    name: str
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    is_up: bool = True
    speed_bits_s: int = 0


@dataclass(frozen=True, slots=True)
class MachineChanged:
    """Addresses are other ones than before, or the machine slept (or this process was stopped) until now."""

    interfaces: tuple[Interface, ...]
    woke: bool


@dataclass(frozen=True, slots=True)
class Clocks:
    """Both count seconds since boot; only one goes on while the machine sleeps."""

    monotonic_s: float
    boottime_s: float


def read_interfaces() -> tuple[Interface, ...]:
    """What the machine has now. Blocking, milliseconds."""
    states = psutil.net_if_stats()
    found: list[Interface] = []
    for name, entries in sorted(psutil.net_if_addrs().items()):
        addresses = {_parse(entry.address, entry.netmask) for entry in entries if entry.family in _FAMILIES}
        state = states.get(name)
        found.append(
            Interface(
                name,
                tuple(sorted((a for a in addresses if a is not None), key=lambda a: (a.version, a))),
                state is not None and state.isup,
                state.speed * 1_000_000 if state is not None and state.speed > 0 else 0,
            )
        )
    return tuple(found)


_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _parse(address: str, netmask: str | None) -> IPv4Interface | IPv6Interface | None:
    """An address with its network; None for what the system should not have said."""
    try:
        host = ip_address(address.partition("%")[0])
        prefix = int(ip_address(netmask)).bit_count() if netmask else host.max_prefixlen
        return ip_interface(f"{host}/{prefix}")
    except ValueError:
        return None


def read_clocks() -> Clocks:
    """The two clocks, now."""
    boottime = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # Linux only
    return Clocks(time.monotonic(), time.clock_gettime(boottime))


def private_networks(interfaces: Iterable[Interface]) -> tuple[Network, ...]:
    """The private and link-local networks this machine is on, each once."""
    found: dict[Network, None] = {}
    for address in _addresses(interfaces):
        for block in _PRIVATE:
            common = _common(address.network, block)
            if common is not None and address.ip in common:
                found[common] = None
    return tuple(found)


def _common(first: Network, second: Network) -> Network | None:
    """The networks' common part: of two, one lies in the other or they are apart."""
    if not first.overlaps(second):
        return None
    return first if first.prefixlen >= second.prefixlen else second


def announceable(interfaces: Iterable[Interface], allows: Callable[[str], bool]) -> tuple[str, ...]:
    """Addresses under which others that are allowed reach this machine; loopback's only where there are no others."""
    told = [i for i in interfaces if not _VIRTUAL.match(i.name)]
    allowed = [a.ip for a in _addresses(told) if allows(str(a.ip))]
    return tuple(str(ip) for ip in [ip for ip in allowed if not ip.is_loopback] or allowed)


def link_bytes_s(interfaces: Iterable[Interface]) -> int | None:
    """The fastest link's speed, bytes per second; None where no interface that is up tells one."""
    speeds = [i.speed_bits_s for i in interfaces if i.is_up and i.addresses and not _VIRTUAL.match(i.name)]
    fastest = max(speeds, default=0)
    return fastest // 8 or None


def _addresses(interfaces: Iterable[Interface]) -> list[IPv4Interface | IPv6Interface]:
    return [address for interface in interfaces if interface.is_up for address in interface.addresses]


class AddressWatch(Listeners[MachineChanged]):
    """Takes a snapshot every `poll_s` and tells subscribers of what changed."""

    def __init__(
        self,
        interfaces: tuple[Interface, ...],
        read: Callable[[], tuple[Interface, ...]] = read_interfaces,
        clocks: Callable[[], Clocks] = read_clocks,
        poll_s: float = 5.0,
    ) -> None:
        super().__init__()
        self.interfaces = interfaces
        self._read = read
        self._clocks = clocks
        self._poll_s = poll_s
        self._last = clocks()

    async def run(self) -> None:
        """Watch until cancelled."""
        self._last = self._clocks()
        while True:
            await asyncio.sleep(self._poll_s)
            await self.look()

    async def look(self) -> None:
        """Take one snapshot now, and tell if it differs."""
        woke = self._has_slept()
        try:
            interfaces = await asyncio.to_thread(self._read)
        except OSError as error:
            _log.warning("network interfaces cannot be read: %s", error)
            interfaces = self.interfaces
        if not woke and interfaces == self.interfaces:
            return
        self.interfaces = interfaces
        self.tell(MachineChanged(interfaces, woke))

    def _has_slept(self) -> bool:
        before, now = self._last, self._clocks()
        self._last = now
        awake_s = now.monotonic_s - before.monotonic_s
        asleep_s = (now.boottime_s - before.boottime_s) - awake_s
        return asleep_s > _SLEPT_S or awake_s - self._poll_s > _FROZEN_S


_SLEPT_S = 5.0
"""Shorter sleeps break no connection."""

_FROZEN_S = 15.0
"""After as long without a sign of life, peers have given this process up."""
