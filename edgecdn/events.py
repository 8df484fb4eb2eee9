"""What a fetch tells while it runs: immutable facts, past tense, never a secret. Pure; no I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "BlobPublished",
    "BytesDiscarded",
    "BytesReceived",
    "Event",
    "FetchPlanned",
    "Kind",
    "Listener",
    "Note",
    "SourceDropped",
    "Waiting",
]


class Kind(StrEnum):
    """Where bytes come from, cheapest first. The value is the key in `bytes_by_source`."""

    CACHE = "cache"
    LAN = "lan"
    MIRROR = "mirror"
    ORIGIN = "origin"


@dataclass(frozen=True, slots=True)
class FetchPlanned:
    """The file set is known: `files` in all, `bytes_total`, of which `bytes_here` are already verified here."""

    repo: str
    commit: str
    files: int
    files_here: int
    bytes_total: int
    bytes_here: int


@dataclass(frozen=True, slots=True)
class BytesReceived:
    """`count` new bytes of a file were written; from `source`, which is of `kind`."""

    source: str
    kind: Kind
    count: int


@dataclass(frozen=True, slots=True)
class BytesDiscarded:
    """`count` bytes that came from `source`, of `kind`, are not used: somebody's were wrong, or they vanished."""

    source: str
    kind: Kind
    count: int


@dataclass(frozen=True, slots=True)
class BlobPublished:
    """A file was verified and is in the cache; `size` in bytes."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class SourceDropped:
    """A source is used no more in this job, and why (a sentence)."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing arrives at the moment, and why (a sentence); ends with the next BytesReceived."""

    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something the user should know; no action needed."""

    text: str


Event = FetchPlanned | BytesReceived | BytesDiscarded | BlobPublished | SourceDropped | Waiting | Note
Listener = Callable[[Event], None]
"""Called on the event loop; must not block and must not raise."""
