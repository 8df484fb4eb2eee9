"""What an agent keeps in its home for others to find it: lock, id, token, `run.json`.

The lock (`flock`, freed by the kernel however the process dies) says whether an agent runs; the files
only say where. All are readable by their user alone and written whole or not at all.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from edgecdn.cache.safedir import SafeDir, disk_errors
from edgecdn.control import LOCK_FILE, RUN_FILE, TOKEN_FILE, RunInfo, parse
from edgecdn.errors import AgentRunning, BadInput

__all__ = ["ID_FILE", "HomeLock", "agent_id", "api_token", "remove_run_file", "write_private", "write_run_file"]

ID_FILE = "agent-id"
_ID = re.compile(r"[0-9a-f]{32}")
_TOKEN = re.compile(r"[0-9A-Za-z_-]{43}")

_PATIENCE_S = 1.0
"""A program that looks whether an agent runs holds the lock for an instant; so long is it asked again (seconds)."""

_POLL_S = 0.02


class HomeLock:
    """The home, held by one agent; use as a context manager. Blocks up to a second; call before the loop runs."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._fd = -1

    def __enter__(self) -> HomeLock:
        """Take it. Raises AgentRunning, ReadOnlyStore, NoSpace."""
        with disk_errors(self._home):
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self._home / LOCK_FILE, flags, 0o600)
        try:
            self._take(fd)
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self, fd: int) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
                    raise AgentRunning(where=self._home, pid=pid or "unknown") from None
                time.sleep(_POLL_S)
            else:
                return


def agent_id(home: Path) -> str:
    """This agent's id, 32 hex, made once; one that a crash left empty is made anew."""
    return _kept(home, ID_FILE, _ID, lambda: secrets.token_hex(16))


def api_token(home: Path) -> str:
    """What programs of this user show to be answered; made once."""
    return _kept(home, TOKEN_FILE, _TOKEN, lambda: secrets.token_urlsafe(32))


def write_run_file(home: Path, info: RunInfo) -> None:
    """Tell where this agent is, replacing what an earlier one left."""
    write_private(home, RUN_FILE, msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")


def remove_run_file(home: Path) -> None:
    """At the end; only our own (a file of another process is left alone)."""
    with suppress(OSError, BadInput):
        if parse((home / RUN_FILE).read_bytes(), RunInfo).pid == os.getpid():
            (home / RUN_FILE).unlink()


def _kept(home: Path, name: str, shape: re.Pattern[str], make: Callable[[], str]) -> str:
    with suppress(OSError, UnicodeDecodeError), os.fdopen(_open_private(home / name), "rb") as file:
        text = file.read(256).decode("ascii").strip()
        if shape.fullmatch(text):
            return text
    made = make()
    write_private(home, name, made.encode() + b"\n")
    return made


def _open_private(path: Path) -> int:
    """Open it for reading, and take from others the right to, if they have it."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if os.fstat(fd).st_mode & 0o077:
        os.fchmod(fd, 0o600)
    return fd


def write_private(home: Path, name: str, data: bytes) -> None:
    """Write a file whole, for this user only from its first moment on."""
    with SafeDir.at(home, create=True) as folder, disk_errors(home / name):
        temporary = f"{name}.{os.getpid():x}-{secrets.token_hex(4)}.tmp"
        fd = folder.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            folder.rename(temporary, name)
        except BaseException:
            folder.unlink(temporary)
            raise
