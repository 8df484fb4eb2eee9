"""The gateway's one route: everything on the local listener that is not the agent's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from edgecdn.errors import BadInput
from edgecdn_agent.control.guard import GATEWAY_ROUTE
from edgecdn_agent.deliver.delivery import Wanted
from edgecdn_agent.gateway.answers import to_response
from edgecdn_agent.gateway.api import Api
from edgecdn_agent.gateway.errors import HubRefusal, Moved, NoAnswer, StillListing, hub_error, no_answer
from edgecdn_agent.gateway.failures import no_file
from edgecdn_agent.gateway.finder import LISTING_S, Finder
from edgecdn_agent.gateway.hubs import HubAnswer, Question
from edgecdn_agent.gateway.metadata import Metadata, refusal_of
from edgecdn_agent.gateway.paths import (
    Asked,
    OfRepo,
    Other,
    PathsInfo,
    Quiet,
    Resolve,
    parse_target,
    resolve_target,
)  # fmt: skip

__all__ = ["Blobs", "GatewayParts", "add_gateway"]

_log = logging.getLogger(__name__)

_OWN = r"/{path:(?!(?:edgecdn|healthz|metrics)(?:/|$)).*}"
"""Not what belongs to the agent itself, whatever the method: that stays its 404 or 405."""

_READS = frozenset({"GET", "HEAD"})
_MOST_TOKEN = 2048
_PATIENT_S = 60.0
"""A GET waits so long for a listing: clients give up after 10 s and come again, by when it may be there."""


class Blobs(Protocol):
    """What gives a file's bytes (`BlobServer`)."""

    async def head(self, request: web.Request, wanted: Wanted) -> web.StreamResponse: ...
    async def get(self, request: web.Request, wanted: Wanted) -> web.StreamResponse: ...


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What the routes are made of."""

    finder: Finder
    blobs: Blobs
    api: Api
    metadata: Metadata


def add_gateway(parts: GatewayParts) -> Callable[[web.Application], None]:
    """An extension of the local listener; the last one, since it takes whatever is left."""

    def extend(app: web.Application) -> None:
        app.router.add_route("*", _OWN, _Gateway(parts).handle, name=GATEWAY_ROUTE)

    return extend


class _Gateway:
    """Answers requests, each for its own caller."""

    def __init__(self, parts: GatewayParts) -> None:
        self._parts = parts

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The answer, or an error as a hub gives it."""
        try:
            _, _, asked = parse_target(request.raw_path)
            allowed = request.method in _READS or (request.method == "POST" and isinstance(asked, PathsInfo))
            if not allowed:
                return hub_error(405, "", "edgecdn only reads: unset HF_ENDPOINT to upload.", {"Allow": "GET, HEAD"})
            return await self._answer(request, asked)
        except BadInput as error:
            return hub_error(400, "", f"Bad request: {error}")
        except HubRefusal as refusal:
            return hub_error(refusal.status, refusal.code, refusal.message, refusal.headers)
        except NoAnswer as silent:
            return _nobody(request, silent)

    async def _answer(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        if isinstance(asked, Quiet):
            return hub_error(404, "", "Not found")
        if isinstance(asked, Resolve):
            return await self._resolve(request, asked)
        token = _token(request)
        question = await _question(request, asked)
        reply = await self._parts.api.answer(asked, question, token)
        answer = reply.answer
        if answer.status in (401, 403, 404) and not answer.headers.get("x-error-code"):
            refusal = refusal_of(answer)  # clients of plain http do not guess a code
            answer = (
                HubAnswer(answer.endpoint, answer.status, {**answer.headers, "x-error-code": refusal.code}, answer.body)
                if refusal.code and not isinstance(asked, Other)
                else answer
            )
        grant = isinstance(asked, OfRepo) and asked.verb == "xet-read-token"
        return to_response(
            answer, _base(request), stale_s=reply.stale_s, xet_grant=grant, of_head=question.method == "HEAD"
        )

    async def _resolve(self, request: web.Request, asked: Resolve) -> web.StreamResponse:
        token = _token(request)
        find, is_head = self._parts.finder.find, request.method == "HEAD"
        patience_s = LISTING_S if is_head else _PATIENT_S
        try:
            wanted = await find(asked.repo, asked.revision, asked.path, token, listing_s=patience_s)
        except NoAnswer as silent:
            if not is_head:
                return no_file(_nobody(request, silent), request.headers.get("User-Agent"), silent)
            if not isinstance(silent, StillListing):
                raise
            return await self._hubs_head(asked, token)
        except Moved as moved:
            location = resolve_target(moved.repo, asked.revision, asked.path)
            return hub_error(307, "", moved.message, {"Location": location})
        if is_head:
            return await self._parts.blobs.head(request, wanted)
        return no_file(await self._parts.blobs.get(request, wanted), request.headers.get("User-Agent"))

    async def _hubs_head(self, asked: Resolve, token: str | None) -> web.Response:
        """What the hub says of the one file while the listing of all is on its way."""
        target = resolve_target(asked.repo, asked.revision, asked.path)
        answer = await self._parts.metadata.pass_on(Question("HEAD", target, json=False), token)
        if answer.status >= 400:
            raise refusal_of(answer)
        told = answer.headers
        size = told.get("x-linked-size") or (told.get("content-length") if answer.status == 200 else None)
        etag = told.get("x-linked-etag") or told.get("etag")
        if not size or not (size.isascii() and size.isdecimal()) or not etag or "x-repo-commit" not in told:
            raise NoAnswer(f"{answer.endpoint} does not say what {asked.path} is.")
        return web.Response(headers=_file_headers(told, size, etag))


def _nobody(request: web.Request, silent: NoAnswer) -> web.Response:
    _log.info("nobody answers path=%s reason=%s", request.path[:200], silent)
    return no_answer(silent)


def _file_headers(told: Mapping[str, str], size: str, etag: str) -> dict[str, str]:
    linked = {"X-Linked-Etag": etag, "X-Linked-Size": size} if "x-linked-size" in told else {}
    return {
        "X-Repo-Commit": told["x-repo-commit"],
        "ETag": etag,
        "Content-Length": size,
        "Accept-Ranges": "bytes",
    } | linked


async def _question(request: web.Request, asked: Asked) -> Question:
    """What the hub is asked: by GET where the answer may be remembered, so that a HEAD has it too."""
    if isinstance(asked, PathsInfo):
        if request.method != "POST":
            raise HubRefusal(405, "", "This is asked by POST.")
        return Question("POST", request.raw_path, await request.read(), "application/x-www-form-urlencoded")
    if isinstance(asked, Other):
        return Question("GET" if asked.lists else request.method, request.raw_path, json=asked.lists)
    perishable = isinstance(asked, OfRepo) and asked.perishable
    return Question("GET", request.raw_path, json=not perishable)


def _token(request: web.Request) -> str | None:
    """The caller's token, for that caller's questions alone."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        return None
    if len(token) > _MOST_TOKEN or not token.isascii() or not token.isprintable():
        raise HubRefusal(401, "", "Invalid credentials in Authorization header")
    return token


def _base(request: web.Request) -> str:
    """How the caller addressed us; the guard has looked at it."""
    return f"{request.scheme}://{request.host}"
