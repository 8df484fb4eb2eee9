"""A stand-in agent as a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edgecdn.agent_link import AgentAddress, find_agent
from tests.hub.process import ROOT

__all__ = ["COMMAND", "agent_process", "wait_for"]

COMMAND = [sys.executable, "-m", "tests.agent.standin"]


def wait_for(home: Path, process: subprocess.Popen[bytes], limit_s: float = 40.0) -> AgentAddress:
    """Until it answers for the home."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        assert process.poll() is None, process.returncode
        address = find_agent(home)
        if address is not None and address.run.pid == process.pid:
            return address
        time.sleep(0.02)
    raise AssertionError("the agent does not start")


@contextlib.contextmanager
def agent_process(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], AgentAddress]]:
    """Running; killed in the end if it still does."""
    with subprocess.Popen(COMMAND, cwd=ROOT, env=os.environ | {"EDGECDN_HOME": str(home)}) as process:
        try:
            yield process, wait_for(home, process)
        finally:
            process.kill()
