"""The in-memory source: the same contract as the real ones, with faults on request.

It is shipped beside them, and tests use it instead of mocks. A fault is a script: `read` takes
the next of `faults` for its file before it gives bytes, and raises it after `give` bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgecdn.digest import Digest
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.sources import Offer
from edgecdn.sources.faults import Missing, SourceFault
from edgecdn.spans import Span

__all__ = ["MemorySource", "ScriptedFault"]


@dataclass(frozen=True, slots=True)
class ScriptedFault:
    """Raise `fault` once `after_bytes` of the span were given."""

    fault: SourceFault
    after_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _MemoryOffer:
    entry: FileEntry


@dataclass(slots=True)
class MemorySource:
    """Gives what is in `blobs`; `pace` is awaited before each piece (a clock, a gate), `piece_bytes` long."""

    name: str
    kind: Kind = Kind.ORIGIN
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    connections: int = 8
    piece_bytes: int = 1 << 16
    pace: Callable[[int], Awaitable[None]] | None = None
    faults: deque[ScriptedFault] = field(default_factory=deque)
    given_bytes: int = 0
    reads: int = 0

    async def offer(self, manifest: Manifest, wanted: Sequence[FileEntry]) -> Mapping[Digest, Offer]:
        """What it holds of `wanted`."""
        del manifest  # it knows files by digest alone
        return {e.digest: _MemoryOffer(e) for e in wanted if e.digest in self.blobs}

    async def read(self, offer: Offer, span: Span) -> AsyncGenerator[bytes, None]:
        """The bytes of `span`; see `Source.read`."""
        data = self.blobs.get(offer.entry.digest)
        if data is None:
            raise Missing("does not have it")
        self.reads += 1
        script = self.faults.popleft() if self.faults else None
        stop = span.stop if script is None else min(span.stop, span.start + script.after_bytes)
        for start in range(span.start, stop, self.piece_bytes):
            piece = data[start : min(start + self.piece_bytes, stop)]
            if self.pace is not None:
                await self.pace(len(piece))
            self.given_bytes += len(piece)
            yield piece
        if script is not None:
            raise script.fault

    async def close(self) -> None:
        """Nothing to release."""
