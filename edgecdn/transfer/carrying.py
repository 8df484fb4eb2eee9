"""Having one incoming file carried: the carrier's view of it, and the counting of what lands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from edgecdn.cache.partial import PartialFile
from edgecdn.manifest import Manifest
from edgecdn.spans import Span
from edgecdn.transfer.carrier import Cargo, Carrier
from edgecdn.transfer.incoming import Incoming

__all__ = ["carry"]


async def carry(
    carrier: Carrier,
    manifest: Manifest,
    incoming: Incoming,
    received: Callable[[int], None],
    forgotten: Callable[[Counter[str]], None],
    alternatives: Callable[[], bool],
    tell: Callable[[str], None],
) -> None:
    """Let `carrier` bring what it can of a file.

    `received(count)` is told of bytes that landed, `forgotten` of those of others that it
    found wrong, or only in part there; `tell` says a sentence to the user.
    """
    part = incoming.part
    assert isinstance(part, PartialFile)

    async def landed(spans: Sequence[Span]) -> None:
        await incoming.landed(spans, carrier.name)
        received(sum(map(len, spans)))

    async def forget(spans: Sequence[Span]) -> None:
        forgotten(await incoming.forget(spans))

    forgotten(await incoming.drop_parts())
    await carrier.carry(
        Cargo(
            manifest,
            incoming.entry,
            part.folder.stable_path / part.name,
            lambda: part.have,
            part.read_into,
            forget,
            landed,
            alternatives,
            tell,
            incoming.set_tree,
        )
    )
