"""Many agents on one machine: how soon all know all, and what each costs at rest.

`python -m benchmarks.lab_many [COUNT]` (50). Real agents over loopback, each with its own home and cache,
told of the first one only.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.agent.agents import Agent, AgentLab, lab

__all__ = ["lab_many"]

_AT_ONCE = 4
_KNOWN_LIMIT_S = 120.0
_SETTLE_S = 10.0
_IDLE_S = 20.0
_NOBODY = "http://127.0.0.1:9"


async def lab_many(base: Path, count: int) -> str:
    """Start them, wait until all see all, look at them at rest."""
    async with lab(base, _NOBODY) as made:
        began = time.monotonic()
        first = await made.agent("agent0")
        await _start_rest(made, first, count)
        started_s = time.monotonic() - began
        for agent in made.agents:
            await agent.knows(count - 1, _KNOWN_LIMIT_S)
        known_s = time.monotonic() - began
        await asyncio.sleep(_SETTLE_S)
        processes = [psutil.Process(agent.pid) for agent in made.agents]
        before = sum(map(_processor_s, processes))
        await asyncio.sleep(_IDLE_S)
        used = (sum(map(_processor_s, processes)) - before) / _IDLE_S / count
        resident = [process.memory_info().rss / 1e6 for process in processes]
        unique = [process.memory_full_info().uss / 1e6 for process in processes]
        ready = sorted(agent.ready_s for agent in made.agents)
    return (
        f"{count} agents on {psutil.cpu_count()} cores: all started after {started_s:.1f} s ({_AT_ONCE} at a time, "
        f"each ready after {ready[len(ready) // 2]:.2f} s in the median), all see all after {known_s:.1f} s; at rest "
        f"{used * 100:.2f} % of a core each, {max(resident):.0f} MB resident at most, "
        f"{sum(unique) / count:.0f} MB of its own in the mean"
    )


async def _start_rest(made: AgentLab, first: Agent, count: int) -> None:
    turns = asyncio.Semaphore(_AT_ONCE)

    async def start(agent: Agent) -> None:
        async with turns:
            await agent.start_agent(peers=(first.lan,))

    async with asyncio.TaskGroup() as group:
        for number in range(1, count):
            group.create_task(start(made.machine(f"agent{number}")))


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(asyncio.run(lab_many(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 50)))
