"""Pins: what the user wants kept. User intent, so in a file of its own and not in the derived catalog."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.scan import RepoOnDisk
from edgecdn.errors import BadInput, SettingsInvalid
from edgecdn.names import CommitId, RepoId, RepoType

__all__ = ["Pin", "is_pinned", "pinned_commits", "read_pins", "with_pin", "without_pin", "write_pins"]

_FILE = "pins.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True, order=True)
class Pin:
    """A repo that is kept, or, with a `revision` as typed, what that names."""

    repo: RepoId
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else str(self.repo)


class _Row(msgspec.Struct):
    type: str
    repo: str
    revision: str = ""


class _File(msgspec.Struct):
    format: int
    pins: list[_Row]


def read_pins(home: Path) -> tuple[Pin, ...]:
    """All pins; raises SettingsInvalid when the file is not readable, for then nothing may count as unpinned."""
    path = home / _FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
        if found.format != _FORMAT:
            raise BadInput(f"it has the unknown format {found.format}")
        return tuple(sorted(Pin(RepoId(RepoType(r.type), r.repo), r.revision) for r in found.pins))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:  # msgspec's and our own are ValueErrors
        hint = "Correct it, or move it away to begin anew without pins."
        raise SettingsInvalid(f"The pins in {path} cannot be read: {error}", hint=hint) from error


def write_pins(home: Path, pins: Iterable[Pin]) -> None:
    """Replace the file, whole or not at all."""
    rows = [_Row(pin.repo.type.value, pin.repo.name, pin.revision) for pin in sorted(pins)]
    with SafeDir.at(home, create=True) as folder:
        folder.write_whole(_FILE, msgspec.json.format(msgspec.json.encode(_File(_FORMAT, rows)), indent=1) + b"\n")
        folder.sync()


def with_pin(pins: Iterable[Pin], pin: Pin) -> tuple[Pin, ...]:
    """The pins and one more."""
    return tuple(sorted({*pins, pin}))


def without_pin(pins: Iterable[Pin], pin: Pin) -> tuple[Pin, ...]:
    """The pins without one; without a revision it takes away all of the repo."""
    return tuple(p for p in pins if p.repo != pin.repo or (pin.revision and p.revision != pin.revision))


def is_pinned(pins: Iterable[Pin], repo: RepoId) -> bool:
    """Whether anything of a repo is pinned."""
    return any(pin.repo == repo for pin in pins)


def pinned_commits(pins: Iterable[Pin], found: RepoOnDisk) -> dict[CommitId, Pin]:
    """Which commits of a repo are kept, and by which pin."""
    return {
        c.commit: pin
        for pin in pins
        if pin.repo == found.repo
        for c in found.commits
        if not pin.revision or pin.revision in (*c.refs, c.commit.hex)
    }
