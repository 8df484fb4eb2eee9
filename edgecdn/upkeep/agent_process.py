"""The agent as a process of this user: start it detached, stop it. Who holds the home's lock is the agent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from edgecdn.agent_link import AgentAddress, AgentLink, find_agent, is_locked
from edgecdn.cache.safedir import disk_errors
from edgecdn.control import LOCK_FILE, HealthInfo
from edgecdn.errors import AgentHangs, AgentNotRunning, BadInput, SystemFailed
from edgecdn.settings import Settings

__all__ = [
    "agent_command",
    "agent_log",
    "agent_pid",
    "answering_agent",
    "failing_parts",
    "other_ports",
    "start_agent",
    "stop_agent",
    "waited_for",
]

_READY_S = 10.0
_STOP_S = 5.0
_POLL_S = 0.05
_ANSWER_S = 2.0
"""An agent that lives answers in milliseconds (seconds)."""

_OVER = ("done", "failed", "cancelled")
_LONG_LOG_BYTES = 10 << 20
"""A log beyond this is put aside (as agent.log.1) when the agent is started."""


def agent_command(*arguments: str) -> list[str]:
    """How the agent is run; -P: never from modules that lie in the current folder."""
    return [sys.executable, "-P", "-m", "edgecdn_agent", *arguments]


def agent_log(home: Path) -> Path:
    """Where an agent that was started detached writes its log."""
    return home / "agent.log"


def agent_pid(home: Path) -> int | None:
    """The process that serves `home`, by the lock it holds; None when there is none."""
    if not is_locked(home):
        return None
    with suppress(OSError, ValueError):
        pid = int((home / LOCK_FILE).read_bytes()[:20])
        return pid if pid > 1 else None
    return None


def answering_agent(home: Path, *, limit_s: float = _ANSWER_S, starting_s: float = _READY_S) -> int | None:
    """The process that serves `home`, once it has answered; None where there is none (any more).

    One that says nothing for `limit_s`, or is not there to be asked within `starting_s`: AgentHangs.
    """
    deadline = time.monotonic() + starting_s
    while (pid := agent_pid(home)) is not None:
        address = find_agent(home)
        if address is not None and address.run.pid == pid:
            began = time.monotonic()
            if asyncio.run(_health(address, limit_s)) is not None:
                return pid
            if time.monotonic() - began >= limit_s:
                raise AgentHangs(f": no answer for {limit_s:.0f} s", pid=pid)
        if time.monotonic() > deadline:
            raise AgentHangs(f": it does not serve after {starting_s:.0f} s", pid=pid)
        time.sleep(_POLL_S)
    return None


def other_ports(settings: Settings, listeners: Mapping[str, str]) -> list[str]:
    """Where an agent listens elsewhere than was set, because the port was taken: `lan 8388 instead of 8378`."""
    wanted = {"local": settings.gateway_listen, "lan": settings.lan_listen, "swarm": settings.swarm_listen}
    found = []
    for name, listen in wanted.items():
        port = listeners.get(name, "").rpartition(":")[2]
        if listen is not None and listen.port and port not in ("", str(listen.port)):
            found.append(f"{name} {port} instead of {listen.port}")
    return found


def waited_for(home: Path, *, limit_s: float = _ANSWER_S) -> int:
    """How many files and fetches of the agent somebody waits for; 0, too, where it does not say in time."""
    address = find_agent(home)

    async def ask(address: AgentAddress) -> int:
        async with asyncio.timeout(limit_s), AgentLink(address) as link:
            return sum(job.askers > 0 and job.state not in _OVER for job in await link.jobs())

    with suppress(AgentNotRunning, BadInput, TimeoutError):
        return asyncio.run(ask(address)) if address is not None else 0
    return 0


def start_agent(
    home: Path, command: Sequence[str], *, limit_s: float = _READY_S
) -> tuple[AgentAddress, dict[str, str]]:
    """Run it in a session of its own and wait until it is ready; returns where it is, and its failing parts with why.

    Raises SystemFailed when it ends at once (with what it said last), AgentNotRunning when it is not ready in time.
    """
    log = agent_log(home)
    with disk_errors(home):
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if log.exists() and log.stat().st_size > _LONG_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        began = os.fstat(fd).st_size
        process = subprocess.Popen(  # noqa: S603 - our own command; it outlives this process
            command,
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            start_new_session=True,
            env=os.environ | {"EDGECDN_HOME": str(home)},
        )
    finally:
        os.close(fd)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemFailed(f"the agent ended at once: {_last_words(log, began)}", hint=f"Its log is {log}.")
        address = find_agent(home)
        if address is not None and address.run.pid == process.pid:
            health = asyncio.run(_health(address))
            if health is not None and health.ready:
                process.returncode = 0  # it is meant to go on: no warning that nobody waited for it
                return address, failing_parts(health)
        time.sleep(_POLL_S)
    process.returncode = 0
    raise AgentNotRunning(f" (started, but not ready after {limit_s:.0f} s)", hint=f"Its log is {log}.")


def failing_parts(health: HealthInfo) -> dict[str, str]:
    """The parts that are down, and why each is (empty: not told)."""
    return {name: health.services[name].detail if name in health.services else "" for name in health.failing}


def stop_agent(home: Path, *, limit_s: float = _STOP_S) -> int | None:
    """Have it end; returns its process id, None when there was none. Raises SystemFailed when it does not end."""
    pid = agent_pid(home)
    if pid is None:
        return None
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + limit_s
    while agent_pid(home) == pid:
        if time.monotonic() > deadline:
            raise SystemFailed(
                f"the agent (process {pid}) did not stop within {limit_s:.0f} s",
                hint=f"Wait and look again with `edgecdn agent status`, or end it: kill -9 {pid}.",
            )
        time.sleep(_POLL_S)
    return pid


async def _health(address: AgentAddress, limit_s: float = _READY_S) -> HealthInfo | None:
    async with AgentLink(address) as link:
        try:
            async with asyncio.timeout(limit_s):
                return await link.health()
        except (AgentNotRunning, BadInput, TimeoutError):
            return None


def _last_words(log: Path, began: int) -> str:
    """What it wrote last, of this run."""
    with log.open("rb") as file:
        file.seek(max(began, log.stat().st_size - 4096))
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("edgecdn: ")]
    return (said or lines or ["it said nothing"])[-1].removeprefix("edgecdn: ")
