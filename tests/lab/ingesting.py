"""Several machines that take one model at the same moment: begun together, watched, and what they cost the line.

async with taking(hub, *machines) as crowd:
    await crowd.came(0.4)                       # each of them has 40 % of it
    await crowd.ranked()[0].kill()              # its coordinator
    await crowd.done(besides=[crowd.ranked()[0]])
crowd.check_copies(ONE_COPY)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from edgecdn.control import API
from edgecdn.digest import Digest
from edgecdn_agent.ingest.world import rank_of
from tests.lab.asking import session_in
from tests.lab.fetching import Fetching, asked, met
from tests.lab.hub import LabHub
from tests.lab.links import Rate
from tests.lab.machine import Machine
from tests.lab.world import World

__all__ = [
    "BY_ADDRESS", "MIB", "MODEL", "ONE_COPY", "Crowd", "Model", "at_address", "healed", "model_at", "partitioned",
    "started", "taking",
]  # fmt: skip

MIB = 1 << 20
MODEL = "org/big"
ONE_COPY = 1.2
"""What a fault may cost: bytes of the line, as a share of the model."""
BY_ADDRESS = ("--host", "0.0.0.0", "--cdn-host", "0.0.0.0", "--no-cdn")
"""A hub whose rules can tell machines apart (`at_address`): each asks it, for all, at an address of its own."""
_LIMIT_S = 40.0
_ADDRESSES = "10.77.1"
_NOBODY = "02:00:00:00:00:99"


@dataclass(frozen=True, slots=True)
class Model:
    """The large files of a model of the hub: which digest has how many bytes."""

    files: dict[Digest, int]

    @property
    def size(self) -> int:
        """All of them, bytes."""
        return sum(self.files.values())


class Crowd:
    """Machines that take a model; `fetchings` says what came to each."""

    def __init__(self, hub: LabHub, model: Model, ids: dict[Machine, str], fetchings: dict[Machine, Fetching]) -> None:
        self.hub, self.model, self.fetchings = hub, model, fetchings
        self._ids = ids

    def ranked(self) -> list[Machine]:
        """The machines by their rank for the (one large) file: the coordinator, its successor, and so on."""
        (digest,) = self.model.files
        return sorted(self._ids, key=lambda machine: rank_of(digest, self._ids[machine]))

    async def came(self, share: float, *, besides: Collection[Machine] = (), limit_s: float = _LIMIT_S) -> None:
        """Until each has that share of the model, wherever from."""
        size = int(self.model.size * share)
        await asyncio.gather(*(self.fetchings[one].came(size, limit_s=limit_s) for one in self._but(besides)))

    async def reader(self, *, besides: Collection[Machine] = (), limit_s: float = _LIMIT_S) -> Machine:
        """One that reads from the line at this moment: bytes of the hub just came to it."""
        waits = {
            asyncio.create_task(fetching.came(fetching.by_kind["origin"] + 1, "origin", limit_s)): machine
            for machine, fetching in self.fetchings.items()
            if machine not in besides
        }
        try:
            ended, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await ended.copy().pop()
            return waits[ended.pop()]
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def done(self, *, besides: Collection[Machine] = (), limit_s: float = _LIMIT_S) -> list[dict[str, Any]]:
        """The results of all but the lost; each of them has the whole model, and it is the hub's."""
        machines = self._but(besides)
        results = await asyncio.gather(*(self.fetchings[machine].done(limit_s) for machine in machines))
        wanted = {digest.hex: size for digest, size in self.model.files.items()}
        for machine in machines:
            has = {path.name: path.stat().st_size for path in machine.blobs()}
            assert wanted.items() <= has.items(), f"{machine.name} ended without the model: {has}"
        return results

    def copies(self) -> float:
        """How often the hub sent the model since it last began to count."""
        return float(self.hub.stats()["total"] / self.model.size)

    def check_copies(self, most: float = ONE_COPY) -> None:
        """The lab took it (about) once over the line, together."""
        sent = self.copies()
        assert sent <= most, f"the hub sent {sent:.3f} copies of the model (at most {most}); by machine:\n{self.said()}"

    def said(self) -> str:
        """What came to each, and where from."""
        lines = []
        for machine, fetching in self.fetchings.items():
            came = ", ".join(f"{kind} {count / MIB:.1f}" for kind, count in sorted(fetching.by_kind.items()))
            lines.append(f"  {machine.name}: {came or 'nothing'} MiB")
        return "\n".join(lines)

    def _but(self, besides: Collection[Machine]) -> list[Machine]:
        return [machine for machine in self.fetchings if machine not in besides]


@asynccontextmanager
async def taking(hub: LabHub, *machines: Machine, model: str = MODEL) -> AsyncIterator[Crowd]:
    """Ask all these agents for a model at once; the hub counts from here on."""
    known = await model_at(hub, model)
    states = await asyncio.gather(*(machine.get(f"{API}/status") for machine in machines))
    ids = {machine: str(state["agent_id"]) for machine, state in zip(machines, states, strict=True)}
    hub.reset_stats()
    async with AsyncExitStack() as stack:
        asking = [stack.enter_async_context(asked(machine, model)) for machine in machines]
        fetchings = dict(zip(machines, await asyncio.gather(*asking), strict=True))
        yield Crowd(hub, known, ids, fetchings)


async def started(*machines: Machine) -> None:
    """Start these agents, and wait until they know each other."""
    await asyncio.gather(*(machine.start_agent() for machine in machines))
    await met(*machines, limit_s=30)


async def model_at(hub: LabHub, name: str) -> Model:
    """What the hub says of a model."""
    url = f"{hub.url}/api/models/{name}/tree/main"
    async with session_in(hub.node.space) as session, session.get(url) as answer:
        answer.raise_for_status()
        listed = await answer.json()
    return Model({Digest.parse(row["lfs"]["oid"]): row["size"] for row in listed if row.get("lfs")})


def at_address(world: World, hub: LabHub, name: str, rate: Rate | float | None = None) -> tuple[Machine, str]:
    """Plug in a machine that asks the hub at an address of its own; a rule's `host` for it. The hub is BY_ADDRESS."""
    machine = world.machine(name, rate)
    address = f"{_ADDRESSES}.{len(world.machines)}"
    hub.node.space.ip("address", "add", f"{address}/16", "dev", "eth0")
    machine.hubs = (f"http://{address}:{hub.url.rpartition(':')[2]}",)
    return machine, f"{address}:*"


def partitioned(one: Sequence[Machine], other: Sequence[Machine]) -> None:
    """Let nothing that is addressed to the other side arrive, silently; the hub is reached from both.

    Frames go to a card that nobody has. What is sent to all at once (discovery) still passes.
    """
    for sender, receiver in _across(one, other):
        neighbour = ("lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
        sender.node.space.ip("neighbour", "replace", receiver.address, *neighbour)


def healed(one: Sequence[Machine], other: Sequence[Machine]) -> None:
    """End a partition."""
    for sender, receiver in _across(one, other):
        sender.node.space.ip("neighbour", "del", receiver.address, "dev", "eth0")


def _across(one: Sequence[Machine], other: Sequence[Machine]) -> list[tuple[Machine, Machine]]:
    there = [(sender, receiver) for sender in one for receiver in other]
    return there + [(receiver, sender) for sender, receiver in there]
