"""Commands typed on an agent's machine, and what its agent then says of its jobs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import psutil

from tests.agent.agents import Agent, eventually
from tests.faults.machine import Ran

__all__ = ["began", "jobs", "once_agents", "ran", "result", "soon", "the_job", "told"]


async def began(agent: Agent, *arguments: str, **settings: str) -> asyncio.subprocess.Process:
    """Start `edgecdn ARGUMENTS` with the settings of the machine's agent; it is ended with the test."""
    return await agent.start(*arguments, hubs=agent.hubs, variables=_variables(agent, settings))


async def ran(agent: Agent, *arguments: str, **settings: str) -> Ran:
    """Run it to its end."""
    return await agent.run(*arguments, hubs=agent.hubs, variables=_variables(agent, settings))


def _variables(agent: Agent, settings: dict[str, str]) -> dict[str, str]:
    """`HF_TOKEN="x"` is taken as it is, `limits_wan="1MB/s"` is a setting."""
    plain = {name: value for name, value in settings.items() if name.isupper()}
    return agent.variables(**{name: value for name, value in settings.items() if name not in plain}) | plain


def result(done: Ran) -> dict[str, Any]:
    """What `fetch --json` printed."""
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def told(done: Ran, agent: Agent) -> tuple[int, str]:
    """Exit code and message, the same on every machine: folders and times are left out."""
    text = done.err.replace(str(agent.base), "BASE")
    return done.code, re.sub(r"\d+(\.\d+)? (s|ms)\b", "N s", text)


async def jobs(agent: Agent) -> list[dict[str, Any]]:
    """All its jobs, as `status` shows them."""
    found: list[dict[str, Any]] = await agent.get("/edgecdn/v1/jobs")
    return found


async def the_job(agent: Agent, holds: Callable[[dict[str, Any]], Any], limit_s: float = 40.0) -> dict[str, Any]:
    """Wait until it has just one job, and that is so."""
    seen: list[dict[str, Any]] = []

    async def is_so() -> bool:
        seen[:] = await jobs(agent)
        return len(seen) == 1 and bool(holds(seen[0]))

    await eventually(is_so, limit_s, "the job")
    return seen[0]


async def soon(holds: Callable[[], object], limit_s: float = 40.0, what: str = "it") -> float:
    """Wait until that is so; returns how long it took."""

    async def is_so() -> bool:
        return bool(holds())

    return await eventually(is_so, limit_s, what)


def once_agents(parent: int) -> list[int]:
    """Process ids of the agents that a command runs for its fetch."""
    try:
        children = psutil.Process(parent).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for child in children:
        try:
            if "--once" in child.cmdline():
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found
