"""The agent, put together: everything is made here, then connected, then run. The composition root."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgecdn.cache.catalog import Catalog
from edgecdn.control import CacheInfo, JobInfo, PeerInfo, RunInfo
from edgecdn.lan_wire import OLDEST, PROTOCOL, Asker, Hello
from edgecdn.names import RepoId
from edgecdn.settings import Settings
from edgecdn.settings_values import Listen
from edgecdn.sources.peer import peer_session
from edgecdn.together import Together
from edgecdn.version import VERSION
from edgecdn_agent.control.metrics import Gauges, Metrics
from edgecdn_agent.control.server import LocalServer
from edgecdn_agent.control.views import Views
from edgecdn_agent.deliver.bringing import Bringer
from edgecdn_agent.deliver.deliveries import Deliveries
from edgecdn_agent.gateway.ensure import EnsureService
from edgecdn_agent.gateway.gate import Gate
from edgecdn_agent.gateway.handed_out import HandedOut
from edgecdn_agent.gateway.modelscope import ModelScopeGate
from edgecdn_agent.gateway.placer import Placer
from edgecdn_agent.gateway.routes import add_gateway
from edgecdn_agent.gateway.serving import BlobServer
from edgecdn_agent.holdings.downloads import Downloads
from edgecdn_agent.holdings.indexer import Indexer
from edgecdn_agent.holdings.sharing import SharingRule
from edgecdn_agent.holdings.shelf import Holdings
from edgecdn_agent.holdings.watch import CacheWatch
from edgecdn_agent.ingest.book import Book
from edgecdn_agent.ingest.carrier import LabCarrier
from edgecdn_agent.ingest.deciding import Policy
from edgecdn_agent.ingest.link import IngestClient
from edgecdn_agent.ingest.routes import IngestRoutes
from edgecdn_agent.jobs.book import Jobs
from edgecdn_agent.jobs.confirm import confirm_listings
from edgecdn_agent.jobs.peers import JobLab, LabNames
from edgecdn_agent.jobs.runner import PipelineRunner
from edgecdn_agent.jobs.store import JobStore
from edgecdn_agent.lab.addresses import AddressWatch, MachineChanged, link_bytes_s, read_interfaces
from edgecdn_agent.lab.discovery import Announcement, Discovery
from edgecdn_agent.lab.peers import PeerEvent, PeerJoined, PeerLeft, Peers
from edgecdn_agent.lab.reach import Reach
from edgecdn_agent.lan.answers import LanAnswers
from edgecdn_agent.lan.client import LanClient
from edgecdn_agent.lan.parts import LanParts
from edgecdn_agent.lan.server import LanServer
from edgecdn_agent.limits import Limits
from edgecdn_agent.run_file import write_run_file
from edgecdn_agent.supervise import Supervisor
from edgecdn_agent.swarm.carrier import SwarmCarrier
from edgecdn_agent.swarm.meter import SwarmMeter
from edgecdn_agent.swarm.seeding import Seeding
from edgecdn_agent.swarm.session import Swarm
from edgecdn_agent.traffic import Traffic

__all__ = ["Daemon", "Identity", "Mode"]

_SETTLE_S = 1.5
"""An agent for one fetch waits this long for the first peer to be seen; mDNS answers within a second."""

_FEW_MORE_S = 0.2

_TELL_S = 0.5
"""A job of many small files publishes dozens a second; peers are told this often."""

_LISTENING_S = 5.0
"""Peers are told the ports as they are; a listener that is not up by then is done without until it is."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is: a random id, and the token of its user's programs."""

    agent_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Mode:
    """How it runs. `once`: for one fetch, whose jobs are forgotten in `scratch`; else it keeps house too."""

    once: bool
    scratch: Path


class Daemon:
    """One agent. `run` serves until `stop`; `bound` holds the listeners as they really are."""

    def __init__(self, settings: Settings, identity: Identity, mode: Mode) -> None:
        self.settings = settings
        self.identity = identity
        self.bound: dict[str, Listen] = {}
        self._mode = mode
        self._moved = asyncio.Event()
        self._held = asyncio.Event()
        self._fresh: set[RepoId] = set()
        self._brought = asyncio.Event()
        name = socket.gethostname().split(".")[0][:63] or "agent"

        # What is here, and what of it may be given away
        self.catalog = Catalog(settings.home)
        self.rule = SharingRule(settings, self.catalog)
        self.holdings = Holdings(settings, self.catalog, self.rule.allows, is_public=self._is_public)
        self.downloads = Downloads()

        # Who is there
        self.addresses = AddressWatch(read_interfaces())
        self.reach = Reach(settings.lan_allow, self.addresses.interfaces)
        self.session = peer_session()
        me = Asker(identity.agent_id, 0)  # the port follows when it is known
        self.peers = Peers(self.session, me, self.reach, settings.discovery_peers, name)
        self.lan = LanClient(self.session, me)

        # What moves
        self.swarm = Swarm()
        self.traffic = Traffic()
        self.limits = Limits(settings, self.swarm, lambda: link_bytes_s(self.addresses.interfaces))
        self.seeding = Seeding(self.swarm, self.holdings)
        self.by_swarm = SwarmCarrier(self.swarm, self.lan, self.peers, self.downloads, self.rule.allows)
        policy = Policy(hub_connections=settings.limits_hub_connections)
        self.ingests = Book(self.peers, self.rule.allows, policy)
        self.ingest_routes = IngestRoutes(self.ingests, gives=policy.gives)
        self.ingest_link = IngestClient(self.session, me, self.limits.download)
        self.carrier = LabCarrier(self.by_swarm, self.ingests, self.ingest_link, self.peers, self.rule.allows)
        self.lan_server = LanServer(self._lan_parts(name))
        self.meter = SwarmMeter(self.swarm, self._sent)

        # What is asked of it
        runner = PipelineRunner(
            settings,
            self._job_lab,
            LabNames(self.peers, self.lan),
            self.rule,
            self.limits.wan,
            self._published,
            self._settle,
            together := Together(catalog=self.catalog),
        )
        bringer = Bringer(settings, self._job_lab, self.rule, self.limits.wan, self._published, together)
        self.deliveries = Deliveries(settings.cache_dir, bringer, together.arrivals, self.traffic, self.catalog)
        self.supervisor = Supervisor()
        self.jobs = Jobs(runner, JobStore(mode.scratch if mode.once else settings.home), self.traffic)
        self._add_gateway()
        self.metrics = Metrics(self.traffic, self._gauges())
        self.views = Views(
            identity.agent_id, name, self._job_infos, self.traffic, self.supervisor,
            peers=self._peer_infos, cache=self._cache_info, listeners=self._listeners,
        )  # fmt: skip
        self.name = name
        self._discovery: Discovery | None = None
        self._add_services()

    async def run(self) -> None:
        """Serve until `stop`; nothing of it is left then."""
        self.addresses.subscribe(self._on_moved)
        self.peers.subscribe(self._on_peer)
        self.reach.subscribe(lambda _: self._apply_reach())
        try:
            await self.supervisor.run()
        finally:
            self.blobs.close()
            await self.session.close()
            await asyncio.to_thread(self.catalog.close)

    def stop(self) -> None:
        """End `run` in order."""
        self.supervisor.stop()

    def run_info(self) -> RunInfo:
        """Where it is."""
        cache_dir, hubs = str(self.settings.cache_dir), self.settings.hub_endpoints
        ident, listeners = self.identity.agent_id, dict(self._listeners())
        offline_lan, modelscope = self.settings.plugin_offline_lan, bool(self.settings.hub_modelscope)
        return RunInfo(os.getpid(), VERSION, ident, listeners, time.time(), cache_dir, hubs, offline_lan, modelscope)

    async def settled(self, limit_s: float = 8.0) -> None:
        """Ready, and peers that are there have been seen."""
        await self.supervisor.wait_ready(limit_s)
        joined = asyncio.Event()
        unsubscribe = self.peers.subscribe(lambda _event: joined.set())
        try:
            if not self.peers.all():
                async with asyncio.timeout(_SETTLE_S):
                    await joined.wait()
            await asyncio.sleep(_FEW_MORE_S)
        except TimeoutError:
            pass
        finally:
            unsubscribe()

    def _add_gateway(self) -> None:
        """What makes the local listener a hub for unchanged tools."""
        settings = self.settings
        names = LabNames(self.peers, self.lan)
        self.gate = Gate(settings, self.rule, names, accept_lab=settings.plugin_offline_lan)
        self.modelscope = ModelScopeGate(settings, self.holdings, self._is_public, self.gate.relay)
        handed_out = None if self._mode.once else HandedOut(settings.home)
        self.blobs = BlobServer(self.holdings, self.deliveries, self.modelscope.relay, handed_out=handed_out)
        placer = Placer(
            self.gate.finder, self.deliveries, self.holdings, self.jobs, settings.cache_dir,
            offline_lan=settings.plugin_offline_lan,
        )  # fmt: skip
        self.ensure = EnsureService(placer.place)
        self._extensions = (
            self.ensure.extend, self.modelscope.extension(self.blobs), add_gateway(self.gate.parts(self.blobs)),
        )  # fmt: skip

    # Services

    def _add_services(self) -> None:
        settings, add = self.settings, self.supervisor.add
        local = settings.gateway_listen or Listen("127.0.0.1", 0)
        server = LocalServer(
            Listen("127.0.0.1", 0) if self._mode.once else local,
            self.identity.token, self.views, self.jobs, self.metrics, lambda at: self._on_bound("local", at),
            extensions=() if self._mode.once else self._extensions, cancel_other=self.deliveries.cancel,
        )  # fmt: skip
        ready = {name: asyncio.Event() for name in ("swarm", "lan", "discovery")}
        self._ready = ready
        add("addresses", self.addresses.run)
        add("peers", self._keep_peers)
        add("holdings", self._hold, self._held)
        add("sharing", self._keep_rule)
        add("limits", self.limits.run)
        if settings.swarm_listen:
            add("swarm", self._run_swarm, ready["swarm"])
            add("seeding", self.seeding.run)
            add("meter", self.meter.run)
        if settings.lan_listen:
            add("lan", self._run_lan, ready["lan"])
        if settings.discovery_mdns:
            add("discovery", self._discover)
        add("ingests", self.ingests.run)
        add("jobs", self.jobs.run, self.jobs.ready)
        if not self._mode.once:
            add("deliveries", self.deliveries.run, self.deliveries.ready)
            add("gateway", self.gate.run, self.gate.ready)
            add("modelscope", self.modelscope.run)
            add("ensure", self.ensure.run, self.ensure.ready)
        add("tell", self._tell_published)
        add("local", server.run, server.ready)
        add("lag", self.metrics.loop_lag.run)
        if not self._mode.once:
            add("index", Indexer(self.holdings).run)
            add("run-file", self._keep_run_file)
            add("confirm", lambda: confirm_listings(self.settings))

    async def _hold(self) -> None:
        """What is held: looked through once, then watched."""
        await self.rule.load()
        await self.holdings.rescan()
        self._held.set()
        if not self._mode.once:
            await CacheWatch(self.holdings).run()

    async def _keep_rule(self) -> None:
        unsubscribe = self.rule.subscribe(self.holdings.touch)
        try:
            await self.rule.run(self.holdings.repos)
        finally:
            unsubscribe()

    async def _keep_peers(self) -> None:
        """To those we call we say where we are reached, so our listeners come first."""
        await self._listening()
        await self.peers.run()

    async def _listening(self) -> None:
        """Until the listeners are up; one that fails is not waited for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LISTENING_S):
                for service in self.supervisor.services:
                    if service.name in ("swarm", "lan"):
                        await self._ready[service.name].wait()

    async def _run_swarm(self) -> None:
        listen = self.settings.swarm_listen
        assert listen is not None

        def bound(port: int) -> None:
            self._apply_reach()
            self._on_bound("swarm", Listen(listen.host, port))
            self._ready["swarm"].set()

        await self.swarm.run(listen.host, listen.port, bound)

    async def _run_lan(self) -> None:
        listen = self.settings.lan_listen
        assert listen is not None

        def bound(at: Listen) -> None:
            self._on_bound("lan", at)
            self.peers.me = me = Asker(self.identity.agent_id, at.port)
            self.lan.introduce(me)
            self.ingest_link.introduce(me)
            self._ready["lan"].set()

        await self.lan_server.run(listen, bound)

    async def _discover(self) -> None:
        """Announce the ports as they are, so after they are known."""
        await self._listening()
        lan = self.bound.get("lan")
        me = Announcement(
            self.identity.agent_id,
            self.name,
            VERSION,
            lan.host if lan else "",
            lan.port if lan else 0,
            self._swarm_port(),
        )
        self._discovery = Discovery(me, self.peers.suggest, self.reach.allows, self.addresses.interfaces)
        await self._discovery.run()

    async def _keep_run_file(self) -> None:
        """`run.json` as things are; removed by the program, which holds the lock."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            if "local" in self.bound:
                await asyncio.to_thread(write_run_file, self.settings.home, self.run_info())

    # What the parts ask of each other

    def _on_bound(self, name: str, at: Listen) -> None:
        self.bound[name] = at
        self._moved.set()

    def _on_moved(self, change: MachineChanged) -> None:
        self.reach.update(change.interfaces)
        self.peers.moved(woke=change.woke)
        if self._discovery is not None:
            self._discovery.update(change.interfaces)
        self.jobs.look_again()

    def _on_peer(self, event: PeerEvent) -> None:
        if isinstance(event, PeerJoined):
            self.jobs.look_again()

    def _apply_reach(self) -> None:
        if self.swarm.port:
            self.swarm.set_reach(self.reach.ranges())

    def _lan_parts(self, name: str) -> LanParts:
        answers = LanAnswers(self.settings.cache_dir, self.settings.home, self.rule, self.downloads)

        def hello() -> Hello:
            lan = self.bound.get("lan")
            return Hello(
                PROTOCOL, OLDEST, self.identity.agent_id, name, VERSION,
                lan.port if lan else 1, self._swarm_port(), time.time(), self.peers.told(),
            )  # fmt: skip

        def sent(address: str, _asker: Asker | None, count: int) -> None:
            self._sent(address, count)

        return LanParts(
            shelf=self.holdings,
            hello=hello,
            allows=self.reach.allows,
            upload=self.limits.upload,
            downloading=answers.downloading,
            manifest=answers.manifest,
            ref=answers.ref,
            told_peers=self.peers.told,
            changes=(self.holdings.subscribe, self._downloads_changed),
            peer_changes=(self._peers_changed,),
            suggest=lambda host, port: self.peers.suggest(host, port, by=host),
            tree_asked=self.seeding.ensure,
            sent=sent,
            extensions=(self.ingest_routes,),
        )

    def _downloads_changed(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self.downloads.subscribe(lambda _: callback())

    def _peers_changed(self, callback: Callable[[], None]) -> Callable[[], None]:
        def heard(event: PeerEvent) -> None:
            if isinstance(event, PeerJoined | PeerLeft):
                callback()

        return self.peers.subscribe(heard)

    def _job_lab(self) -> JobLab:
        return JobLab(self.peers, self.session, self.limits.download, self.carrier)

    def _published(self, repo: RepoId) -> None:
        """A fetch brought a blob."""
        self._fresh.add(repo)
        self._brought.set()

    async def _tell_published(self) -> None:
        """Have peers know of what fetches brought while the rest still comes."""
        while True:
            await self._brought.wait()
            self._brought.clear()
            await self._settle()
            await asyncio.sleep(_TELL_S)

    async def _settle(self) -> None:
        """Hold what fetches brought, with the trees that came with it: from now on peers may have it."""
        repos, self._fresh = self._fresh, set()
        proven, self.by_swarm.proven = self.by_swarm.proven, {}
        for digest, tree in proven.items():
            await asyncio.to_thread(self.catalog.set_tree, digest, tree)
        for repo in repos:
            await self.holdings.rescan(repo)
        for digest in proven:  # who took it with others goes on giving it to them
            await self.seeding.ensure(digest)

    def _sent(self, address: str, count: int) -> None:
        names = [peer.name for peer in self.peers.all() if address in (peer.host, *peer.addresses)]
        known = f"peer {names[0] if len(names) == 1 else address}"
        self.traffic.sent(known if address else SwarmCarrier.name, count)

    # What is shown

    def _swarm_port(self) -> int:
        return self.swarm.port

    def _listeners(self) -> Mapping[str, str]:
        return {name: str(at) for name, at in self.bound.items()}

    def _peer_infos(self) -> Sequence[PeerInfo]:
        now = time.monotonic()
        return [
            PeerInfo(
                p.id, p.name, p.addresses, p.version, round(max(0.0, now - p.last_seen), 1),
                p.host, p.lan_port, p.swarm_port, round(p.clock_offset_s, 1),
            )
            for p in self.peers.all()
        ]  # fmt: skip

    def _is_public(self, repo: RepoId) -> bool:
        return self.rule.is_public(repo) is True

    def _job_infos(self) -> tuple[JobInfo, ...]:
        return (*self.deliveries.infos(), *self.jobs.infos())

    def _cache_info(self) -> CacheInfo:
        counts = self.holdings.counts
        return CacheInfo(counts.repos, counts.bytes)

    def _gauges(self) -> Gauges:
        counts = self.holdings
        return Gauges(
            peers=lambda: len(self.peers.all()),
            jobs=lambda: self.jobs.running + len(self.deliveries.infos()),
            repos=lambda: counts.counts.repos,
            blobs=lambda: counts.counts.blobs,
            bytes_held=lambda: counts.counts.bytes,
        )
