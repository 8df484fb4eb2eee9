"""The journal of a partial file: which units (`spans.journal_unit`) have been written. Appended after the data.

Text lines, so that a torn end is seen and ignored:
  header  JSON: format, digest, size, name and inode of the partial file, boot id
  `u N.`  unit N is written; the full stop tells that all of N is there
  `b`     everything before is on disk, not only in memory (after fdatasync)
  `r ID`  a new process took over, on the boot ID
A process that dies loses nothing that was written; a machine that dies loses what was not synced.
So after a restart of the machine only units before the last `b` count.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import msgspec

from edgecdn.cache.safedir import SafeDir, disk_errors
from edgecdn.digest import Digest

__all__ = ["Journal", "JournalHeader", "boot_id", "new_header", "read_journal"]

_FORMAT = 2
_PARTIAL = re.compile(r"[0-9a-f]{40,64}\.[0-9a-f]{8}\.incomplete\Z")
_UNIT = re.compile(rb"u ([0-9]{1,19})\.\Z")


class JournalHeader(msgspec.Struct, frozen=True):
    """What the partial file is. `inode` tells whether it is still the file that was journaled."""

    format: int
    digest: str
    size: int
    partial: str
    inode: int
    boot: str


def boot_id() -> str:
    """The id of this boot of the machine (Linux); empty where there is none, which trusts only synced units."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def read_journal(folder: SafeDir, name: str) -> tuple[JournalHeader, set[int]] | None:
    """The header and the units that can be relied on; None when there is no usable journal."""
    try:
        fd = folder.open(name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        first, *lines = file.read().split(b"\n")
    try:
        header = msgspec.json.decode(first, type=JournalHeader)
        Digest.parse(header.digest)
    except (msgspec.DecodeError, ValueError):
        return None
    if header.format != _FORMAT or not _PARTIAL.match(header.partial):
        return None
    return header, _replay(header.boot, lines[:-1])  # what follows the last newline was never finished


def _replay(boot: str, lines: list[bytes]) -> set[int]:
    synced: set[int] = set()
    written: set[int] = set()
    for line in lines:
        verb, _, rest = line.partition(b" ")
        if (unit := _UNIT.match(line)) is not None:
            written.add(int(unit[1]))
        elif verb == b"b":
            synced |= written
        elif verb == b"r":
            if rest.decode("ascii", "replace") != boot or not boot:
                written = set(synced)
            boot = rest.decode("ascii", "replace")
        # anything else is a line that a crash cut short: its unit was not promised
    return written if boot and boot == boot_id() else synced


class Journal:
    """An open journal. Its methods block; call them where blocking is allowed."""

    def __init__(self, folder: SafeDir, name: str) -> None:
        self._folder = folder
        self._name = name
        self._fd = -1

    def create(self, header: JournalHeader) -> None:
        """Begin a new one, replacing what was there."""
        self._folder.write_whole(self._name, msgspec.json.encode(header) + b"\n")
        self._open()

    def resume(self) -> None:
        """Go on with the one that is there."""
        self._open()
        torn = b"\n"  # ends a line that a crash cut short; an empty line is skipped
        self._append(torn + b"r " + boot_id().encode() + b"\n")

    def unit(self, index: int) -> None:
        """Unit `index` is written (in memory at least)."""
        self._append(b"u %d.\n" % index)

    def barrier(self) -> None:
        """All units journaled so far are on disk."""
        self._append(b"b\n")

    def close(self, *, remove: bool = False) -> None:
        """Close it; `remove` deletes it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if remove:
            self._folder.unlink(self._name)

    def _open(self) -> None:
        self._fd = self._folder.open(self._name, os.O_WRONLY | os.O_APPEND)

    def _append(self, line: bytes) -> None:
        with disk_errors(self._folder.path):
            if os.write(self._fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def new_header(digest: Digest, size: int, partial: str, inode: int) -> JournalHeader:
    """A header of the current format, on the current boot."""
    return JournalHeader(_FORMAT, digest.hex, size, partial, inode, boot_id())
