"""A machine of the lab: its home, its cache, its agent, commands on it and what may happen to it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.lab.asking import session_in
from tests.lab.network import Node
from tests.lab.processes import RUN_LIMIT_S, Program, Ran, base_variables, python

__all__ = ["Machine"]

READY_LIMIT_S = 30.0
_LOOK_S = 0.02


class Machine:
    """One machine; `settings` are in force for all that runs on it: `fetch_patience="1s"` is EDGECDN_FETCH_PATIENCE."""

    def __init__(self, node: Node, folder: Path, hubs: tuple[str, ...], settings: dict[str, str]) -> None:
        self.node, self.folder = node, folder
        self.home, self.cache = folder / "home", folder / "hub"
        self.hubs, self.settings = hubs, settings
        self.agent_command: tuple[str, ...] = (python(), "-m", "edgecdn", "agent", "run")
        self.agent: Program | None = None
        self.ready_s = 0.0
        self._programs: list[Program] = []
        self.home.mkdir(parents=True)
        self.cache.mkdir()

    @property
    def name(self) -> str:
        """Its name in the world."""
        return self.node.name

    @property
    def address(self) -> str:
        """Its address on the network, now."""
        return self.node.address

    def variables(self, **settings: str) -> dict[str, str]:
        """The environment of a program here."""
        named = {f"EDGECDN_{name.upper()}": value for name, value in {**self.settings, **settings}.items()}
        places = {"EDGECDN_HOME": str(self.home), "HF_HUB_CACHE": str(self.cache)}
        return {**base_variables(self.folder), **places, "EDGECDN_HUB_ENDPOINTS": ",".join(self.hubs), **named}

    async def start(self, *command: str, **settings: str) -> Program:
        """Start any program here; it is ended with the world."""
        program = await Program.start(self.node, command, self.variables(**settings), self.folder / "logs")
        self._programs.append(program)
        return program

    async def edgecdn(self, *arguments: str, limit_s: float = RUN_LIMIT_S, **settings: str) -> Ran:
        """Run `edgecdn ...` to its end; it never shows a traceback."""
        ran = await (await self.start(python(), "-m", "edgecdn", *arguments, **settings)).wait(limit_s)
        assert "Traceback" not in ran.err, ran.err
        return ran

    async def start_agent(self, **settings: str) -> Program:
        """Start the agent and wait until it answers; `ready_s` is how long that took."""
        assert self.agent is None or not self.agent.running, "its agent runs already"
        (self.home / "run.json").unlink(missing_ok=True)
        started = time.monotonic()
        self.agent = await self.start(*self.agent_command, **settings)
        await self._ready(self.agent)
        self.ready_s = time.monotonic() - started
        return self.agent

    async def _ready(self, agent: Program) -> None:
        async with session_in(self.node.space) as session:
            deadline = time.monotonic() + READY_LIMIT_S
            while not await self._answers(session):
                assert agent.running, f"the agent of {self.name} ended\n{agent.said()}"
                assert time.monotonic() < deadline, f"the agent of {self.name} is not ready\n{agent.said()}"
                await asyncio.sleep(_LOOK_S)

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.control_url}/healthz") as answer:
                return answer.status == 200
        except (FileNotFoundError, ValueError, KeyError, TimeoutError, aiohttp.ClientError):
            return False

    @property
    def control_url(self) -> str:
        """Where the agent answers this machine's own programs, from its run file."""
        run_file = json.loads((self.home / "run.json").read_text())
        return f"http://{run_file['listeners']['local']}"

    async def get(self, path: str) -> Any:
        """GET JSON from the agent, as a program on this machine."""
        token = self.home / "api-token"
        headers = {"Authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}
        url = self.control_url + path
        async with session_in(self.node.space) as session, session.get(url, headers=headers) as answer:
            answer.raise_for_status()
            return await answer.json(content_type=None)

    async def fetch(self, model: str, *options: str, limit_s: float = RUN_LIMIT_S, **settings: str) -> Ran:
        """`edgecdn fetch MODEL --json`, which must work."""
        ran = await self.edgecdn("fetch", model, "--json", *options, limit_s=limit_s, **settings)
        assert ran.code == 0, f"fetch on {self.name}: exit {ran.code}\n{ran.err}\n{self._agent_said()}"
        return ran

    async def peers(self) -> Any:
        """`edgecdn peers --json`."""
        return json.loads((await self._asked("peers")).out)

    async def status(self) -> Any:
        """`edgecdn status --json`."""
        return json.loads((await self._asked("status")).out)

    async def _asked(self, what: str) -> Ran:
        ran = await self.edgecdn(what, "--json")
        assert ran.code == 0, f"{what} on {self.name}: exit {ran.code}\n{ran.err}\n{self._agent_said()}"
        return ran

    def _agent_said(self) -> str:
        return "" if self.agent is None else f"its agent:\n{self.agent.said()}"

    async def kill(self) -> None:
        """Kill -9 of the agent."""
        assert self.agent is not None
        await self.agent.kill()

    def pause(self) -> None:
        """The machine sleeps: its agent is stopped where it is."""
        assert self.agent is not None
        self.agent.pause()

    def resume(self) -> None:
        """It wakes."""
        assert self.agent is not None
        self.agent.resume()

    def blobs(self) -> list[Path]:
        """Every complete blob."""
        return [path for path in sorted(self.cache.glob("*/blobs/*")) if len(path.name) in (40, 64)]

    async def close(self) -> None:
        """End all that still runs here."""
        for program in self._programs:
            await program.kill()

    def check(self) -> None:
        """The oracle: every visible blob is what its name says, no link dangles, the catalog is whole."""
        for blob in self.blobs():
            assert blob.name == _digest_of(blob), f"{blob} is not what its name says"
        for link in self.cache.glob("*/snapshots/*/**/*"):
            assert link.exists(), f"{link} dangles"
        database = self.home / "catalog.sqlite"
        if database.exists():
            connection = sqlite3.connect(database)
            try:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            finally:
                connection.close()


def _digest_of(blob: Path) -> str:
    size = blob.stat().st_size
    made = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with blob.open("rb") as file:
        while data := file.read(1 << 20):
            made.update(data)
    return made.hexdigest()
