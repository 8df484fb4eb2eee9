"""A lab that takes a model together, which nobody has: how soon the last machine has it, and what the line carried.

`python -m benchmarks.lab_ingest [shared] [three] [equal] [killed] [joiner] [holder] [throttled] [rivals] [--scale 0.2]`.
Agents are processes in network namespaces; files lie in memory (/dev/shm). Bounds are the model's bytes over the nominal
rate of the line or link; TCP and IP headers alone make 1.046 of it. `--scale` shrinks the models, for a quick look only:
what a start costs weighs more then.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import bare_swarm
from benchmarks.bare_swarm import BEST_CROWD, in_a_lab
from benchmarks.lab_ingest_rivals import RIVALS, Rival, Shape
from benchmarks.lab_ingest_watch import watched
from benchmarks.lab_rivals import copied_by_rsync
from benchmarks.lab_swarm import swarm_seconds
from tests.hub import slow_total
from tests.lab.fetching import Fetching, asked, filled, until
from tests.lab.hub import LabHub
from tests.lab.ingesting import BY_ADDRESS, MODEL, Crowd, at_address, started, taking
from tests.lab.machine import Machine
from tests.lab.world import World

__all__ = ["WAYS"]

_LIMIT_S = 900.0
_CONNECTIONS = 8
"""The default of limits.hub_connections."""
_QUOTA_MBIT = 10.0
_SHARED = Shape(files=1, mib=300)
_THREE = Shape(files=3, mib=100)
_EQUAL = Shape(files=1, mib=300, line=100)
_HELD = Shape(files=1, mib=200, line=100)
_THROTTLED = Shape(files=1, mib=100, line=None)

_T = TypeVar("_T")
Act = Callable[[World, Crowd], Awaitable[list[Machine]]]
"""What happens meanwhile; returns the machines that are lost."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds from the first request to the last machine's result, and to the first's; what the hub gave."""

    last_s: float
    first_s: float
    copies: float
    wire: float
    connections: int
    busy: int
    kinds: str

    def shown(self, floor_s: float, bar: float, copies_bar: float | None = 1.02) -> str:
        """One line."""
        ratio = self.last_s / floor_s
        return (
            f"last machine {self.last_s:.2f} s = {ratio:.3f} x {_bar(ratio, bar)}, first {self.first_s:.2f} s; "
            f"hub sent {self.copies:.3f} copies{'' if copies_bar is None else ' ' + _bar(self.copies, copies_bar)} "
            f"({self.wire:.3f} with headers), {self.connections} connections for them at most "
            f"{_bar(self.connections, _CONNECTIONS)}, {self.busy} of them busy; {self.kinds}"
        )


def shared(base: Path, scale: float = 1.0) -> str:
    """8 machines, LAN 100 Mbit/s, shared line 50 Mbit/s, 300 MiB in one file."""
    return _told(base, _scaled(_SHARED, scale), 1.10)


def three(base: Path, scale: float = 1.0) -> str:
    """The same in three files."""
    return _told(base, _scaled(_THREE, scale), 1.10)


def equal(base: Path, scale: float = 1.0) -> str:
    """The line is as fast as the LAN."""
    return _told(base, _scaled(_EQUAL, scale), 1.25)


def killed(base: Path, scale: float = 1.0) -> str:
    """The coordinator is killed (-9) when each has 40 %; the last of the others."""

    async def act(world: World, crowd: Crowd) -> list[Machine]:
        await crowd.came(0.4, limit_s=_LIMIT_S)
        lost = crowd.ranked()[0]
        await lost.kill()
        return [lost]

    return _told(base, _scaled(_SHARED, scale), 1.15, act)


def joiner(base: Path, scale: float = 1.0) -> str:
    """One more comes when each has half; measured from its own request, against its own link."""
    shape = _scaled(_SHARED, scale)
    own_s: list[float] = []

    async def act(world: World, crowd: Crowd) -> list[Machine]:
        late = world.machines[-1]
        await crowd.came(0.5, limit_s=_LIMIT_S)
        async with asked(late, MODEL) as fetching:
            own_s.append(await _ended(fetching) - fetching.began)
        return []

    found = _told(base, shape, 1.12, act, more=1)
    link_s = shape.floor_s * (shape.line or 0) / shape.lan
    ratio = own_s[0] / link_s
    return f"{found}; the joiner {own_s[0]:.2f} s = {ratio:.3f} x bytes / its link {_bar(ratio, 1.15)}"


def holder(base: Path, scale: float = 1.0) -> str:
    """No line: one peer has 200 MiB, eight want it at once; beside libtorrent and rsync on the same cables."""
    return _clean(base, partial(_held, base, _scaled(_HELD, scale)))


def throttled(base: Path, scale: float = 1.0) -> str:
    """The hub gives each machine 10 Mbit/s, the line is not the limit; beside one machine alone."""
    shape = _scaled(_THROTTLED, scale)
    alone = _clean(base / "alone", partial(_by_quota, base / "alone", replace(shape, machines=1)))
    found = _clean(base / "all", partial(_by_quota, base / "all", shape))
    gain = alone.last_s / found.last_s
    floor_s = replace(shape, line=_QUOTA_MBIT * shape.machines).floor_s
    return (
        f"{_what(shape)}, each {_QUOTA_MBIT:g} Mbit/s at the hub: alone {alone.last_s:.2f} s, together {gain:.2f} x "
        f"faster {_bar(gain, 5.0, least=True)}; {found.shown(floor_s, 8 / 5)}"
    )


def rivals(base: Path, scale: float = 1.0) -> str:
    """The first shape, and what a lab would do instead: a table."""
    shape = _scaled(_SHARED, scale)
    ours = _clean(base / "edgecdn", partial(_run, base / "edgecdn", shape, None, 0))
    rows = {"edgecdn": Rival(ours.last_s, ours.copies, ours.connections)}
    for name, rival in RIVALS.items():
        rows[name] = _clean(base / "rival", partial(rival, base / "rival", shape))
    lines = ["", f"| {_what(shape)} | last machine, s | x bytes / line | copies over the line | connections |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name, row in rows.items():
        figures = (
            f"{row.seconds:.1f}",
            f"{row.seconds / shape.floor_s:.2f}",
            f"{row.copies:.3f}",
            f"{row.connections}",
        )
        lines.append(f"| {name} | {f'{row.missing} | | |' if row.missing else ' | '.join(figures)} |")
    return "\n".join(lines)


def _told(base: Path, shape: Shape, bar: float, act: Act | None = None, *, more: int = 0) -> str:
    found = _clean(base, partial(_run, base, shape, act, more))
    return f"{_what(shape)}: {found.shown(shape.floor_s, bar)}"


async def _run(base: Path, shape: Shape, act: Act | None, more: int) -> Taken:
    """The machines of the shape ask at once; `more` are there as well, and ask nothing by themselves."""
    async with World(base / "world") as world:
        hub = world.hub("--generate", shape.generated, rate=shape.line)
        machines = [world.machine(f"desk{number}", shape.lan) for number in range(1, shape.machines + 1)]
        late = [world.machine(f"late{number}", shape.lan) for number in range(1, more + 1)]
        await started(*machines, *late)
        return await _measured(world, hub, machines, act)


async def _measured(
    world: World, hub: LabHub, machines: list[Machine], act: Act | None = None, *, url: str = ""
) -> Taken:
    """`url`: where the hub gives large files, if not at its CDN."""
    async with watched(hub, url or hub.cdn_url) as seen, taking(hub, *machines) as crowd:
        ends = {machine: asyncio.create_task(_ended(fetching)) for machine, fetching in crowd.fetchings.items()}
        try:
            for machine in await act(world, crowd) if act else []:
                ends.pop(machine).cancel()
            at = await asyncio.gather(*ends.values())
        finally:
            for task in ends.values():
                task.cancel()
        began = min(fetching.began for fetching in crowd.fetchings.values())
        total = [crowd.fetchings[machine].by_kind for machine in ends]
        kinds = " + ".join(
            f"{sum(by_kind[kind] for by_kind in total) / crowd.model.size / len(total):.3f} {name}"
            for kind, name in (("origin", "line"), ("lan", "lab"))
        )
        copies, size = crowd.copies(), crowd.model.size
        # Where one port gives all, connections kept for questions are no measure: answers under way are.
        most = int(hub.stats()["most_open_bodies"]) if url else seen.open
    return Taken(
        max(at) - began, min(at) - began, copies, seen.wire_bytes / size, most, seen.busy,
        f"each got {kinds} of it in the mean",
    )  # fmt: skip


async def _ended(fetching: Fetching) -> float:
    await fetching.done(_LIMIT_S)
    return time.monotonic()


async def _held(base: Path, shape: Shape) -> str:
    async with World(base / "world") as world:
        hub = world.hub("--generate", shape.generated)
        held = world.machine("holder", shape.lan)
        takers = [world.machine(f"desk{number}", shape.lan) for number in range(1, shape.machines + 1)]
        await filled(held, MODEL)
        await started(*takers)
        for taker in takers:
            await until(taker, "peers", lambda peers: len(peers) == len(takers), 60)
        found = await _measured(world, hub, takers)
        sent = hub.stats()["total"]
        for machine in (held, *takers):
            assert machine.agent is not None
            await machine.agent.stop()
        data = max(held.blobs(), key=lambda path: path.stat().st_size)
        nodes = [taker.node for taker in takers]
        seconds, _ = await asyncio.to_thread(swarm_seconds, base / "swarm", data, held.node, nodes, BEST_CROWD)
        rsync = await asyncio.to_thread(copied_by_rsync, data, held.node, nodes, base / "rsync")
    ratio = found.last_s / shape.floor_s
    beside = "rsync is not installed" if rsync is None else f"rsync {rsync / shape.floor_s:.2f} x"
    return (
        f"{_what(replace(shape, line=None))}, one holder: last machine {found.last_s:.2f} s = {ratio:.3f} x bytes / link "
        f"{_bar(ratio, 1.25)}, first {found.first_s:.2f} s; hub sent {sent / 1000:.0f} kB {_bar(sent / 1000, 100)}; "
        f"{found.kinds}; libtorrent {max(seconds) / shape.floor_s:.2f} x, {beside}"
    )


async def _by_quota(base: Path, shape: Shape) -> Taken:
    async with World(base / "world") as world:
        hub = world.hub("--generate", shape.generated, *BY_ADDRESS)
        placed = [at_address(world, hub, f"desk{number}", shape.lan) for number in range(1, shape.machines + 1)]
        await started(*(machine for machine, _ in placed))
        hub.inject(*(slow_total(_QUOTA_MBIT * 1e6 / 8, route="resolve", host=host) for _, host in placed))
        return await _measured(world, hub, [machine for machine, _ in placed], url=hub.url)


def _scaled(shape: Shape, scale: float) -> Shape:
    return replace(shape, mib=max(8, int(shape.mib * scale)))


def _what(shape: Shape) -> str:
    files = f"{shape.files} x {shape.mib} MiB" if shape.files > 1 else f"{shape.mib} MiB"
    line = "" if shape.line is None else f", line {shape.line:g}"
    return f"{shape.machines} machines, {files}, LAN {shape.lan:g} Mbit/s{line}"


def _bar(value: float, bar: float, *, least: bool = False) -> str:
    missed = value < bar if least else value > bar
    return f"({'at least' if least else 'bar'} {bar:g}{': MISSED' if missed else ''})"


def _clean(base: Path, run: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run it to its end; memory is not endless."""
    base.mkdir(parents=True, exist_ok=True)
    try:
        return asyncio.run(run())
    finally:
        shutil.rmtree(base, ignore_errors=True)


_NAMED = (shared, three, equal, killed, joiner, holder, throttled, rivals)
WAYS: dict[str, Callable[[Path], str]] = {f"ingest-{way.__name__}": in_a_lab(way) for way in _NAMED}


def main() -> None:
    """Run the named ones, or all, and print a line each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab_ingest")
    parser.add_argument("names", nargs="*", choices=[*(way.__name__ for way in _NAMED), []])
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    ways = {way.__name__: in_a_lab(partial(way, scale=options.scale)) for way in _NAMED}
    bare_swarm.main(ways, options.names)


if __name__ == "__main__":
    main()
