"""An agent for the time of one fetch: started here, told to end by the end of its standard input.

So it ends with this process, however this process ends. It has a port of its own, takes no lock and
leaves no `run.json`; it says where it is in the first line it prints.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec

from edgecdn.agent_link import AgentAddress
from edgecdn.control import RunInfo

__all__ = ["Greeting", "run_once"]

_log = logging.getLogger(__name__)

_START_S = 10.0
"""An agent that is not ready by then is done without."""

_STOP_S = 5.0


class Greeting(msgspec.Struct, frozen=True):
    """The line it prints when it is ready."""

    run: RunInfo
    token: str


@asynccontextmanager
async def run_once() -> AsyncIterator[AgentAddress | None]:
    """Run one; None when it does not come up, for whatever reason: a fetch goes on without."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # never modules of the folder the user happens to be in
            "-m",
            "edgecdn_agent",
            "--once",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=None if _log.isEnabledFor(logging.DEBUG) else asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us: we cancel the fetch in order, then it ends
        )
    except OSError as error:
        _log.info("no agent for this fetch: %s", error)
        yield None
        return
    try:
        yield await _greeting(process)
    finally:
        await _end(process)


async def _greeting(process: asyncio.subprocess.Process) -> AgentAddress | None:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            line = await process.stdout.readline()
        said = msgspec.json.decode(line, type=Greeting)
    except (TimeoutError, ValueError, msgspec.DecodeError) as error:
        _log.info("no agent for this fetch: %s", str(error) or type(error).__name__)
        return None
    return AgentAddress(said.run, said.token)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Also when cancelled again meanwhile: nothing is left running."""
    assert process.stdin is not None
    process.stdin.close()
    with suppress(TimeoutError):
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
