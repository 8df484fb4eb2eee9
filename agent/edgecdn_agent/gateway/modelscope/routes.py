"""The ModelScope gateway: `MODELSCOPE_ENDPOINT=http://127.0.0.1:8377` makes its SDK use edgecdn. Reading only."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from edgecdn.errors import BadInput
from edgecdn.names import RepoId, Revision
from edgecdn_agent.control.guard import GATEWAY_ROUTE
from edgecdn_agent.deliver.delivery import Wanted
from edgecdn_agent.gateway.errors import NoAnswer
from edgecdn_agent.gateway.modelscope.access import Access, Refused
from edgecdn_agent.gateway.modelscope.callers import Caller
from edgecdn_agent.gateway.modelscope.envelope import error_answer, no_answer, success_body
from edgecdn_agent.gateway.modelscope.listings import Listing, Listings
from edgecdn_agent.gateway.modelscope.local import LocalListings
from edgecdn_agent.gateway.modelscope.metadata import Metadata
from edgecdn_agent.gateway.modelscope.passing import log_in, pass_file, pass_on
from edgecdn_agent.gateway.modelscope.paths import (
    Acceleration,
    Asked,
    FileOf,
    Files,
    Info,
    Login,
    Revisions,
    Statistics,
    parse_target,
)
from edgecdn_agent.gateway.modelscope.relay import ModelScopeRelay
from edgecdn_agent.gateway.modelscope.upstream import Answer, Upstream

__all__ = ["Blobs", "Handler", "ModelScopeParts", "NotHeld"]

_OFF = (
    "ModelScope is off in edgecdn's settings: `edgecdn config set hub.modelscope https://www.modelscope.cn` "
    "switches it on (then restart the agent), or unset MODELSCOPE_ENDPOINT"
)
_READS_ONLY = "edgecdn only reads from ModelScope: unset MODELSCOPE_ENDPOINT to change something there"
_PART_BYTES = 160 << 20
"""Its SDK takes large files in parts of this size when it is told to take several at a time."""

_TO_THE_END = re.compile(r"bytes=(\d{1,18})-(\d{1,18})\Z", re.ASCII)


_ROUTE = f"{GATEWAY_ROUTE}.modelscope"


class NotHeld(Exception):
    """Nothing was sent: the file is not in the cache."""


class Blobs(Protocol):
    """What gives a file's bytes (`BlobServer`)."""

    async def head(self, request: web.Request, wanted: Wanted) -> web.StreamResponse: ...
    async def get(self, request: web.Request, wanted: Wanted) -> web.StreamResponse: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScopeParts:
    """What the routes are made of. `held` gives only what is in the cache, and raises NotHeld else."""

    upstream: Upstream
    metadata: Metadata
    access: Access
    local: LocalListings
    listings: Listings
    held: Blobs
    relay: ModelScopeRelay


class Handler:
    """Answers requests, each for its own caller. `blobs` gives files that everybody may have."""

    def __init__(self, parts: ModelScopeParts, blobs: Blobs) -> None:
        self._parts = parts
        self._blobs = blobs
        self._upstream = parts.upstream
        self._metadata, self._access = parts.metadata, parts.access
        self._local, self._listings = parts.local, parts.listings

    def add_to(self, app: web.Application) -> None:
        """Serve all that begins as ModelScope's paths do."""
        app.router.add_route("*", "/api/v1/{tail:.*}", self.handle, name=_ROUTE)
        app.router.add_route("*", "/openapi/v1/{tail:.*}", self.handle, name=f"{_ROUTE}.open")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The answer, or an error as ModelScope gives it."""
        if not self._upstream.endpoint:
            return error_answer(400, _OFF)
        try:
            asked = parse_target(request.raw_path)
            return await self._answer(request, asked)
        except BadInput as error:
            return error_answer(400, str(error))
        except Refused as refused:
            return _plain(refused.answer)
        except NoAnswer as error:
            return no_answer(error)

    async def _answer(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return await self._posted(request, asked)
        caller = Caller.of(request)
        if isinstance(asked, Acceleration):  # its SDK waits 0.2 s for this, and would ask an address it names
            return _found(success_body({"InternalRegionQueryAddress": ""}))
        if isinstance(asked, FileOf):
            return await self._file(request, asked, caller)
        if isinstance(asked, Files | Info | Revisions):
            return await self._told(request, asked, caller)
        return await pass_on(request, self._upstream, request.raw_path, caller)

    async def _posted(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        """Nothing is written there. A login is needed for reading; that a download is counted is not."""
        if request.method == "POST" and isinstance(asked, Login):
            return await log_in(request, self._upstream.endpoint)
        if request.method == "POST" and isinstance(asked, Statistics):
            return _found(success_body({}))
        return error_answer(405, _READS_ONLY, {"Allow": "GET, HEAD"})

    async def _told(self, request: web.Request, asked: Files | Info | Revisions, caller: Caller) -> web.StreamResponse:
        for_ever = isinstance(asked, Files) and Revision(asked.revision).commit is not None
        try:
            said = await self._metadata.ask(asked.scope, request.raw_path, caller, for_ever=for_ever)
        except NoAnswer:
            data = await self._local.answer(asked)
            if data is None:
                raise
            return _found(success_body(data))
        return _plain(said.answer)

    async def _file(self, request: web.Request, asked: FileOf, caller: Caller) -> web.StreamResponse:
        listing = await self._listings.of(asked.repo, asked.revision, caller)
        entry = listing.entries.get(str(asked.path))
        if entry is None:
            return await self._unlisted(request, listing, caller)
        public = await self._may_read(listing, asked, caller)
        manifest = listing.manifest
        if manifest is None:
            return await pass_file(request, self._upstream, listing, entry, caller)
        wanted = Wanted(manifest, entry, f"{self._upstream.endpoint}/{_page(asked.repo)}", hub=listing.hub)
        resumed = _resumed(request, entry.size)
        if public:
            self._parts.relay.learn(wanted, asked.revision)
            return _in_envelope(await _serve(self._blobs, resumed, wanted))
        if request.method == "GET":
            with suppress(NotHeld):
                return _in_envelope(await _serve(self._parts.held, resumed, wanted))
        return await pass_file(request, self._upstream, listing, entry, caller)

    async def _unlisted(self, request: web.Request, listing: Listing, caller: Caller) -> web.StreamResponse:
        """It has no such file, or gives no SHA-256 for it: let it say so itself, if it answers."""
        try:
            return await pass_on(request, self._upstream, request.raw_path, caller)
        except NoAnswer:
            if listing.manifest is None:
                raise
            return error_answer(404, "The file is not in the last listing that is known of this repo")

    async def _may_read(self, listing: Listing, asked: FileOf, caller: Caller) -> bool:
        """Whether everybody may have its bytes; raises Refused where not even this caller may."""
        if not listing.hub:  # made from the cache, of a repo that a hub calls public
            return True
        return await self._access.check(asked.repo, asked.revision, asked.path, caller, hidden=not listing.public)


async def _serve(blobs: Blobs, request: web.Request, wanted: Wanted) -> web.StreamResponse:
    return await (blobs.head if request.method == "HEAD" else blobs.get)(request, wanted)


def _in_envelope(answer: web.StreamResponse) -> web.StreamResponse:
    """An error that is not sent yet, in ModelScope's form instead of the hubs'."""
    message = answer.headers.get("X-Error-Message", "")
    if answer.status < 400 or answer.prepared or not message:
        return answer
    wait = {name: value for name, value in answer.headers.items() if name == "Retry-After"}
    return error_answer(answer.status, message, wait)


def _resumed(request: web.Request, size: int) -> web.Request:
    """The older SDK asks for all that is left by naming its last byte, which would look like a piece of the file."""
    match = _TO_THE_END.match(request.headers.get("Range", ""))
    if match is None or int(match[2]) < size - 1 or (int(match[1]) and int(match[1]) % _PART_BYTES == 0):
        return request
    headers = request.headers.copy()
    headers["Range"] = f"bytes={match[1]}-"
    return request.clone(headers=headers)


def _page(repo: RepoId) -> str:
    return f"{repo.type.plural}/{repo.name}"


def _plain(answer: Answer) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type, headers=headers)


def _found(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})
