"""The lab: machines on one switch, a hub behind its own line, everything ended and removed at the end."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.hub import LabHub
from tests.lab.links import Rate
from tests.lab.machine import Machine
from tests.lab.network import Network
from tests.lab.proxy import Proxy

__all__ = ["World"]

NO_HUB = "http://10.77.255.254:9"
"""What machines of a world without a hub ask: nobody there."""
ORDINARY = {"fetch_patience": "20s"}


class World:
    """`async with World(folder) as world: hub = world.hub("--generate", ...); a = world.machine("a", 100)`."""

    def __init__(self, folder: Path, *, oracle: bool = True) -> None:
        self.folder = folder
        self.network = Network()
        self.machines: list[Machine] = []
        self.hubs: list[LabHub] = []
        self.proxies: list[Proxy] = []
        self.servers: list[asyncio.Server] = []
        """Servers of the test itself, closed with the world."""
        self._oracle = oracle
        self._stack = ExitStack()

    async def __aenter__(self) -> Self:
        self._stack.enter_context(self.network)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for server in self.servers:
                server.close()
            for proxy in self.proxies:
                await proxy.close()
            for machine in self.machines:
                await machine.close()
        finally:
            self._stack.close()
        if kind is None and self._oracle:
            for machine in self.machines:
                machine.check()

    def hub(self, *arguments: str, rate: Rate | float | None = None) -> LabHub:
        """Start a hub; machines made after it use it. `rate` is its line, Mbit/s."""
        number = len(self.hubs) + 1
        node = self.network.node(f"hub{number}", rate)
        scratch = self.folder / f"hub{number}"
        self._stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        made = self._stack.enter_context(LabHub(node, "--scratch", str(scratch), *arguments))
        self.hubs.append(made)
        return made

    def machine(self, name: str, rate: Rate | float | None = None, **settings: str) -> Machine:
        """Plug in a machine; `settings` hold for all its programs."""
        hubs = tuple(hub.url for hub in self.hubs) or (NO_HUB,)
        made = Machine(self.network.node(name, rate), self.folder / name, hubs, {**ORDINARY, **settings})
        self.machines.append(made)
        return made

    async def proxy(self, at: Machine | str, port: int, target: tuple[str, int]) -> Proxy:
        """Start a proxy on a machine, or on a new one of that name, which hands on to `target` until told otherwise."""
        node = self.network.node(at) if isinstance(at, str) else at.node
        made = await Proxy.start(node.space, (node.address, port), target)
        self.proxies.append(made)
        return made
