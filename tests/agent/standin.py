"""An agent without lab and hub: the real local listener, jobs and supervisor over a fetch that follows a script.

`python -m tests.agent.standin` serves EDGECDN_HOME until SIGTERM. A model's name says what its fetch does:
`done-..` ends at once, `slow-..` gives a byte every 20 ms until the file `release` is in the home, `down-..`
finds no source until then, `none-..` does not exist, `bug-..` is one. What follows the last `=` is the key.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecdn.control import CacheInfo, FetchRequest, PeerInfo, RunInfo
from edgecdn.errors import RepoMissing, Unreachable
from edgecdn.events import BlobPublished, BytesReceived, FetchPlanned, Kind, Listener, Note
from edgecdn.pipeline import Fetched
from edgecdn.settings_values import Listen
from edgecdn.version import VERSION
from edgecdn_agent.control.metrics import Gauges, Metrics
from edgecdn_agent.control.server import LocalServer
from edgecdn_agent.control.views import Views
from edgecdn_agent.jobs.book import Jobs, Prepared
from edgecdn_agent.jobs.store import JobStore
from edgecdn_agent.run_file import HomeLock, agent_id, api_token, remove_run_file, write_run_file
from edgecdn_agent.supervise import Supervisor
from edgecdn_agent.traffic import Traffic

PEER = PeerInfo("ab" * 16, "desk-2", ("192.0.2.7",), "0.1.0", 1.5)
TOTAL = 1000
ANY_PORT = Listen("127.0.0.1", 0)


def fetched(model: str) -> Fetched:
    """What every scripted fetch ends with."""
    return Fetched(model, "model", "main", "c" * 40, f"/cache/{model}", 2, TOTAL, {"lan": TOTAL}, 0.1)


@dataclass
class ScriptedRunner:
    """Counts what is started, and what was stopped before its end."""

    home: Path
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    async def prepare(self, request: FetchRequest) -> Prepared:
        if request.model.startswith("none"):
            raise RepoMissing(type="model", name=request.model, where="nowhere", nearest="")
        if request.model.startswith("down") and not self.is_released:
            raise Unreachable("nobody answers")
        return Prepared((request.model.rpartition("=")[2],), request.model)

    async def run(self, request: FetchRequest, prepared: Prepared, listener: Listener) -> Fetched:
        self.started.append(request.model)
        listener(FetchPlanned(request.model, "c" * 40, 2, 0, TOTAL, 0))
        listener(Note("as the script says"))
        if request.model.startswith("bug"):
            raise ZeroDivisionError("of the script")
        listener(BlobPublished("config.json", 10))
        try:
            while request.model.startswith("slow") and not self.is_released:
                listener(BytesReceived("peer desk-2", Kind.LAN, 1))
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.stopped.append(request.model)
            raise
        listener(BytesReceived("peer desk-2", Kind.LAN, 7))
        return fetched(request.model)

    @property
    def is_released(self) -> bool:
        """Whether slow fetches may end."""
        return (self.home / "release").exists()

    def release(self) -> None:
        """Let them."""
        (self.home / "release").touch()


@dataclass
class Stand:
    """The parts, running."""

    home: Path
    runner: ScriptedRunner
    jobs: Jobs
    traffic: Traffic
    supervisor: Supervisor
    server: LocalServer
    metrics: Metrics
    token: str

    @property
    def url(self) -> str:
        """The local listener."""
        return f"http://{self.server.bound}"


@asynccontextmanager
async def standing(home: Path, listen: Listen = ANY_PORT, **how: Any) -> AsyncIterator[Stand]:
    """An agent in this loop; the home's lock is taken by the caller, if at all. `how` is the listener's."""
    home.mkdir(parents=True, exist_ok=True)
    runner = ScriptedRunner(home)
    traffic, supervisor = Traffic(), Supervisor(backoff_s=(0.01, 0.02))
    jobs = Jobs(runner, JobStore(home), traffic, retry_s=(0.05, 0.1))
    metrics = Metrics(traffic, Gauges(lambda: 1, lambda: jobs.running, lambda: 3, lambda: 4, lambda: 5))
    ident, token = agent_id(home), api_token(home)
    listeners: dict[str, str] = {}

    def on_bound(bound: Listen) -> None:
        listeners["local"] = str(bound)
        write_run_file(home, RunInfo(os.getpid(), VERSION, ident, listeners, time.time()))

    views = Views(
        ident, "desk-1", jobs.infos, traffic, supervisor, lambda: [PEER], lambda: CacheInfo(3, 5), lambda: listeners
    )
    server = LocalServer(listen, token, views, jobs, metrics, on_bound, **how)
    supervisor.add("jobs", jobs.run, jobs.ready)
    supervisor.add("local", server.run, server.ready)
    supervisor.add("loop lag", metrics.loop_lag.run)
    async with asyncio.TaskGroup() as group:
        group.create_task(supervisor.run())
        assert await supervisor.wait_ready(5)
        try:
            yield Stand(home, runner, jobs, traffic, supervisor, server, metrics, token)
        finally:
            supervisor.stop()
    remove_run_file(home)


async def _main(home: Path) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with standing(home):
        await stopping.wait()


if __name__ == "__main__":
    chosen = Path(os.environ["EDGECDN_HOME"])
    with HomeLock(chosen):
        asyncio.run(_main(chosen))
