"""Where a redirect may lead. Pure; no I/O.

A public hub (or who speaks in its name) must not make a workstation ask its own services, its
neighbours or a cloud's metadata address: a redirect may go to public addresses, or to addresses of
the same kind as the hub's own, and never from https down to http.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from socket import inet_aton, inet_ntoa
from urllib.parse import urlsplit

__all__ = ["Reach", "may_lead", "may_redirect", "reach_of"]

_NAT64 = IPv6Network("64:ff9b::/96")


class Reach(StrEnum):
    """How far away an address is."""

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    RESERVED = "reserved"


def reach_of(address: str) -> Reach:
    """The reach of a numeric address; IPv4 inside IPv6 (mapped, 6to4, NAT64) counts as that IPv4.

    Raises ValueError when the text is no address.
    """
    ip = _unwrap(ip_address(address.split("%", maxsplit=1)[0]))
    if ip.is_loopback:
        return Reach.LOOPBACK
    if ip.is_link_local:
        return Reach.LINK_LOCAL
    if ip.is_unspecified or ip.is_multicast or ip.is_reserved:
        return Reach.RESERVED
    site_local = isinstance(ip, IPv6Address) and ip.is_site_local  # deprecated, and not in what is_global knows
    return Reach.PUBLIC if ip.is_global and not site_local else Reach.PRIVATE


def may_redirect(hub: Iterable[Reach], target: Iterable[Reach]) -> bool:
    """Whether a hub at addresses of `hub` may send us to addresses of `target` (all of them)."""
    allowed = {Reach.PUBLIC, *hub} - {Reach.RESERVED}
    reached = set(target)
    return bool(reached) and reached <= allowed


def may_lead(hub: str, target: str) -> bool:
    """Whether a client may be handed on from one web address to another, as far as can be told without name look-ups.

    Never from https to plain http, nor to a host of this machine or a private network by its number or `localhost`,
    unless the hub is at one of the same kind.
    """
    start, end = urlsplit(hub), urlsplit(target)
    if end.scheme not in ("https", "http") or not end.hostname or "\\" in target:  # some read it as a slash
        return False
    if start.scheme == "https" and end.scheme != "https":
        return False
    return may_redirect([_reach_by_name(start.hostname or "")], [_reach_by_name(end.hostname)])


def _reach_by_name(host: str) -> Reach:
    """A name counts as public: who asks for it looks it up, and is where it would be without us."""
    plain = host.rstrip(".")
    if plain == "localhost" or plain.endswith(".localhost"):
        return Reach.LOOPBACK
    try:
        return reach_of(plain)
    except ValueError:
        pass
    try:
        return reach_of(inet_ntoa(inet_aton(plain)))  # 2130706433, 0x7f.1, 127.1: clients take them for addresses
    except (OSError, ValueError):
        return Reach.PUBLIC


def _unwrap(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped or ip.sixtofour:
            return ip.ipv4_mapped or ip.sixtofour or ip
        if ip in _NAT64:
            return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip
