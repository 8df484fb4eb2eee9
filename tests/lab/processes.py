"""Programs running on a machine of the lab: ended with the world, what they said kept for messages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.lab.network import Node

__all__ = ["ROOT", "Program", "Ran"]

ROOT = Path(__file__).resolve().parents[2]
RUN_LIMIT_S = 50.0
_END_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


class Program:
    """One process; its output goes to files, so that it never waits for a reader."""

    def __init__(self, process: asyncio.subprocess.Process, out: Path, err: Path) -> None:
        self._process, self._out, self._err = process, out, err

    @classmethod
    async def start(cls, node: Node, command: tuple[str, ...], variables: Mapping[str, str], logs: Path) -> Self:
        """Run a command on a machine."""
        logs.mkdir(parents=True, exist_ok=True)
        number = len(list(logs.iterdir()))
        out, err = logs / f"{number:04d}.out", logs / f"{number:04d}.err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = await asyncio.create_subprocess_exec(
                *node.command(*command), cwd=ROOT, env=dict(variables),
                stdin=asyncio.subprocess.DEVNULL, stdout=out_file, stderr=err_file,
            )  # fmt: skip
        return cls(process, out, err)

    @property
    def pid(self) -> int:
        """Its id; what starts it in the namespace has become the program."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    @property
    def out(self) -> str:
        """What it printed so far."""
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it complained of so far."""
        return self._err.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def pause(self) -> None:
        """Stop it where it is, as a machine that sleeps."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    async def wait(self, limit_s: float = RUN_LIMIT_S) -> Ran:
        """Wait for its end."""
        try:
            async with asyncio.timeout(limit_s):
                code = await self._process.wait()
        except TimeoutError:
            raise TimeoutError(f"still running after {limit_s} s\n{self.said()}") from None
        return Ran(code, self.out, self.err)

    async def stop(self) -> Ran:
        """Ask it to end (SIGTERM) and wait."""
        if self.running:
            self.signal(signal.SIGTERM)
        return await self.wait(_END_LIMIT_S)

    async def kill(self) -> None:
        """End it with SIGKILL: no goodbye to anyone."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self.wait(_END_LIMIT_S)

    def said(self, last: int = 4000) -> str:
        """Quote its output for a failure's message."""
        return f"--- stdout\n{self.out[-last:]}\n--- stderr\n{self.err[-last:]}"


def python() -> str:
    """Name the interpreter the tests run with."""
    return sys.executable


def base_variables(folder: Path) -> dict[str, str]:
    """The variables every program gets: nothing of whoever runs the tests."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder / "user"), "NO_PROXY": "*", "PYTHONUNBUFFERED": "1"}
