"""Who may speak to the local listener: this machine's programs, and for most of it, this user's.

A web page in a browser of this machine is not one of them: its Host (DNS rebinding), its Origin and its
Sec-Fetch-Site give it away. Errors leave as the messages of `edgecdn.control`, and in a hub's form where the
hub gateway was addressed, which asks for no token: what a hub would tell anybody is told to any program here.
"""

from __future__ import annotations

import hmac
import logging
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from edgecdn.control import ErrorInfo, error_info
from edgecdn.errors import AgentNotRunning, BadInput, EdgecdnError

__all__ = ["GATEWAY_ROUTE", "has_token", "is_loopback_host", "local_guard", "refusal"]

_log = logging.getLogger(__name__)

GATEWAY_ROUTE = "gateway"
"""The name, up to its first dot, of routes that need no token; whatever else is routed, or is not, needs it."""

_OPEN = frozenset({"/healthz", "/metrics"})
"""Answered without the token: probes and scrapers have none, and nothing private is told there."""

_OWN_SITE = frozenset({"same-origin", "none"})


def is_loopback_host(value: str) -> bool:
    """Whether a Host value (`host`, `host:port`, `[v6]:port`) names this machine by loopback."""
    try:
        host = urlsplit(f"//{value}").hostname or ""
        urlsplit(f"//{value}").port  # noqa: B018 - raises where it is no number
        if "@" in value or "/" in value or "\\" in value:
            return False
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def refusal(status: int, info: ErrorInfo) -> web.Response:
    """An answer that says why there is none."""
    return web.Response(status=status, body=msgspec.json.encode(info), content_type="application/json")


def has_token(request: web.Request, token: str) -> bool:
    """Whether a program of this user asks: it can read the token."""
    given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
    return hmac.compare_digest(given, f"Bearer {token}".encode())


def local_guard(token: str) -> Middleware:
    """The middleware: 403 for web pages, 401 without the token, errors as messages."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_gateway = (request.match_info.route.name or "").partition(".")[0] == GATEWAY_ROUTE
        refuse = _hub_refusal if is_gateway else refusal
        if not _is_local_program(request):
            return refuse(403, ErrorInfo("BadInput", "Only programs of this machine are answered here."))
        if not is_gateway and request.path not in _OPEN and not has_token(request, token):
            denied = refusal(401, ErrorInfo("AgentNotRunning", "The agent does not accept this token.", "Restart it."))
            denied.headers["WWW-Authenticate"] = "Bearer"
            return denied
        told: web.StreamResponse
        try:
            told = await handler(request)
        except web.HTTPException as error:
            told = refuse(error.status, ErrorInfo("EdgecdnError", f"{error.reason}: {request.method} {request.path}"))
        except EdgecdnError as error:
            told = refuse(_status(error), error_info(error))
        except Exception as error:  # noqa: BLE001 - it ends this request, not the server
            _log.exception("request failed path=%s", request.path)
            told = refuse(500, error_info(error))
        return _alone(request, told)

    return guard


def _alone(request: web.Request, told: web.StreamResponse) -> web.StreamResponse:
    """Cut the connection where another answer is under way: the second would be taken for bytes of the first."""
    if not told.prepared and request.writer.output_size and request.transport is not None:
        request.transport.abort()
    return told


def _hub_refusal(status: int, info: ErrorInfo) -> web.Response:
    """The same in a hub's form."""
    headers = {"X-Error-Message": info.message.encode("ascii", "replace").decode().replace("\n", " ")[:500]}
    body = msgspec.json.encode({"error": info.message})
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def _is_local_program(request: web.Request) -> bool:
    if not is_loopback_host(request.headers.get("Host", "")):
        return False
    if request.headers.get("Sec-Fetch-Site", "none") not in _OWN_SITE:
        return False
    origins = request.headers.getall("Origin", [])
    return all(origin.startswith("http://") and is_loopback_host(origin[7:]) for origin in origins)


def _status(error: EdgecdnError) -> int:
    if isinstance(error, BadInput):
        return 400
    return 503 if isinstance(error, AgentNotRunning) else 500
