"""A disk that can hang: ext4 on a loop device, frozen so that every write waits."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Disk", "mounted"]

_LIMIT_S = 20.0


class Disk:
    """A file system at `at`. Reads of what is in memory are answered while it hangs, as by a real one."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self._hangs = False

    def hang(self) -> None:
        """Let no write end from now on."""
        _run("fsfreeze", "--freeze", str(self.at))
        self._hangs = True

    def go_on(self) -> None:
        """Let all that waits end."""
        if self._hangs:
            _run("fsfreeze", "--unfreeze", str(self.at))
            self._hangs = False


@contextmanager
def mounted(image: Path, at: Path, size: int) -> Iterator[Disk]:
    """Make and mount one for a while; skips the test where loop devices cannot be had."""
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", str(image))
    try:
        _run("mount", "-o", "loop", str(image), str(at))
    except RuntimeError as error:
        pytest.skip(f"cannot mount a loop device here: {error}")
    disk = Disk(at)
    try:
        yield disk
    finally:
        disk.go_on()
        _run("umount", "--lazy", str(at))
        image.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
