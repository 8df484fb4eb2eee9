"""Real agents, a process each, on loopback: where they are, what they say, fetches through them, and the oracle.

    async with lab(tmp_path, hub) as made:
        one = await made.agent("one")
        two = await made.agent("two")          # knows all that run, and they soon know it
        await one.fetch_here("org/name")
        await one.gives(sha256_hex)            # indexed and shareable: others can have it now
        fetched = await two.fetch_here("org/name")  # fetched.bytes_by_source, two.events, two.said

Every agent has its own home and cache, no multicast, and ports of its own; `check` runs at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from edgecdn.agent_link import find_agent
from edgecdn.client import Wanted, fetch_wanted
from edgecdn.digest import Digest
from edgecdn.events import Event
from edgecdn.fileset import FileSet
from edgecdn.lan_wire import BlobState, Hello, encode_have_query, parse_have_answer, parse_hello
from edgecdn.names import ModelRef
from edgecdn.pipeline import Fetched
from edgecdn.settings import load_settings
from tests.faults.machine import ROOT, Machine
from tests.hub import TestHub

__all__ = ["Agent", "AgentLab", "eventually", "lab"]

READY_LIMIT_S = 40.0
STOP_LIMIT_S = 20.0
_LOOK_S = 0.02
_GIVEN_LIMIT_S = 40.0


async def eventually(holds: Callable[[], Awaitable[Any]], limit_s: float = 30.0, what: str = "it") -> float:
    """Wait until `holds` is true of another process, which cannot tell; returns how long that took."""
    began = time.monotonic()
    while not await holds():
        assert time.monotonic() - began < limit_s, f"{what} does not come true within {limit_s} s"
        await asyncio.sleep(_LOOK_S)
    return time.monotonic() - began


class Agent(Machine):
    """A machine with an agent. `settings` hold for all its runs: `limits_upload="1MB/s"` is EDGECDN_LIMITS_UPLOAD."""

    def __init__(self, base: Path, name: str, hubs: tuple[TestHub | str, ...], settings: dict[str, str]) -> None:
        super().__init__(base / name)
        self.base.mkdir(parents=True)
        self.name, self.hubs, self.settings = name, hubs, settings
        self.process: subprocess.Popen[bytes] | None = None
        self.ready_s = 0.0
        self._log = self.base / "agent.log"

    def variables(self, **settings: str) -> dict[str, str]:
        """The environment of its agent and of commands here; a value without a setting's name is taken as it is."""
        listeners = dict.fromkeys(("lan_listen", "swarm_listen", "gateway_listen"), "127.0.0.1:0")
        base = {"PATH": os.environ["PATH"], "HOME": str(self.base / "user"), "NO_PROXY": "*"}
        return base | self.environment(*self.hubs, **{**listeners, **self.settings, **settings})

    async def start_agent(self, *, peers: tuple[str, ...] = (), crash: str = "", **settings: str) -> None:
        """Start it and wait until it answers. `peers`: LAN addresses it is told of; `crash`: a crash point."""
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs already"
        named = {"discovery_peers": ",".join(peers)} if peers else {}
        variables = self.variables(**named, **settings) | ({"EDGECDN_CRASH": crash} if crash else {})
        began = time.monotonic()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgecdn_agent"],
                cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        await self._ready(began)
        self.ready_s = time.monotonic() - began

    async def _ready(self, began: float) -> None:
        async with aiohttp.ClientSession() as session:
            while not await self._is_ready(session):
                assert self.running, f"{self.name} ended\n{self.log}"
                assert time.monotonic() - began < READY_LIMIT_S, f"{self.name} is not ready\n{self.log}"
                await asyncio.sleep(_LOOK_S)

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        address = find_agent(self.home)
        if address is None or self.process is None or address.run.pid != self.process.pid:
            return False
        wanted = {name for name in ("lan", "swarm") if self.settings.get(f"{name}_listen") != "off"}
        if not wanted <= address.run.listeners.keys():
            return False
        try:
            async with session.get(f"{address.url}/healthz") as answer:
                return answer.status == 200
        except (TimeoutError, aiohttp.ClientError):
            return False

    @property
    def running(self) -> bool:
        """Whether its agent has not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Its agent's process."""
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """All that its agents said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def listener(self, name: str) -> str:
        """HOST:PORT of `local`, `lan` or `swarm`, as it really is."""
        found: str = json.loads((self.home / "run.json").read_text())["listeners"][name]
        return found

    @property
    def lan(self) -> str:
        """HOST:PORT of its LAN server."""
        return self.listener("lan")

    async def get(self, path: str) -> Any:
        """GET JSON from the local listener, as a program of its user."""
        headers = {"Authorization": f"Bearer {(self.home / 'api-token').read_text().strip()}"}
        url = f"http://{self.listener('local')}{path}"
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, headers=headers) as answer:
            answer.raise_for_status()
            return await answer.json(content_type=None)

    async def ask(self, method: str, path: str, data: bytes | None = None) -> tuple[int, bytes]:
        """Ask its LAN server, as a peer; the path below /edgecdn/v1."""
        url = f"http://{self.lan}/edgecdn/v1{path}"
        timeout = aiohttp.ClientTimeout(total=5)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, data=data) as answer,
        ):
            return answer.status, await answer.read()

    async def hello(self) -> Hello:
        """Who it says it is."""
        return parse_hello((await self.ask("GET", "/hello"))[1])

    async def state(self, digest: str) -> BlobState | None:
        """What it tells peers of a blob; None: nothing."""
        query = encode_have_query([Digest.parse(digest)], inline=False)
        status, body = await self.ask("POST", "/have", query)
        assert status == 200, body
        return parse_have_answer(body).get(Digest.parse(digest))

    async def gives(self, digest: str) -> float:
        """Wait until peers can have a blob of it over the swarm (or whole, if it is small)."""

        async def can() -> bool:
            state = await self.state(digest)
            return state is not None and state.complete and (bool(state.root) or state.size <= 64 << 10)

        return await eventually(can, _GIVEN_LIMIT_S, f"{self.name} gives {digest[:12]}")

    async def knows(self, count: int, limit_s: float = 30.0) -> float:
        """Wait until it sees so many peers."""

        async def sees() -> bool:
            return len(await self.get("/edgecdn/v1/peers")) >= count

        return await eventually(sees, limit_s, f"{self.name} knows {count} peers")

    async def fetch_here(self, model: str, *, include: tuple[str, ...] = (), **settings: str) -> Fetched:
        """Have its agent fetch; events are kept in `events`."""

        def listen(event: Event) -> None:
            self.events.append(event)

        loaded = load_settings(self.variables(**settings))
        wanted = Wanted(ref=ModelRef.parse(model), files=FileSet(include=include))
        return await fetch_wanted(wanted, loaded, listen)

    def kill_agent(self) -> None:
        """Kill -9: no goodbye to anyone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_LIMIT_S)

    async def ended(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Wait until its agent has ended by itself; its exit code."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, limit_s)

    async def stop_agent(self) -> int:
        """Ask it to end, and wait; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def close(self) -> None:
        """End all that still runs here."""
        self.kill_agent()
        self.captured.append(self.log)
        await super().close()


class AgentLab:
    """The agents of one test."""

    def __init__(self, base: Path, hubs: tuple[TestHub | str, ...], settings: dict[str, str]) -> None:
        self.base, self.hubs, self.settings = base, hubs, settings
        self.agents: list[Agent] = []
        self.others: list[str] = []
        """Addresses of peers that are none of ours, told to all that start from now on."""

    def machine(self, name: str, *hubs: TestHub | str, **settings: str) -> Agent:
        """A machine whose agent does not run yet. `hubs`: others than the lab's."""
        made = Agent(self.base, name, hubs or self.hubs, {**self.settings, **settings})
        self.agents.append(made)
        return made

    async def agent(self, name: str, *hubs: TestHub | str, crash: str = "", **settings: str) -> Agent:
        """One more machine, its agent running, told of all that run."""
        made = self.machine(name, *hubs, **settings)
        await self.start(made, crash=crash)
        return made

    async def start(self, agent: Agent, *, crash: str = "", **settings: str) -> None:
        """Start (again) the agent of a machine, told of all that run, and of `others`."""
        running = [a.lan for a in self.agents if a is not agent and a.running]
        await agent.start_agent(peers=(*running, *self.others), crash=crash, **settings)

    async def close(self) -> None:
        """End all of them."""
        for agent in self.agents:
            await agent.close()

    def check(self) -> None:
        """The oracle, on every machine."""
        for agent in self.agents:
            agent.check()


@asynccontextmanager
async def lab(base: Path, *hubs: TestHub | str, **settings: str) -> AsyncIterator[AgentLab]:
    """Agents that use `hubs`, in folders below `base`; ended and checked at the end of the block."""
    made = AgentLab(base, hubs, settings)
    try:
        yield made
    except BaseException:
        for agent in made.agents:
            sys.stderr.write(f"---- {agent.name}\n{agent.log[-6000:]}\n")
        raise
    finally:
        await made.close()
    made.check()
