"""The two ways in which a file that is not here yet reaches a client: a download, and a piece out of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from edgecdn.errors import IntegrityFailure
from edgecdn.sources.faults import Broken, Busy, SourceFault
from edgecdn.spans import Span
from edgecdn_agent.deliver.delivery import Wanted
from edgecdn_agent.gateway.feed import TAIL_BYTES, DeliveryFailed, Feed, TakenBack
from edgecdn_agent.gateway.outgoing import Outgoing

__all__ = ["Origin", "Patience", "give_file", "give_part"]

_log = logging.getLogger(__name__)

_CAUGHT_UP_BYTES = 4 << 20
"""So far must the delivery be ahead of a reader from the origin, before that takes from it again."""

_MOST_RELAYS = 3


class Origin(Protocol):
    """Bytes of the hub itself, for one caller alone; `upstream.Relay` is one."""

    def open(self, wanted: Wanted, span: Span | None) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes of `span`. Raises SourceFault, also while they are read."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long bytes are waited for, seconds."""

    begin_s: float = 1.5
    """Before the head is sent: until then an error can still be told."""
    progress_s: float = 2.0
    """Before the origin is asked for them instead, where that may be."""
    end_s: float = 8.0
    """For the end of a file to be proven, when only a piece with it is asked for; clients wait 10 s for bytes."""


async def give_file(feed: Feed, out: Outgoing, origin: Origin, wanted: Wanted, patience: Patience) -> None:
    """The file from `out.start` to its end, proven.

    Where a resumed download is far ahead of the delivery, the origin helps, up to the withheld tail. Raises
    TakenBack, DeliveryFailed, and what a connection raises.
    """
    resumed, relays = out.start > 0, 0
    limit = min(out.stop, wanted.entry.size - TAIL_BYTES)
    limit_s: float | None = patience.progress_s if resumed else patience.begin_s
    while not await feed.pump(limit_s):
        if resumed and out.at < limit and relays < _MOST_RELAYS:
            relays += 1
            try:
                await _help_out(feed, out, origin, wanted, limit)
            except SourceFault as fault:
                _log.info("the origin does not help path=%s reason=%s", wanted.entry.path, fault)
        else:
            limit_s = None
        await out.begin()


async def _help_out(feed: Feed, out: Outgoing, origin: Origin, wanted: Wanted, limit: int) -> None:
    """From the origin, until the delivery has caught up. Raises SourceFault."""
    async with origin.open(wanted, Span(out.at, limit)) as chunks:
        async for chunk in chunks:
            feed.look()
            at, data = out.at, chunk[: limit - out.at]
            if not data or feed.reach() >= min(limit, at + _CAUGHT_UP_BYTES):
                return
            await out.write(data)
            feed.note_foreign(at, data)


async def give_part(feed: Feed | None, out: Outgoing, origin: Origin, wanted: Wanted, patience: Patience) -> None:
    """A piece of the file: what a delivery under way has of it, else from the origin to this caller alone.

    The file's end is never relayed while a delivery is under way (`edgecdn_agent.gateway.parts`). Raises TakenBack,
    SourceFault (Busy: the end is not proven yet), DeliveryFailed (wrong bytes only), and what a connection raises.
    """
    if feed is not None:
        has_end = out.stop > wanted.entry.size - TAIL_BYTES
        try:
            if await feed.pump(patience.end_s if has_end else patience.progress_s):
                return
            if has_end:
                raise Busy("is asked for its end, which is not proven yet", patience.progress_s)
        except DeliveryFailed as failure:
            if isinstance(failure.error, IntegrityFailure):
                raise
        except TakenBack:
            if out.has_begun:
                raise
    async with origin.open(wanted, Span(out.at, out.stop)) as chunks:
        async for chunk in chunks:
            await out.write(chunk)
    if not out.is_done:
        raise Broken("ended early")
