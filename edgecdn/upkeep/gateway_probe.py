"""Whether the gateway of this user's agent answers: asked before a tool is pointed at it.

A tool with HF_ENDPOINT at a dead gateway is far worse off than without one: with a warm cache, transformers took
54 s to load.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from edgecdn.agent_link import AgentAddress, find_agent
from edgecdn.errors import AgentHangs, AgentNotRunning

__all__ = ["PROBE_S", "probe_gateway"]

PROBE_S = 1.0
"""Both questions together; an agent that lives answers in milliseconds (seconds)."""

_PROBE = "/api/telemetry/edgecdn"
"""What the gateway answers by itself, without a hub."""

_HUB_LIKE = frozenset({"X-Error-Code", "X-Error-Message"})
"""An answer in a hub's form; the rest of the listener speaks otherwise."""


async def probe_gateway(home: Path) -> AgentAddress:
    """Where the agent of `home` serves hub clients. Raises AgentNotRunning when it does not, or not in time."""
    address = find_agent(home)
    if address is None:
        raise AgentNotRunning
    try:
        async with asyncio.timeout(PROBE_S), aiohttp.ClientSession(trust_env=False) as session:
            async with session.get(f"{address.url}/healthz") as health:
                await health.read()
            async with session.head(f"{address.url}{_PROBE}", allow_redirects=False) as told:
                serves = any(name in told.headers for name in _HUB_LIKE)
    except TimeoutError:
        raise AgentHangs(f": no answer for {PROBE_S:.0f} s", pid=address.run.pid) from None
    except aiohttp.ClientError as error:
        raise AgentNotRunning(f" ({error})" if str(error) else "") from error
    if not serves:
        raise AgentNotRunning(" (it has no gateway)", hint="Restart it: `edgecdn agent stop`, `edgecdn agent start`.")
    return address
