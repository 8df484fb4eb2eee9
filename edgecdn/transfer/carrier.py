"""Carriers: whatever brings most of a file by itself, straight into the partial file, like a swarm.

A source gives ranges when it is asked; a carrier is given the file and brings what it can, in any
order. It is tried first. What it could not bring is asked of the sources, and nothing that arrived
is lost by the change.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgecdn.events import Kind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.piecetree import PieceTree
from edgecdn.sources import Source
from edgecdn.spans import Span

__all__ = ["Cargo", "Carrier", "Giver", "Lab", "Line"]


@dataclass(frozen=True, slots=True)
class Giver:
    """Who gives bytes: what users are shown, and how dear its bytes are."""

    name: str
    kind: Kind


class Line(Protocol):
    """The sources of one file, for a carrier that shares out among several machines what is asked of them."""

    def giver(self) -> Giver | None:
        """Who would be asked now: the cheapest kind first; None while nobody can be."""
        ...

    def read(self, giver: Giver, span: Span) -> AsyncGenerator[bytes, None]:
        """The bytes of `span`, in order; exactly its length or a SourceFault, which counts against the giver."""
        ...


@dataclass(frozen=True, slots=True)
class Cargo:
    """A file to be carried. The file at `path` is as long as it will be; bytes outside `have` are holes.

    `read(view, start)` fills a buffer (blocks). `forget` counts spans of `have` as missing again.
    `landed` counts bytes that are in the file now, each once. `put(start, data, giver)` writes bytes and counts
    them. `line` is whoever else could give the rest; `alternatives` tells whether anybody could. `tell` says a
    sentence to the user. `whole` takes the piece tree by which every piece is right, before the last of them
    landed: the file's own, if its digest is right too.
    """

    manifest: Manifest
    entry: FileEntry
    path: Path
    have: Callable[[], Sequence[Span]]
    read: Callable[[memoryview, int], int]
    forget: Callable[[Sequence[Span]], Awaitable[None]]
    landed: Callable[[Sequence[Span]], Awaitable[None]]
    put: Callable[[int, bytes, Giver], Awaitable[None]]
    line: Line
    alternatives: Callable[[], bool]
    tell: Callable[[str], None]
    whole: Callable[[PieceTree], None]


class Carrier(Protocol):
    """Brings files. `name` is shown to users; `kind` says how dear its bytes are."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...

    def takes(self, entry: FileEntry) -> bool:
        """Whether it is worth trying it for a file of this size."""
        ...

    async def carry(self, cargo: Cargo) -> bool:
        """Bring what can be had; return when all is there, or when others had better go on.

        True: `called_for` will tell when it is worth trying again. When it returns, or is cancelled,
        nothing of its own touches the file any more. Raises NoSpace, ReadOnlyStore, SystemFailed when the
        file is not let go; whatever else goes wrong ends the carrying without an error.
        """
        ...

    async def called_for(self, cargo: Cargo) -> None:
        """Return when it would bring the rest of a file better than the sources do now; cancelled when they are done.

        It may read what is there already, and change nothing.
        """
        ...

    async def disputed(self, cargo: Cargo) -> bool:
        """All of a file is here, and its digest is wrong: find what is, and bring that anew.

        True: something was replaced, and it is worth looking again. False: others must find out.
        """
        ...

    def built(self, entry: FileEntry, tree: PieceTree) -> None:
        """A file is verified, and this is its piece tree: whoever claimed another one had lied."""
        ...

    def left(self, cargo: Cargo) -> None:
        """A file that was carried is published, or its job has ended without."""
        ...


class Lab(Protocol):
    """The peers of one job: what they give by ranges, and the carrier that brings whole files from all of them."""

    @property
    def carrier(self) -> Carrier | None: ...

    def sources(self) -> list[Source]:
        """One for each peer that is there now."""
        ...

    def watch(self, joined: Callable[[Source], None]) -> Callable[[], None]:
        """Have `joined` told, on the loop, of peers that come or have more; returns what ends that."""
        ...
