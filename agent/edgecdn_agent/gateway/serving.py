"""HEAD and GET of one file: from the cache, on its way into it, or from the origin.

Nothing that was not proven ever becomes a complete file at a client. A HEAD starts nothing, but for files
that the clients of hubs do not take by HTTP: those are brought into the cache while they wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from aiohttp import web

from edgecdn.digest import Digest
from edgecdn.errors import EdgecdnError, IntegrityFailure
from edgecdn.lately import Lately
from edgecdn.pace import Pace
from edgecdn.sources.faults import SourceFault
from edgecdn.spans import Span
from edgecdn.token_owner import token_key
from edgecdn_agent.deliver.delivery import Delivery, DeliveryState, Wanted
from edgecdn_agent.gateway.errors import hub_error
from edgecdn_agent.gateway.failures import fault_answer, refusal
from edgecdn_agent.gateway.feed import TAIL_BYTES, DeliveryFailed, Feed, TakenBack
from edgecdn_agent.gateway.handed_out import HandedOut
from edgecdn_agent.gateway.heads import (
    about,
    appends_whole_files,
    etag_of,
    head_of,
    hub_client,
    sizeless_head,
    takes_no_size,
    whole_answer,
)
from edgecdn_agent.gateway.held import HeldBlobs, Shelf
from edgecdn_agent.gateway.outgoing import Outgoing
from edgecdn_agent.gateway.parts import Parts
from edgecdn_agent.gateway.ranges import FromOffset, NotModified, Part, Unsatisfiable, Whole, asked_for
from edgecdn_agent.gateway.spoiled import Spoiled
from edgecdn_agent.gateway.stream import Origin, Patience, give_file, give_part
from edgecdn_agent.gateway.verified_relay import VerifiedRelay, is_of_the_disk
from edgecdn_agent.lan.sender import BlobSender, ReadFailed
from edgecdn_agent.lan.workers import Workers

__all__ = ["BlobServer", "Deliverer"]

_log = logging.getLogger(__name__)

_HTTP_LIMIT_BYTES = 50_000_000_000
"""Larger files huggingface_hub does not download by HTTP, once it knows their size."""

_HOLD_S = 8.0
"""Clients wait 10 s for the answer to a HEAD."""

_STALL_S = 120.0
"""For a reader to take nothing, before its connection is cut."""

_RETRY_S = 10

_GAVE_UP_S = 3.0
"""A download that ended without the file is not begun anew so soon: clients come back a second after they were cut,
and are told why then. Given what is here once more, and cut again, they would go on for ever."""

_THREADS = 4


class Deliverer(Protocol):
    """Who brings files; `Deliveries` is one."""

    def get(self, digest: Digest) -> Delivery | None: ...
    def want(self, wanted: Wanted) -> AbstractAsyncContextManager[Delivery]: ...
    def failed(self, digest: Digest) -> EdgecdnError | None: ...


_PIECES = "Remove what was made of them and begin the download anew, in some minutes."
_ANEW = "Run it again with force_download=True, or `hf download --force-download`."


class BlobServer:
    """Answers with files. Close it at the end."""

    def __init__(
        self,
        holdings: Shelf,
        deliveries: Deliverer,
        origin: Origin,
        *,
        http_limit_bytes: int = _HTTP_LIMIT_BYTES,
        hold_s: float = _HOLD_S,
        stall_s: float = _STALL_S,
        patience: Patience | None = None,
        handed_out: HandedOut | None = None,
    ) -> None:
        self._deliveries = deliveries
        self._origin = origin
        self._http_limit_bytes = http_limit_bytes
        self._hold_s = hold_s
        self._stall_s = stall_s
        self._patience = patience or Patience()
        self._disk = Workers(_THREADS, "edgecdn-read")
        self._sender = BlobSender(Pace(None), stall_s)  # loopback: what is limited is what leaves the machine
        self._held = HeldBlobs(holdings, self._sender, self._disk, stall_s)
        self._relay = VerifiedRelay(origin)
        self._parts = Parts()
        self._handed_out = handed_out
        self._spoiled = Spoiled(frozenset() if handed_out is None else handed_out)
        self._gave_up: Lately[tuple[str, EdgecdnError]] = Lately(_GAVE_UP_S)

    def close(self) -> None:
        """End the threads."""
        self._sender.close()
        self._disk.close()

    async def head(self, request: web.Request, wanted: Wanted) -> web.StreamResponse:
        """What a GET would say."""
        version = hub_client(request.headers.get("User-Agent"))
        if wanted.entry.size <= self._http_limit_bytes or version is None:
            return head_of(wanted)
        try:
            state = DeliveryState.HERE if self._held.has(wanted) else await self._hold(wanted)
        except EdgecdnError as error:
            return refusal(error)
        if takes_no_size(version):
            return sizeless_head(wanted)
        if state is DeliveryState.HERE:
            return head_of(wanted)
        message = f"{wanted.entry.path} is being brought into the cache; too large for this huggingface_hub by HTTP."
        return hub_error(503, "", f"{message} Ask again until it is there.", {"Retry-After": str(_RETRY_S)})

    async def get(self, request: web.Request, wanted: Wanted) -> web.StreamResponse:
        """The file, or the part that is asked for."""
        try:
            return await self._get(request, wanted)
        except DeliveryFailed as failure:
            return self._refused(request, wanted, failure.error)
        except EdgecdnError as error:
            return self._refused(request, wanted, error)
        except SourceFault as fault:
            return fault_answer(fault)
        except ConnectionError:  # the reader left
            return _end(request)
        except (ReadFailed, TimeoutError) as error:
            return _cut(request, wanted, str(error) or type(error).__name__)

    async def _get(self, request: web.Request, wanted: Wanted) -> web.StreamResponse:
        """Raises what was not answered: nothing is sent then, or the connection is at its end."""
        headers, digest = request.headers, wanted.entry.digest
        none_match = headers.get("If-None-Match")
        asked = asked_for(
            headers.get("Range"), wanted.entry.size, etag_of(wanted),
            if_range=headers.get("If-Range"), if_none_match=none_match,
        )  # fmt: skip
        resumes = isinstance(asked, FromOffset) or (isinstance(asked, Unsatisfiable) and wanted.entry.size)
        if resumes and (
            self._spoiled.is_spoiled(digest) or self._spoiled.resumes_wrong(digest, self._deliveries.get(digest))
        ):
            if appends_whole_files(hub_client(headers.get("User-Agent"))):
                return _begin_anew(wanted)
            asked = Whole()
        if isinstance(asked, Part) and self._parts.would_mix(digest):
            return hub_error(502, "", f"Pieces of {wanted.entry.path} that were given before were wrong. {_PIECES}")
        span: Span | None = None
        match asked:
            case NotModified():
                return web.Response(status=304, headers=about(wanted))
            case Unsatisfiable():
                return web.Response(
                    status=416, headers=about(wanted) | {"Content-Range": f"bytes */{wanted.entry.size}"}
                )
            case FromOffset(start):
                span = Span(start, wanted.entry.size)
            case Part(span):
                pass
        is_part = isinstance(asked, Part)
        try:
            held = await self._held.answer(request, wanted, span)
            return await self._bring(request, wanted, span, is_part=is_part) if held is None else held
        except (EdgecdnError, DeliveryFailed) as failure:  # nothing is sent yet
            error = failure.error if isinstance(failure, DeliveryFailed) else failure
            if is_part or not is_of_the_disk(error):
                raise
            return await self._relayed(request, wanted, span, error)

    async def _bring(
        self, request: web.Request, wanted: Wanted, span: Span | None, *, is_part: bool
    ) -> web.StreamResponse:
        """It is not here."""
        entry = wanted.entry
        if not entry.size:
            return _empty(wanted)
        known = self._deliveries.failed(entry.digest) or (None if is_part else self._just_failed(wanted))
        if known is not None:
            raise known.with_traceback(None)
        out = Outgoing(request, head_of(wanted, span), span or Span(0, entry.size), self._sender, self._stall_s)
        try:
            if is_part:
                await self._part(wanted, out)
            else:
                await self._file(wanted, out)
        except SourceFault as fault:  # of a part: the caller has the origin's own bytes, as it would without us
            if not out.has_begun:
                raise
            return _cut(request, wanted, f"the origin {fault}")
        except (TakenBack, DeliveryFailed) as error:
            return await self._broken(request, wanted, out, error)
        return out.head

    async def _relayed(
        self, request: web.Request, wanted: Wanted, span: Span | None, why: EdgecdnError
    ) -> web.StreamResponse:
        """The whole file from the origin, proven on the way, since this machine cannot keep it. Raises `why`."""
        if span is not None and span.start:
            if appends_whole_files(hub_client(request.headers.get("User-Agent"))):
                return _begin_anew(wanted)
            span = None
        out = Outgoing(request, head_of(wanted, span), Span(0, wanted.entry.size), self._sender, self._stall_s)
        if self._handed_out is not None and wanted.entry.size > TAIL_BYTES:
            await self._handed_out.open(wanted.entry.digest)
        try:
            await self._relay.give(out, wanted, why)
        except EdgecdnError as error:
            if not out.has_begun:
                raise
            return _cut(request, wanted, str(error))
        finally:
            if out.has_begun and not out.is_done:
                self._note_wrong(wanted)
        return out.head

    async def _broken(
        self, request: web.Request, wanted: Wanted, out: Outgoing, error: TakenBack | DeliveryFailed
    ) -> web.StreamResponse:
        """What clients have of it may be wrong: their next Range gets the whole file, and this one if it can."""
        if out.has_begun or out.start:
            self._note_wrong(wanted)
            if isinstance(error, DeliveryFailed):
                self._gave_up.put(wanted.entry.digest, (token_key(wanted.token), error.error))
        if out.has_begun:
            return _cut(request, wanted, str(error))
        if isinstance(error, DeliveryFailed):
            raise error
        return await self._bring(request, wanted, None, is_part=False)

    def _just_failed(self, wanted: Wanted) -> EdgecdnError | None:
        """Why this caller did not get it a moment ago."""
        caller, error = self._gave_up.get(wanted.entry.digest) or ("", None)
        return error if caller == token_key(wanted.token) else None

    async def _file(self, wanted: Wanted, out: Outgoing) -> None:
        """A download: joined by whoever wants the same; who leaves may come back for the rest."""
        async with self._deliveries.want(wanted) as delivery:

            def proven(seen: os.stat_result) -> None:
                self._held.note(wanted, delivery, seen)

            feed = Feed(delivery, out, self._disk, resumes=out.start > 0, on_proven=proven)
            remembered, mark = self._handed_out if wanted.entry.size > TAIL_BYTES else None, delivery.mark
            try:
                if remembered is not None and not feed.is_proven:
                    await remembered.open(wanted.entry.digest)
                await give_file(feed, out, self._origin, wanted, self._patience)
            finally:
                feed.close()
                if not out.is_done and feed.is_mixed:
                    self._note_wrong(wanted)
                elif not out.is_done and out.has_begun:
                    self._spoiled.broke_off(wanted.entry.digest, delivery, feed.mark)
                nobody_left = not self._spoiled.is_awaited(wanted.entry.digest)
                if remembered is not None and feed.is_proven and mark == 0 == delivery.mark and nobody_left:
                    await remembered.close(wanted.entry.digest)

    async def _part(self, wanted: Wanted, out: Outgoing) -> None:
        digest, parts = wanted.entry.digest, self._parts
        delivery = self._deliveries.get(digest) if wanted.page else None  # which may be another repo's
        if delivery is not None and delivery.state is not DeliveryState.HERE and not parts.may_be_unproven(digest):
            delivery = None
        feed = None if delivery is None else Feed(delivery, out, self._disk)
        if feed is None and out.stop > wanted.entry.size - TAIL_BYTES:
            parts.relayed_end(digest)
        try:
            await give_part(feed, out, self._origin, wanted, self._patience)
        finally:
            if feed is not None:
                feed.close()
                if feed.gave_unproven:
                    parts.gave(digest, feed.delivery, feed.mark)

    def _note_wrong(self, wanted: Wanted) -> None:
        """Whoever has bytes of it must not go on with them, after a restart neither."""
        self._spoiled.note(wanted.entry.digest)
        if self._handed_out is not None:
            self._handed_out.keep(wanted.entry.digest)

    def _refused(self, request: web.Request, wanted: Wanted, error: EdgecdnError) -> web.StreamResponse:
        """The error, unless a part of the file is out already."""
        if request.writer.output_size:
            self._note_wrong(wanted)
            return _cut(request, wanted, str(error))
        return refusal(error)

    async def _hold(self, wanted: Wanted) -> DeliveryState:
        """Have it brought, and wait a while. Raises its error."""
        known = self._deliveries.failed(wanted.entry.digest)
        if known is not None:
            raise known
        async with self._deliveries.want(wanted) as delivery:
            try:
                async with asyncio.timeout(self._hold_s):
                    while delivery.state is DeliveryState.ARRIVING:
                        await delivery.changed()
            except TimeoutError:
                return delivery.state
            if delivery.error is not None:
                raise delivery.error
            return delivery.state


def _begin_anew(wanted: Wanted) -> web.StreamResponse:
    """To a client that would put the whole file behind what it has."""
    return hub_error(416, "", f"What this client has of {wanted.entry.path} may be wrong. {_ANEW}")


def _empty(wanted: Wanted) -> web.StreamResponse:
    """A file without bytes needs nobody to bring it."""
    digest = wanted.entry.digest
    if Digest.of(digest.kind, b"") != digest:
        raise IntegrityFailure("its digest is not that of an empty file", path=wanted.entry.path)
    return whole_answer(wanted, None, b"")


def _cut(request: web.Request, wanted: Wanted, reason: str) -> web.StreamResponse:
    """End the connection at once: a part of an answer may be on its way already."""
    _log.warning("a file is not given to its end path=%s digest=%s reason=%s",
                 wanted.entry.path, wanted.entry.digest.hex[:12], reason)  # fmt: skip
    return _end(request)


def _end(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    told = web.Response(status=500)
    told.force_close()
    return told
