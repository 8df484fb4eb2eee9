"""Answers given on from ModelScope as they come: what is not known here, and bytes for one caller alone."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from yarl import URL

from edgecdn.errors import BadInput
from edgecdn.manifest import FileEntry
from edgecdn.sources.faults import SourceFault
from edgecdn.sources.http import get_proxy
from edgecdn.spans import Span
from edgecdn.version import VERSION
from edgecdn_agent.gateway.errors import NoAnswer
from edgecdn_agent.gateway.modelscope.callers import Caller
from edgecdn_agent.gateway.modelscope.envelope import error_answer, no_answer
from edgecdn_agent.gateway.modelscope.listings import Listing
from edgecdn_agent.gateway.modelscope.upstream import Upstream
from edgecdn_agent.lan.sender import parse_range

__all__ = ["log_in", "pass_file", "pass_on"]

_log = logging.getLogger(__name__)

_WRITE_S = 60.0
"""A caller that takes nothing for so long (seconds) is gone."""

_KEPT_HEADERS = ("Content-Type", "Content-Length", "Content-Range", "Content-Disposition", "ETag", "X-Linked-ETag")
_LOGIN_S = 20.0
_MOST_LOGIN = 64 << 10
_COOKIE = re.compile(r"(?P<pair>[A-Za-z0-9_\-]+=[!-:<-~]*)(?P<attributes>;[^\r\n]*)?\Z")


async def pass_on(request: web.Request, upstream: Upstream, target: str, caller: Caller) -> web.StreamResponse:
    """Any answer, streamed; only its body and what describes it. Raises NoAnswer."""
    try:
        async with upstream.open(target, caller, request.headers.get("Range", "")) as response:
            headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
            sent = web.StreamResponse(status=response.status, headers={**headers, "Cache-Control": "no-store"})
            return await _send(request, sent, response.content.iter_any())
    except SourceFault as fault:
        raise NoAnswer(f"ModelScope cannot be asked: it {fault}.") from fault


async def pass_file(
    request: web.Request, upstream: Upstream, listing: Listing, entry: FileEntry, caller: Caller
) -> web.StreamResponse:
    """A file that this caller alone may have: nothing of it is kept."""
    try:
        span = parse_range(request.headers.get("Range"), entry.size)
    except BadInput as error:
        return error_answer(416, str(error), {"Content-Range": f"bytes */{entry.size}"})
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(entry.size if span is None else len(span)),
        "ETag": f'"{entry.digest.hex}"',
        "X-Linked-ETag": f'"{entry.digest.hex}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-store",
    }
    if span is not None:
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{entry.size}"
    sent = web.StreamResponse(status=200 if span is None else 206, headers=headers)
    whole = span or Span(0, entry.size)
    pieces = upstream.read(listing.repo, listing.revision, entry, whole, caller)
    try:
        return await _send(request, sent, pieces)
    except SourceFault as fault:
        return no_answer(NoAnswer(f"ModelScope does not give {entry.path}: it {fault}."))
    finally:
        await pieces.aclose()


async def log_in(request: web.Request, endpoint: str) -> web.StreamResponse:
    """Give a login on, and the session back as a cookie of this address; neither is kept or logged."""
    body = await request.content.read(_MOST_LOGIN + 1)
    if len(body) > _MOST_LOGIN:
        return error_answer(413, "A login is smaller than that.")
    url = URL(endpoint) / "api" / "v1" / "login"
    headers = {"Content-Type": "application/json", "User-Agent": f"edgecdn/{VERSION}", "Accept-Encoding": "identity"}
    limit = aiohttp.ClientTimeout(total=_LOGIN_S)
    try:
        async with (
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), timeout=limit, trust_env=False) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False, proxy=get_proxy(url)) as response,
        ):
            answer = web.Response(
                status=response.status if response.status not in range(300, 400) else 502,
                body=await response.content.read(_MOST_LOGIN),
                content_type=response.content_type,
                headers={"Cache-Control": "no-store"},
            )
            for cookie in response.headers.getall("Set-Cookie", []):
                match = _COOKIE.match(cookie)
                if match is not None:
                    answer.headers.add("Set-Cookie", f"{match['pair']}; Path=/{_age(match['attributes'] or '')}")
            return answer
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
        return no_answer(NoAnswer(f"ModelScope does not answer the login ({type(error).__name__})."))


def _age(attributes: str) -> str:
    """How long it lasts, of what else a cookie says: its host and `Secure` are not true of this address."""
    kept = [part for part in attributes.split(";") if part.strip().lower().startswith(("max-age=", "expires="))]
    return "".join(f";{part}" for part in kept)


async def _send(request: web.Request, sent: web.StreamResponse, pieces: AsyncIterator[bytes]) -> web.StreamResponse:
    """Nothing is promised before the first byte is here; after it, a failure can only cut the connection."""
    first = await anext(pieces, b"")
    await sent.prepare(request)
    if request.method == "HEAD":
        return sent
    try:
        await _write(sent, first)
        async for piece in pieces:
            await _write(sent, piece)
        await _finish(sent)
    except (SourceFault, NoAnswer, TimeoutError, ConnectionError) as error:
        _log.info("an answer ends early path=%s reason=%s", request.path, str(error)[:200])
        if request.transport is not None:
            request.transport.abort()
    return sent


async def _write(sent: web.StreamResponse, piece: bytes) -> None:
    async with asyncio.timeout(_WRITE_S):
        await sent.write(piece)


async def _finish(sent: web.StreamResponse) -> None:
    async with asyncio.timeout(_WRITE_S):
        await sent.write_eof()
