"""Agents on lab networks, beside bare libtorrent, iperf3, rsync and curl in the same run.

`python -m benchmarks.lab [lab-one] [lab-crowd] [lab-idle]`. All files are in memory (/dev/shm): the
machines of the lab share one disk, which would decide otherwise.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bare_swarm import BEST_CROWD, BEST_ONE, CROWD, MIB, in_a_lab, main
from benchmarks.lab_rivals import copied_by_curl, copied_by_rsync, link_mbit, shown
from benchmarks.lab_swarm import Swarm, swarm_seconds
from tests.lab.hub import LabHub
from tests.lab.machine import Machine
from tests.lab.world import World

__all__ = ["WAYS", "lab_crowd", "lab_idle", "lab_one"]

_LOOK_S = 0.1
_KNOWN_LIMIT_S = 120.0
_FETCH_LIMIT_S = 600.0
_IDLE_S = 20.0
_SETTLE_S = 5.0


@in_a_lab
def lab_one(base: Path) -> str:
    """1 Gbit/s, one holder, one taker, 2 GiB: from `fetch` to published and verified."""
    found, floor_s = asyncio.run(_compared(base, 2048 * MIB, 1000, 1, BEST_ONE))
    return f"{found}   bar >= 0.90 of iperf3 (bytes / link {floor_s:.2f} s)"


@in_a_lab
def lab_crowd(base: Path) -> str:
    """100 Mbit/s, one holder, eight takers at once, 200 MiB: the last one published and verified."""
    found, floor_s = asyncio.run(_compared(base, 200 * MIB, 100, CROWD, BEST_CROWD))
    return f"{found}   bar <= 1.15 x libtorrent (bytes / link {floor_s:.2f} s)"


@in_a_lab
def lab_idle(base: Path) -> str:
    """An idle agent with 1,000 catalogued blobs: ready time, memory and processor over 20 s."""
    return asyncio.run(_idle(base))


async def _compared(base: Path, size: int, mbit: float, count: int, best: Swarm) -> tuple[str, float]:
    floor_s = size * 8 / 1e6 / mbit
    async with World(base) as world:
        hub = world.hub("--generate", f"org/big=1x{size // MIB}MiB")
        holder = world.machine("holder", mbit)
        takers = [world.machine(f"taker{number}", mbit) for number in range(1, count + 1)]
        ours, hub_bytes = await _fetched_by_all(hub, holder, takers, size)
        for machine in (holder, *takers):
            assert machine.agent is not None
            await machine.agent.stop()
        data = max(holder.blobs(), key=lambda path: path.stat().st_size)
        rest = await asyncio.to_thread(_rivals, base / "rivals", data, holder, takers, best)
    measured, by, bare, rsync, curl = rest
    share = size * 8 / 1e6 / ours / measured
    parts = [
        f"{size // MIB} MiB, {mbit:g} Mbit/s links ({by}: {measured:.0f}), {count} takers, in memory",
        shown("edgecdn", ours, floor_s) + f" = {share:.3f} of {by.split()[0]}, {ours / bare:.3f} x libtorrent",
        shown("libtorrent", bare, floor_s),
        shown("rsync", rsync, floor_s),
        shown("curl + sha256sum", curl, floor_s),
        f"hub sent {hub_bytes / 1000:.0f} kB (bar 100)",
    ]
    return "; ".join(parts), floor_s


async def _fetched_by_all(hub: LabHub, holder: Machine, takers: Sequence[Machine], size: int) -> tuple[float, int]:
    await holder.start_agent()
    await holder.fetch("org/big", limit_s=_FETCH_LIMIT_S)
    async with asyncio.TaskGroup() as group:
        for taker in takers:
            group.create_task(taker.start_agent())
    await _until(holder, lambda status: status["cache"]["bytes"] >= size)
    for machine in (holder, *takers):
        await _until(machine, lambda status: status["peers"] >= len(takers))
    hub.reset_stats()
    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for taker in takers:
            group.create_task(taker.fetch("org/big", limit_s=_FETCH_LIMIT_S))
    return time.monotonic() - started, int(hub.stats()["total"])


def _rivals(
    folder: Path, data: Path, holder: Machine, takers: Sequence[Machine], best: Swarm
) -> tuple[float, str, float, float | None, float | None]:
    nodes = [taker.node for taker in takers]
    measured, by = link_mbit(holder.node, nodes[0])
    seconds, _ = swarm_seconds(folder / "swarm", data, holder.node, nodes, best)
    rsync = copied_by_rsync(data, holder.node, nodes, folder / "rsync")
    curl = copied_by_curl(data, holder.node, nodes, folder / "curl")
    return measured, by, max(seconds), rsync, curl


async def _idle(base: Path) -> str:
    async with World(base) as world:
        world.hub("--generate", "org/many=1000x16KiB")
        machine = world.machine("one")
        await machine.edgecdn("fetch", "org/many", limit_s=_FETCH_LIMIT_S)
        first = await machine.start_agent()
        await _until(machine, lambda status: status["cache"]["bytes"] >= 1000 * 16 * 1024)
        await first.stop()
        agent = await machine.start_agent()
        ready_s = machine.ready_s
        await asyncio.sleep(_SETTLE_S)
        process = psutil.Process(agent.pid)
        before = _processor_s(process)
        await asyncio.sleep(_IDLE_S)
        used = (_processor_s(process) - before) / _IDLE_S
        resident = sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
        stopping = time.monotonic()
        await agent.stop()
        stopped_s = time.monotonic() - stopping
    return (
        f"1,000 catalogued blobs: ready after {ready_s:.2f} s (bar 2), {resident / 1e6:.0f} MB resident (bar 120), "
        f"{used * 100:.2f} % of a core over {_IDLE_S:.0f} s (bar 1), stopped after {stopped_s:.2f} s (bar 5)"
    )


def _processor_s(process: psutil.Process) -> float:
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


async def _until(machine: Machine, holds: Callable[[Any], bool]) -> None:
    deadline = time.monotonic() + _KNOWN_LIMIT_S
    while not holds(status := await machine.get("/edgecdn/v1/status")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{machine.name} after {_KNOWN_LIMIT_S} s: {status}")
        await asyncio.sleep(_LOOK_S)


WAYS: dict[str, Callable[[Path], str]] = {"lab-one": lab_one, "lab-crowd": lab_crowd, "lab-idle": lab_idle}

if __name__ == "__main__":
    main(WAYS, sys.argv[1:])
