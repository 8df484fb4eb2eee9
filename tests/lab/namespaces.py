"""Network namespaces: made, entered by a thread, removed; those of killed runs are swept.

Names carry the process that made them (`edgecdn-lab-PID-WORLD-MACHINE`), so two runs never meet
and what a killed run left behind is known by its process being gone.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

__all__ = ["PREFIX", "Namespace", "our_namespaces", "run_ip", "sweep", "unavailable"]

PREFIX = "edgecdn-lab-"
_FOLDER = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_COMMAND_LIMIT_S = 20.0
_END_LIMIT_S = 5.0
_LOOK_S = 0.01
_T = TypeVar("_T")


class Namespace:
    """One network namespace. Loopback is up; nothing connects it to the machine the tests run on."""

    def __init__(self, name: str) -> None:
        self.name = name
        run_ip("netns", "add", name)
        run_ip("-n", name, "link", "set", "lo", "up")

    def command(self, *command: str) -> list[str]:
        """Make the command that runs another one in here; the process keeps its id."""
        return ["ip", "netns", "exec", self.name, *command]

    def ip(self, *arguments: str) -> str:
        """`ip` in here."""
        return run_ip("-n", self.name, *arguments)

    def enter(self, act: Callable[[], _T]) -> _T:
        """Call `act` in a thread that is in here: its sockets and children are of this namespace for good."""
        found: list[_T] = []
        raised: list[BaseException] = []

        def work() -> None:
            try:
                _set_namespace(_FOLDER / self.name)
                found.append(act())
            except BaseException as error:
                raised.append(error)

        # A thread of its own, never one of a pool: it cannot come back from where it went.
        thread = threading.Thread(target=work, name=f"in {self.name}")
        thread.start()
        thread.join()
        if raised:
            raise raised[0]
        return found[0]

    def socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Make a socket of this namespace, to be used by any thread or event loop."""
        return self.enter(lambda: socket.socket(socket.AF_INET, kind))

    def write(self, path: str, text: str) -> None:
        """Set what /proc/sys/net has of this namespace."""
        self.enter(lambda: Path(path).write_text(text))

    def pids(self) -> list[int]:
        """Processes in here."""
        return _pids_in(self.name)

    def remove(self) -> None:
        """End every process in here and remove it; its end of each cable goes with it."""
        _remove(self.name)


def our_namespaces(pid: int | None = None) -> list[str]:
    """Name the namespaces of labs there are, of one process or of all."""
    if not _FOLDER.is_dir():
        return []
    start = PREFIX if pid is None else f"{PREFIX}{pid}-"
    return sorted(path.name for path in _FOLDER.iterdir() if path.name.startswith(start))


def sweep() -> list[str]:
    """Remove what runs that were killed left; returns the names."""
    left = [name for name in our_namespaces() if not Path("/proc", name.removeprefix(PREFIX).split("-")[0]).exists()]
    for name in left:
        try:
            _remove(name)
        except RuntimeError:
            if (_FOLDER / name).exists():  # else another run sweeps at the same moment
                raise
    return left


def unavailable() -> str:
    """Say why there can be no lab here; empty when there can."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    return f"needs {' and '.join(missing)} (iproute2)" if missing else ""


def run_ip(*arguments: str, program: str = "ip") -> str:
    """Run `ip` (or `tc`) and return what it printed; raises RuntimeError with what it said."""
    return _checked([program, *arguments])


def _checked(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMMAND_LIMIT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _remove(name: str) -> None:
    deadline = time.monotonic() + _END_LIMIT_S
    # Again until none is left: one may have had a child meanwhile.
    while (pids := _pids_in(name)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_S)
    run_ip("netns", "delete", name)


def _pids_in(name: str) -> list[int]:
    return [int(line) for line in run_ip("netns", "pids", name).split()]


def _set_namespace(path: Path) -> None:
    # os.setns came with Python 3.12.
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if library.setns(descriptor, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(descriptor)
