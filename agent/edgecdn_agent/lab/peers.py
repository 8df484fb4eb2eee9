"""The agents of the lab that are there now.

Every hint (mDNS, other agents, whoever asked us for something, the user) is an address and nothing
more; the agent that answers there on its LAN port says who it is. One link is kept to each peer: when
it ends, the peer is gone, and its address is tried again for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from aiohttp import ClientSession

from edgecdn.errors import BadInput
from edgecdn.lan_wire import MOST_PEERS, Asker, Hello, LanEvent, format_address, parse_address
from edgecdn.settings_values import Listen
from edgecdn_agent.lab.candidates import Candidate, Candidates, Timing
from edgecdn_agent.lab.links import Greeting, Link, LinkLost, OtherProtocol
from edgecdn_agent.lab.reach import Reach, parse_ip
from edgecdn_agent.listeners import Listeners

__all__ = ["Peer", "PeerChanged", "PeerEvent", "PeerJoined", "PeerLeft", "Peers"]

_log = logging.getLogger(__name__)

_DIALS = 64
"""Connections that are being made at a time: a burst of hints is no burst of sockets."""

_MOST_REMEMBERED = 1024
"""Addresses noted as our own, or as refused, and peers that left: more would be an attack."""

_OTHER_ADDRESSES = 8
"""Addresses remembered of one peer; a machine has a few."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An agent that is there. `host` and `lan_port`: where it is reached; `last_seen`: monotonic seconds."""

    id: str
    name: str
    version: str
    host: str
    lan_port: int
    swarm_port: int
    addresses: tuple[str, ...]
    clock_offset_s: float
    last_seen: float

    @property
    def machine(self) -> str:
        """What several ids of one owner share, to count and to ban by: ids and ports can be had for nothing.

        The host; on loopback, where all agents of this machine are, with the port.
        """
        return _machine(self.host, self.lan_port)


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A peer is there."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """A peer is gone."""

    peer: Peer
    reason: str


@dataclass(frozen=True, slots=True)
class PeerChanged:
    """What a peer has is not what it had."""

    peer: Peer


PeerEvent = PeerJoined | PeerLeft | PeerChanged


@dataclass(slots=True)
class _Present:
    """A peer with the link to it."""

    peer: Peer
    link: Link
    gone: asyncio.Event


class Peers(Listeners[PeerEvent]):
    """The registry. `session`: without a limit on connections, without proxies; it stays the caller's."""

    def __init__(
        self,
        session: ClientSession,
        me: Asker,
        reach: Reach,
        named: Sequence[Listen] = (),
        own_name: str = "",
        timing: Timing | None = None,
    ) -> None:
        super().__init__()
        self.me = me
        self._session = session
        self._reach = reach
        self._named = tuple(named)
        self._own_name = own_name
        self._timing = timing or Timing()
        self._candidates = Candidates(self._timing, _now)
        self._present: dict[str, _Present] = {}
        self._left: dict[str, Peer] = {}
        self._banned: dict[tuple[str, str], float] = {}
        self._own: set[tuple[str, int]] = set()
        self._refused: set[tuple[str, int]] = set()
        self._dials = asyncio.Semaphore(_DIALS)
        self._group: asyncio.TaskGroup | None = None

    def all(self) -> list[Peer]:
        """Who is there, by name."""
        return sorted((p.peer for p in self._present.values()), key=lambda p: (p.name, p.id))

    def get(self, peer_id: str) -> Peer | None:
        """One of them."""
        present = self._present.get(peer_id)
        return present.peer if present else None

    def told(self) -> list[str]:
        """Addresses for others' `peers`: of those that are there, as others too can use them."""
        usable = [(a, p.lan_port) for p in self.all() for a in p.addresses[:2] if not a.startswith("fe80:")]
        return [format_address(*address) for address in usable][:MOST_PEERS]

    def suggest(self, host: str, port: int, by: str = "") -> None:
        """A hint that an agent may be there; `by` names who gave it, for its quota. Anything may be passed."""
        address = _clean(host)
        if not 0 < port <= 65535 or not self._reach.allows(address):
            return
        if (address, port) in self._own:
            return
        candidate = self._candidates.hear(address, port, by)
        if candidate is not None and self._group is not None:
            self._begin(self._group, candidate)

    @staticmethod
    def hosts(peers: Iterable[Peer]) -> int:
        """How many machines they are: a number of ids is what one owner likes it to be."""
        return len({peer.machine for peer in peers})

    def ban(self, who: Peer | str, reason: str) -> None:
        """Have nothing to do with an agent's machine for an hour (or until a restart).

        The place where it was met is banned, under any id. An id is anybody's to claim: whoever has the
        same one elsewhere is not meant. `who` as an id: where that is now, or was last.
        """
        peer = (self.get(who) or self._left.get(who)) if isinstance(who, str) else who
        if peer is None:
            return
        now_s = _now()
        self._banned = {place: until for place, until in self._banned.items() if until > now_s}
        for place in _places(peer.id, peer.host, peer.lan_port):
            self._banned[place] = now_s + self._timing.ban_s
        _log.warning("peer banned name=%s address=%s reason=%s", peer.name, peer.machine, reason)
        for present in self._present.values():
            if self.is_banned(present.peer):
                present.link.cut()

    def is_banned(self, peer: Peer) -> bool:
        """Whether it is banned now."""
        return self._banned_s(peer.id, peer.host, peer.lan_port) > 0

    def _banned_s(self, peer_id: str, host: str, port: int) -> float:
        """For how long an agent there is still banned, seconds; not more than 0: it is not."""
        return max(self._banned.get(place, 0.0) for place in _places(peer_id, host, port)) - _now()

    def moved(self, *, woke: bool) -> None:
        """The machine's addresses changed, or it slept: try everything again, now.

        Links to where the reach ends are cut; after a sleep all are, as none of them can be trusted to live.
        """
        self._own.clear()
        for present in self._present.values():
            if woke or not self._reach.allows(present.link.host):
                present.link.cut()
        for candidate in self._candidates:
            if not candidate.is_named and not self._reach.allows(candidate.host):
                self._candidates.forget(candidate)
            candidate.failures = 0
            candidate.again_s = _now()
            candidate.wake.set()

    async def run(self) -> None:
        """Look for peers until cancelled; then every link is closed."""
        async with asyncio.TaskGroup() as group:
            for named in self._named:
                self._candidates.name(named.host, named.port)
            for candidate in self._candidates:  # also what was heard before
                self._begin(group, candidate)
            self._group = group
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None  # what is heard while it ends must begin nothing

    def _begin(self, group: asyncio.TaskGroup, candidate: Candidate) -> None:
        group.create_task(self._pursue(candidate), name=f"peer {format_address(candidate.host, candidate.port)}")

    async def _pursue(self, candidate: Candidate) -> None:
        """Try one address as long as it is worth it."""
        try:
            while self._candidates.is_worth(candidate):
                candidate.tried_s, candidate.again_s = _now(), math.inf
                try:
                    pause_s = await self._try(candidate)
                except Exception:  # noqa: BLE001 - what one address does to us must not end the links to all others
                    _log.exception("trying an address failed address=%s", candidate.host)
                    pause_s = self._timing.longest_retry_s
                if self._candidates.is_worth(candidate):
                    await _rest(candidate, pause_s)
        finally:
            self._candidates.forget(candidate)

    async def _try(self, candidate: Candidate) -> float:
        """Connect, and stay while somebody is there. Returns how long to wait before the next time."""
        for host in await self._hosts(candidate):
            link = Link(self._session, host, candidate.port, self.me, self._timing)
            try:
                async with self._dials:
                    greeting = await link.open()
                self._candidates.answered(candidate)
                return await self._meet(candidate, link, greeting)
            except OtherProtocol as error:
                return self._note_refusal(candidate, error)
            except LinkLost as error:
                _log.debug("nobody there address=%s why=%s", format_address(host, candidate.port), error)
            finally:
                link.close()
        return candidate.failed(self._timing)

    async def _hosts(self, candidate: Candidate) -> list[str]:
        """Where a candidate is: a hint is an address already, what the user named may be a name."""
        if not candidate.is_named:
            return [candidate.host] if self._reach.allows(candidate.host) else []
        try:
            async with asyncio.timeout(self._timing.dial_s):
                found = await asyncio.get_running_loop().getaddrinfo(
                    candidate.host, candidate.port, type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError, UnicodeError):
            return []
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))[:_OTHER_ADDRESSES]
        self._reach.name(candidate.host, addresses)
        return [address for address in addresses if self._reach.allows(address)]

    async def _meet(self, candidate: Candidate, link: Link, greeting: Greeting) -> float:
        """Somebody answered: who? Returns the pause before the next try."""
        hello = greeting.hello
        # 1: ourselves, by another way
        if hello.id == self.me.id:
            if len(self._own) < _MOST_REMEMBERED:
                self._own.add((link.host, link.port))
            if not candidate.is_named:
                self._candidates.forget(candidate)
            return self._hold(candidate, self._timing.refused_s)
        # 2: one we want nothing of
        banned_s = self._banned_s(hello.id, link.host, link.port)
        if banned_s > 0:
            return self._hold(candidate, banned_s)
        # 3: one we know, under another address: that link is enough, until it ends
        present = self._present.get(hello.id)
        if present is not None:
            _add_address(present, link.host)
            link.close()
            await present.gone.wait()
            self._candidates.answered(candidate)
            return self._timing.first_retry_s
        # 4: a peer. One that comes and goes is met less and less often
        began_s = _now()
        await self._stay(link, greeting)
        self._candidates.answered(candidate)
        if _now() - began_s > self._timing.silence_s:
            candidate.failures = 0
        return candidate.failed(self._timing)

    def _hold(self, candidate: Candidate, pause_s: float) -> float:
        """No hint shortens this pause; what was heard while it was tried is answered by this."""
        candidate.not_before_s, candidate.again_s = _now() + pause_s, math.inf
        return pause_s

    async def _stay(self, link: Link, greeting: Greeting) -> None:
        """One peer's time with us."""
        peer = self._introduced(link, greeting)
        present = self._present[peer.id] = _Present(peer, link, asyncio.Event())
        _log.info("peer joined name=%s address=%s", peer.name, format_address(peer.host, peer.lan_port))
        reason = "this agent stops"
        try:
            self.tell(PeerJoined(peer))
            self._hear_hints(present, greeting.hello.peers)
            await link.follow(lambda event: self._heard(present, event))
        except LinkLost as error:
            reason = "banned" if self.is_banned(peer) else str(error)
        finally:
            del self._present[peer.id]
            self._remember(present.peer)
            present.gone.set()
            _log.info("peer left name=%s reason=%s", peer.name, reason)
            self.tell(PeerLeft(present.peer, reason))

    def _remember(self, peer: Peer) -> None:
        """Where one was that left: what it did may be found out later."""
        self._left.pop(peer.id, None)
        self._left[peer.id] = peer
        if len(self._left) > _MOST_REMEMBERED:
            del self._left[next(iter(self._left))]

    def _introduced(self, link: Link, greeting: Greeting) -> Peer:
        hello = greeting.hello
        return Peer(
            hello.id,
            self._unique_name(hello),
            hello.version,
            link.host,
            link.port,
            hello.swarm_port,
            (link.host,),
            greeting.clock_offset_s,
            _now(),
        )

    def _unique_name(self, hello: Hello) -> str:
        """What it calls itself, fit to be shown; with so many digits of its id that nobody else has that name."""
        name = "".join(c for c in hello.name if c.isprintable())[:63].strip() or "agent"
        taken = {p.peer.name for p in self._present.values()} | {self._own_name}
        longer = (f"{name}-{hello.id[:digits]}" for digits in range(4, len(hello.id) + 1, 4))
        counted = (f"{name}-{hello.id}-{number}" for number in itertools.count(2))
        return next(n for n in itertools.chain([name], longer, counted) if n not in taken)

    def _heard(self, present: _Present, event: LanEvent) -> None:
        present.peer = replace(present.peer, last_seen=_now())
        if event.peers:
            self._hear_hints(present, event.peers)
        if event.changed:
            self.tell(PeerChanged(present.peer))

    def _hear_hints(self, present: _Present, peers: Iterable[str]) -> None:
        """Addresses a peer knows. What it calls loopback is this machine only if it is on this machine."""
        teller = parse_ip(present.link.host)
        for text in peers:
            try:
                host, port = parse_address(text)
            except BadInput:  # checked by whoever read the line; a hint is no reason to fail
                continue
            ip = parse_ip(host)
            if ip is not None and (not ip.is_loopback or (teller is not None and teller.is_loopback)):
                self.suggest(host, port, by=present.peer.id)

    def _note_refusal(self, candidate: Candidate, error: OtherProtocol) -> float:
        """Somebody of another protocol: said once, asked again much later."""
        address = (candidate.host, candidate.port)
        level = logging.DEBUG if address in self._refused else logging.WARNING
        if len(self._refused) < _MOST_REMEMBERED:
            self._refused.add(address)
        _log.log(level, "an agent of another protocol address=%s: %s", format_address(*address), error)
        self._candidates.answered(candidate)
        return self._hold(candidate, self._timing.refused_s)


def _now() -> float:
    return time.monotonic()


def _machine(host: str, port: int) -> str:
    ip = parse_ip(host)
    return format_address(host, port) if ip is not None and ip.is_loopback else host


def _places(peer_id: str, host: str, port: int) -> tuple[tuple[str, str], ...]:
    """What a ban is kept under: the machine whatever its id, and the id on that host whatever its port."""
    host = _clean(host)
    return ("", _machine(host, port)), (peer_id, host)


def _clean(host: str) -> str:
    """An address as it is compared: IPv4 written as IPv6 is IPv4; a scope only where it means something."""
    ip = parse_ip(host)
    if ip is None:
        return ""
    scope = host.partition("%")[2]
    return f"{ip}%{scope}" if ip.is_link_local and scope.isalnum() and scope.isascii() else str(ip)


def _add_address(present: _Present, host: str) -> None:
    known = present.peer.addresses
    if host not in known and len(known) < _OTHER_ADDRESSES:
        present.peer = replace(present.peer, addresses=(*known, host))


async def _rest(candidate: Candidate, pause_s: float) -> None:
    """Wait, less long when there is (or was, while it was tried) news of it."""
    until_s = _now() + pause_s
    candidate.wake.clear()
    while (left_s := min(until_s, candidate.again_s) - _now()) > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await candidate.wake.wait()
        candidate.wake.clear()
