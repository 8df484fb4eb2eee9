"""What the agent tells of itself: status, peers, top, health; put together from its parts when asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgecdn.control import CacheInfo, HealthInfo, JobInfo, PeerInfo, PeerTraffic, ServiceInfo, StatusInfo, TopInfo
from edgecdn.version import VERSION
from edgecdn_agent.supervise import Supervisor
from edgecdn_agent.traffic import Traffic

__all__ = ["Views"]


@dataclass(frozen=True, slots=True)
class Views:
    """Everything that is shown. What is a callable is asked each time and must not block."""

    agent_id: str
    name: str
    jobs: Callable[[], tuple[JobInfo, ...]]
    traffic: Traffic
    supervisor: Supervisor
    peers: Callable[[], Sequence[PeerInfo]]
    cache: Callable[[], CacheInfo]
    listeners: Callable[[], Mapping[str, str]]
    began: float = field(default_factory=time.monotonic)

    def status(self) -> StatusInfo:
        """As `edgecdn status`."""
        return StatusInfo(
            version=VERSION,
            agent_id=self.agent_id,
            uptime_s=round(time.monotonic() - self.began, 1),
            peers=len(self.peers()),
            jobs=self.jobs(),
            cache=self.cache(),
            totals=self.traffic.totals(),
            listeners=dict(self.listeners()),
            name=self.name,
        )

    def top(self) -> TopInfo:
        """As `edgecdn top`: peers that nothing moves with are in it too."""
        moving = self.traffic.parties()
        named = {party.name for party in moving}
        still = [PeerTraffic(f"peer {p.name}", 0, 0, 0, 0) for p in self.peers() if f"peer {p.name}" not in named]
        in_bytes_s, out_bytes_s = self.traffic.rates()
        return TopInfo(self.name, (*moving, *still), self.jobs(), self.traffic.totals(), in_bytes_s, out_bytes_s)

    def health(self, *, reasons: bool = False) -> HealthInfo:
        """For `/healthz`, which asks for no token: states, and nothing of what is fetched.

        With `reasons` (for who has the token) also why parts are down.
        """
        services = {
            s.name: ServiceInfo(s.state.value, s.restarts, s.detail if reasons and s.is_failing else "")
            for s in self.supervisor.services
        }
        return HealthInfo(self.supervisor.is_ready, tuple(self.supervisor.failing), services)
