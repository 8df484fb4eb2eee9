"""Sources: whatever can give ranges of a file's bytes, behind one small interface.

`Source` is implemented by hubs, ModelScope, local folders, Xet storage and the in-memory one that
tests use; later by peers. All pass the same contract suite. A source never decides what is right:
it gives bytes, verification decides.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from edgecdn.digest import Digest
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.spans import Span

__all__ = ["Offer", "Source"]


class Offer(Protocol):
    """A source's own note of where one file's bytes are; opaque to everybody else."""

    @property
    def entry(self) -> FileEntry:
        """The file that is offered."""


class Source(Protocol):
    """Something that gives bytes.

    `name` is shown to users and is unique in a job; `kind` says how dear its bytes are;
    `connections` is the most reads at a time that make sense.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def connections(self) -> int: ...

    async def offer(self, manifest: Manifest, wanted: Sequence[FileEntry]) -> Mapping[Digest, Offer]:
        """Which of `wanted` this source believes to have. May be wrong either way.

        Raises a SourceFault when it cannot be asked.
        """
        ...

    def read(self, offer: Offer, span: Span) -> AsyncGenerator[bytes, None]:
        """The bytes of `span`, in order, in pieces of any size; exactly its length or a SourceFault.

        Raises Missing, Denied, Busy, Broken, Misbehaved, NoRanges (see `edgecdn.sources.faults`).
        """
        ...

    async def close(self) -> None:
        """Release connections and files; safe to call twice."""
        ...
