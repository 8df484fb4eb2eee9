"""Asking for agents by multicast, as discovery does, from every interface of this machine that may have peers.

One question is sent (mDNS, from a port of its own, so that answers come straight back) and a second one in
case it was lost. Who answers says its id; that is all that is read of it.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network, ip_address

import psutil

__all__ = ["Heard", "ask_multicast"]

_GROUP = ("224.0.0.251", 5353)
_WAIT_S = 0.5
"""After each of the two questions; agents answer within 0.12 s."""

_MOST_AGENTS = 512

_QUESTION = struct.pack("!6H", 0, 0, 1, 0, 0, 0) + b"\x08_edgecdn\x04_tcp\x05local\x00" + struct.pack("!2H", 12, 1)
"""PTR of `_edgecdn._tcp.local.`"""

_INSTANCE = re.compile(rb"\x20([0-9a-f]{32})(?:\x08_edgecdn|\xc0)")
"""An agent's id as a label, followed by the service's name, or by a pointer to it."""

_PRIVATE = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"))


@dataclass(slots=True)
class Heard:
    """One interface and who answered there, by id; `fault`: why the question could not be sent."""

    interface: str
    network: IPv4Interface
    agents: set[str] = field(default_factory=set)
    fault: str = ""

    @property
    def address(self) -> str:
        """This machine's address there."""
        return str(self.network.ip)

    def is_near(self, host: str) -> bool:
        """Whether an address is another machine's, in the network of this interface."""
        try:
            ip = ip_address(host.partition("%")[0])
        except ValueError:
            return False
        return isinstance(ip, IPv4Address) and ip in self.network.network and ip != self.network.ip


async def ask_multicast(allow: Sequence[IPv4Network | IPv6Network]) -> list[Heard]:
    """Ask on every interface within reach; takes a second. `allow`: as the setting `lan.allow`."""
    found = _interfaces(allow)
    await asyncio.gather(*(_ask(one) for one in found))
    return found


def _interfaces(allow: Sequence[IPv4Network | IPv6Network]) -> list[Heard]:
    """IPv4 addresses of interfaces that are up and within reach; loopback's only where there are no others."""
    reach = [network for network in allow if isinstance(network, IPv4Network)] if allow else list(_PRIVATE)
    states = psutil.net_if_stats()
    found: list[Heard] = []
    for name, entries in sorted(psutil.net_if_addrs().items()):
        if name not in states or not states[name].isup:
            continue
        for entry in entries:
            if entry.family == socket.AF_INET:
                address = IPv4Interface(f"{entry.address}/{entry.netmask or 32}")
                if address.ip.is_loopback or any(address.ip in network for network in reach):
                    found.append(Heard(name, address))
    return [one for one in found if not one.network.ip.is_loopback] or found


async def _ask(heard: Heard) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        try:
            asking.bind((heard.address, 0))
            asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(heard.address))
            for _ in range(2):
                await loop.sock_sendto(asking, _QUESTION, _GROUP)
                await _listen(asking, heard)
        except OSError as error:
            heard.fault = error.strerror or type(error).__name__


async def _listen(asking: socket.socket, heard: Heard) -> None:
    """Take answers until the time is over."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_WAIT_S):
            while len(heard.agents) < _MOST_AGENTS:
                data = await loop.sock_recv(asking, 9000)
                heard.agents |= {found.decode() for found in _INSTANCE.findall(data)}
    except TimeoutError:
        return
