"""With whom this agent speaks at all: LAN server, swarm and connections out ask here first.

By default the private networks this machine is on, loopback, and the agents the user named. A
workstation with a public campus address so serves nobody outside, whatever its listeners are bound to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)

from edgecdn_agent.lab.addresses import Interface, Network, private_networks
from edgecdn_agent.listeners import Listeners

__all__ = ["Reach", "parse_ip"]

_LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_LONGEST_ADDRESS = 64
"""Characters; the longest IPv6 text with a scope is 61."""


class Reach(Listeners[None]):
    """Who is near enough to be a peer. `allow` not empty: exactly those networks, and loopback.

    Subscribers are told when it is another reach than before.
    """

    def __init__(self, allow: Sequence[Network] = (), interfaces: Iterable[Interface] = ()) -> None:
        super().__init__()
        self._allow = tuple(allow)
        self._networks: tuple[Network, ...] = ()
        self._on_link: tuple[Network, ...] = ()
        self._named: dict[str, tuple[Network, ...]] = {}
        self.update(interfaces)

    def update(self, interfaces: Iterable[Interface]) -> None:
        """The machine's addresses are these now."""
        self._on_link = private_networks(interfaces)
        self._collect()

    def name(self, host: str, addresses: Iterable[str]) -> None:
        """An agent the user named (`discovery.peers`) has these addresses now."""
        found = [ip for ip in map(parse_ip, addresses) if ip is not None]
        self._named[host] = tuple(ip_network(ip) for ip in found)
        self._collect()

    def allows(self, address: str) -> bool:
        """Whether an IP address, as text, is near enough; anything else never is."""
        ip = parse_ip(address)
        return ip is not None and any(ip in network for network in self._networks)

    def ranges(self) -> list[tuple[str, str]]:
        """First and last address of each range that is allowed; all others are not."""
        four: list[Network] = list(collapse_addresses(n for n in self._networks if isinstance(n, IPv4Network)))
        six: list[Network] = list(collapse_addresses(n for n in self._networks if isinstance(n, IPv6Network)))
        return [(str(n.network_address), str(n.broadcast_address)) for n in four + six]

    def _collect(self) -> None:
        named = [network for networks in self._named.values() for network in networks]
        found = dict.fromkeys([*_LOOPBACK, *(self._allow or (*self._on_link, *named))])
        if tuple(found) != self._networks:
            self._networks = tuple(found)
            self.tell(None)


def parse_ip(text: str) -> IPv4Address | IPv6Address | None:
    """An address without its scope; IPv4 written as IPv6 is IPv4. None for anything else."""
    if len(text) > _LONGEST_ADDRESS:
        return None
    try:
        ip = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip
