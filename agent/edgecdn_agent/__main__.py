"""`python -m edgecdn_agent`: the agent as a program. Errors end it with their exit code, as the command's do."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import secrets
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import msgspec

from edgecdn.errors import EdgecdnError
from edgecdn.once import Greeting
from edgecdn.settings import Settings, load_settings
from edgecdn.sources.hub_client import guard_hub_client
from edgecdn_agent.control.logs import configure_logs
from edgecdn_agent.daemon import Daemon, Identity, Mode
from edgecdn_agent.run_file import HomeLock, agent_id, api_token, remove_run_file

_log = logging.getLogger("edgecdn_agent")

_NICE = 5
"""The agent yields to what its user runs: a training is worth more than a transfer."""


_DESCRIPTORS = 8192


def main() -> int:
    """Run until SIGTERM or SIGINT; with `--once` until standard input ends."""
    parser = argparse.ArgumentParser(prog="edgecdn-agent", description="The edgecdn agent of this user.")
    parser.add_argument("--once", action="store_true", help="serve one fetch: end when standard input does")
    parser.add_argument("--log-format", choices=["text", "json"], default="text")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    configure_logs(options.log_format, verbose=options.verbose)
    guard_hub_client()
    _take_descriptors()
    try:
        settings = load_settings()
        if options.once:
            with tempfile.TemporaryDirectory(prefix="edgecdn-once-") as scratch:
                return asyncio.run(_once(settings, Path(scratch)))
        with suppress(OSError):
            os.nice(_NICE)
        with HomeLock(settings.home):
            try:
                identity = Identity(agent_id(settings.home), api_token(settings.home))
                return asyncio.run(_serve(settings, identity))
            finally:
                remove_run_file(settings.home)
    except EdgecdnError as error:
        sys.stderr.write(f"edgecdn: {error.message}\n  {error.remedy}\n")
        return error.exit_code


def _take_descriptors() -> None:
    """As many as we may: peers and swarms of a lab can hold more than the 1024 that programs begin with."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(_DESCRIPTORS, most)
    if resource.RLIM_INFINITY != now < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


async def _serve(settings: Settings, identity: Identity) -> int:
    daemon = Daemon(settings, identity, Mode(once=False, scratch=settings.home))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, daemon.stop)
    _log.info("agent starts home=%s cache=%s", settings.home, settings.cache_dir)
    await daemon.run()
    _log.info("agent has stopped")
    return 0


async def _once(settings: Settings, scratch: Path) -> int:
    """As an agent that nobody knows before, and that leaves nothing behind."""
    identity = Identity(secrets.token_hex(16), secrets.token_urlsafe(32))
    daemon = Daemon(settings, identity, Mode(once=True, scratch=scratch))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, daemon.stop)

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        with suppress(RuntimeError):  # the loop is closed: it ended before
            loop.call_soon_threadsafe(daemon.stop)

    threading.Thread(target=wait_for_end, daemon=True, name="edgecdn-stdin").start()

    async def greet() -> None:
        await daemon.settled()
        sys.stdout.buffer.write(msgspec.json.encode(Greeting(daemon.run_info(), identity.token)) + b"\n")
        sys.stdout.buffer.flush()

    async with asyncio.TaskGroup() as group:
        greeting = group.create_task(greet())
        await daemon.run()
        greeting.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(main())
