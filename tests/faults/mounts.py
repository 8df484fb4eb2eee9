"""Small file systems for tests, mounted when root, else skipped aloud."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


class Mounts:
    """The tmpfs mounts of one test."""

    def __init__(self) -> None:
        self._mounted: list[Path] = []

    def tmpfs(self, where: Path, options: str) -> Path:
        """Mount one; skips the test where that is not allowed."""
        where.mkdir(parents=True, exist_ok=True)
        if os.geteuid() != 0:
            pytest.skip("needs root to mount a small file system")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
        self._mounted.append(where)
        return where

    def remount(self, where: Path, options: str) -> None:
        """Change the options of one."""
        subprocess.run(["mount", "-o", f"remount,{options}", where], check=True)

    def close(self) -> None:
        """Take all away."""
        for where in reversed(self._mounted):
            subprocess.run(["umount", "-l", where], check=True)


def fill(folder: Path, keep_bytes: int = 0) -> Path:
    """Fill a file system but for `keep_bytes` and return the file that does; deleting it frees the space."""
    ballast = folder / "ballast"
    seen = os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, seen.f_bavail * seen.f_frsize - keep_bytes))
    return ballast
