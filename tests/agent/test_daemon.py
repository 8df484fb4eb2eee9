"""The agent's parts, put together: what one learns reaches the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from edgecdn.settings import load_settings
from edgecdn_agent.daemon import Daemon, Identity, Mode


@asynccontextmanager
async def running(folder: Path, **variables: str) -> AsyncIterator[Daemon]:
    """An agent in this process, ready, with ports of its own and no multicast."""
    given = dict.fromkeys(("LAN_LISTEN", "SWARM_LISTEN", "GATEWAY_LISTEN"), "127.0.0.1:0") | variables
    environ = {f"EDGECDN_{name}": value for name, value in given.items()}
    folders = {"EDGECDN_HOME": str(folder / "home"), "EDGECDN_CACHE_DIR": str(folder / "cache")}
    settings = load_settings({"EDGECDN_DISCOVERY_MDNS": "off", **environ, **folders})
    daemon = Daemon(settings, Identity("a" * 32, "token"), Mode(once=True, scratch=folder))
    async with asyncio.TaskGroup() as group:
        group.create_task(daemon.run())
        try:
            assert await daemon.supervisor.wait_ready(10)
            yield daemon
        finally:
            daemon.stop()


async def test_it_says_the_port_it_is_really_reached_at(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        assert daemon.peers.me.lan_port == daemon.bound["lan"].port > 0


async def test_a_new_reach_is_the_swarms_too(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        blocked = daemon.swarm._session.get_ip_filter().access
        assert blocked("192.0.2.9") == 1
        daemon.reach.name("far.example", ["192.0.2.9"])
        assert daemon.swarm._session.get_ip_filter().access("192.0.2.9") == 0


async def test_without_lan_and_swarm_it_runs_all_the_same(tmp_path: Path) -> None:
    async with running(tmp_path, LAN_LISTEN="off", SWARM_LISTEN="off") as daemon:
        assert set(daemon.bound) == {"local"}
        assert daemon.peers.me.lan_port == 0
