"""The doctor's look at the lab: the own agent and its ports, multicast, and the way to each peer and back.

Nothing is changed and nobody is asked for more than a hello. What is found is said with what to do about it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import aiohttp
import msgspec
import psutil

from edgecdn.agent_link import AgentAddress, AgentLink, find_agent, is_locked
from edgecdn.control import HealthInfo, PeerInfo
from edgecdn.errors import EdgecdnError
from edgecdn.lan_wire import (
    BASE_PATH,
    MOST_HELLO_BYTES,
    MOST_PEERS,
    PROTOCOL,
    PROTOCOL_HEADER,
    format_address,
    parse_address,
    parse_hello,
)
from edgecdn.settings import Settings
from edgecdn.upkeep.agent_process import failing_parts
from edgecdn.upkeep.diagnosis import Check, State
from edgecdn.upkeep.multicast import Heard, ask_multicast
from edgecdn.upkeep.named_peers import check_named

__all__ = ["check_lab"]

_ANSWER_S = 3.0
"""A peer on the same network answers in milliseconds; one that takes so long is behind a firewall, or gone."""

_CLOCK_S = 60.0
"""Agents do not mind, but logs of machines further apart cannot be read together."""

_NAMED = 8
"""Most peers named in one line."""

_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class _Tried:
    """A peer and how it went. `fault`, `swarm_fault`: empty where it answered; `knows_us` None: it cannot be told."""

    peer: PeerInfo
    fault: str
    swarm_fault: str
    latency_ms: float = 0.0
    knows_us: bool | None = None


def check_lab(settings: Settings, home_fault: str = "") -> Iterator[Check]:
    """Every check of the lab. `home_fault`: what keeps the home from being written, the agent's `run.json` too."""
    agent = find_agent(settings.home)
    known: tuple[PeerInfo, ...] = ()
    if agent is None and is_locked(settings.home):
        why = home_fault or "it starts or stops right now, or failed to write it"
        remedy = "Remedy that first (see above), then start it again." if home_fault else "Look again in a moment."
        yield Check("agent", State.WARN, f"runs, but run.json does not tell where: {why}", remedy)
    elif agent is None:
        told = "does not run: this machine is in the lab only while it fetches, and gives nothing to others"
        yield Check("agent", State.OK, f"{told} (`edgecdn agent start`)")
    else:
        try:
            health, known, agent = asyncio.run(_ask(agent))
        except EdgecdnError as error:
            yield Check("agent", State.WARN, error.message, error.remedy)
        else:
            yield _agent(agent, health)
            yield from _ports(settings, agent)
    if settings.discovery_mdns:
        yield from _multicast(settings, agent, known)
    else:
        yield Check("multicast", State.OK, "discovery.mdns is off: peers are found by discovery.peers alone")
    yield from check_named(settings.discovery_peers)
    if agent is not None:
        yield from _peers(asyncio.run(_try_all(agent, known)))


async def _ask(agent: AgentAddress) -> tuple[HealthInfo, tuple[PeerInfo, ...], AgentAddress]:
    """How it is, whom it knows, and where it listens by its own word: `run.json` may be older, on a full disk."""
    async with AgentLink(agent) as link:
        health, known, status = await link.health(), await link.peers(), await link.status()
    listeners = agent.run.listeners | status.listeners
    return health, known, replace(agent, run=msgspec.structs.replace(agent.run, listeners=listeners))


def _agent(agent: AgentAddress, health: HealthInfo) -> Check:
    if health.failing:
        parts = [f"{name} ({why})" if why else name for name, why in failing_parts(health).items()]
        detail = f"runs (process {agent.run.pid}), but these parts of it are down: {', '.join(parts)}"
        remedy = "Its log says why: agent.log of its home, or `journalctl --user -u edgecdn.service`."
        return Check("agent", State.WARN, detail, remedy)
    return Check("agent", State.OK, f"runs (process {agent.run.pid})" + ("" if health.ready else ", not ready yet"))


def _ports(settings: Settings, agent: AgentAddress) -> Iterator[Check]:
    """Where the agent really listens, against the settings."""
    wanted = {"local": settings.gateway_listen, "lan": settings.lan_listen, "swarm": settings.swarm_listen}
    for name, listen in wanted.items():
        real = agent.run.listeners.get(name)
        if listen is None and real is None:
            yield Check(f"port {name}", State.OK, "off")
        elif listen is None or real is None:
            what = f"nothing listens; {listen} is set" if listen else f"{real}; it is set to off"
            remedy = "Stop the agent and start it again (`edgecdn agent stop`, `start`); its log says what went wrong."
            yield Check(f"port {name}", State.WARN, what, remedy)
        elif listen.port and not real.endswith(f":{listen.port}"):
            remedy = "Peers are told the real port. A firewall must let that one in; or free the other and start again."
            if name == "local":
                remedy = "Nothing to do for commands: they are told the real one. Scrapers of /metrics have to be."
            yield Check(
                f"port {name}",
                State.WARN,
                f"{real}; {listen} is set, and was taken when the agent started (or is set since)",
                remedy,
            )
        else:
            yield Check(f"port {name}", State.OK, real)


def _multicast(settings: Settings, agent: AgentAddress | None, known: Sequence[PeerInfo]) -> Iterator[Check]:
    """What answers on each interface, and what a silence means."""
    own = agent.run.agent_id if agent is not None else ""
    for heard in asyncio.run(ask_multicast(settings.lan_allow)):
        yield _judged(heard, own, known)


def _judged(heard: Heard, own: str, known: Sequence[PeerInfo]) -> Check:
    name = f"multicast {heard.interface}"
    remedy = (
        "Let UDP 5353 to 224.0.0.251 pass (firewall, switch, virtual machine's network), or name one agent of the lab: "
        "`edgecdn config set discovery.peers HOST:8378`; the others are learned from it."
    )
    if heard.fault:
        return Check(name, State.WARN, f"a question from {heard.address} cannot be sent: {heard.fault}", remedy)
    others = len(heard.agents - {own})
    if others:
        return Check(name, State.OK, f"{others} other agent{'s' if others > 1 else ''} answered at {heard.address}")
    near = [peer.name for peer in known if heard.is_near(peer.host)]
    if near:
        return Check(name, State.WARN, f"no answer, though {', '.join(near[:_NAMED])} is there", remedy)
    return Check(name, State.OK, f"works as far as can be told from here; no other agent answered at {heard.address}")


async def _try_all(agent: AgentAddress, known: Sequence[PeerInfo]) -> list[_Tried]:
    """Go the way to every peer, side by side."""
    port = int(agent.run.listeners.get("lan", ":0").rpartition(":")[2])
    own = {(entry.address.partition("%")[0], port) for entries in psutil.net_if_addrs().values() for entry in entries}
    places = asyncio.Semaphore(_AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False, auto_decompress=False) as session:

        async def tried(peer: PeerInfo) -> _Tried:
            async with places:
                return await _try(session, peer, own if port else set())

        return await asyncio.gather(*(tried(peer) for peer in known if peer.lan_port))


async def _try(session: aiohttp.ClientSession, peer: PeerInfo, own: set[tuple[str, int]]) -> _Tried:
    url = f"http://{format_address(peer.host, peer.lan_port)}{BASE_PATH}/hello"
    swarm_fault = await _connect(peer.host, peer.swarm_port) if peer.swarm_port else ""
    began = time.monotonic()
    try:
        async with session.get(url, headers={PROTOCOL_HEADER: str(PROTOCOL)}, allow_redirects=False) as answer:
            if answer.status != 200:
                return _Tried(peer, f"answers HTTP {answer.status}", swarm_fault)
            latency_ms = (time.monotonic() - began) * 1000
            hello = parse_hello(await answer.content.read(MOST_HELLO_BYTES))
    except TimeoutError:
        return _Tried(peer, f"no answer within {_ANSWER_S:.0f} s", swarm_fault)
    except (aiohttp.ClientError, OSError, EdgecdnError) as error:
        return _Tried(peer, str(error)[:200] or type(error).__name__, swarm_fault)
    knows_us = bool(own & {parse_address(text) for text in hello.peers})
    is_cut = len(hello.peers) >= MOST_PEERS or not own
    return _Tried(peer, "", swarm_fault, latency_ms, knows_us or (None if is_cut else False))


async def _connect(host: str, port: int) -> str:
    """Why a TCP connection there cannot be made; empty where it can."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"no answer within {_ANSWER_S:.0f} s"
    except OSError as error:
        return error.strerror or type(error).__name__
    writer.close()
    return ""


def _peers(tried: Sequence[_Tried]) -> Iterator[Check]:
    """One line for all that is well, and one for each finding."""
    if not tried:
        remedy = (
            "If there are others: is their agent running, in the same network? Firewalls must let in TCP 8378 and 8379 "
            "and UDP 5353. Other subnets: `edgecdn config set discovery.peers HOST:8378`."
        )
        yield Check("peers", State.WARN, "none is known", remedy)
        return
    well = [f"{one.peer.name} ({one.latency_ms:.1f} ms)" for one in tried if not one.fault]
    more = ", ..." if len(well) > _NAMED else ""
    if well:
        yield Check("peers", State.OK, f"{len(well)} of {len(tried)} answer: {', '.join(well[:_NAMED])}{more}")
    for one in tried:
        yield from _findings(one)


def _findings(one: _Tried) -> Iterator[Check]:
    peer, name = one.peer, f"peer {one.peer.name}"
    if one.fault:
        where = format_address(peer.host, peer.lan_port)
        yield Check(name, State.WARN, f"its LAN port ({where}) does not answer: {one.fault}", _let_in(peer.lan_port))
        return
    if one.swarm_fault:
        where = format_address(peer.host, peer.swarm_port)
        remedy = f"Files come by HTTP instead. {_let_in(peer.swarm_port)}"
        yield Check(name, State.WARN, f"its swarm port ({where}) takes no connection: {one.swarm_fault}", remedy)
    if one.knows_us is False:
        remedy = "Let the ports of `edgecdn status` (lan, swarm) in through this machine's firewall, for TCP."
        yield Check(name, State.WARN, "does not know this machine: it seems not to reach it", remedy)
    if abs(peer.clock_offset_s) > _CLOCK_S:
        way = "ahead of" if peer.clock_offset_s > 0 else "behind"
        detail = f"its clock is {abs(peer.clock_offset_s) / 60:.0f} min {way} this one"
        yield Check(name, State.WARN, detail, "Set the one that is wrong: `timedatectl set-ntp true`.")


def _let_in(port: int) -> str:
    return f"On that machine, look whether its agent runs, and let TCP {port} in (`sudo ufw allow {port}/tcp`)."
