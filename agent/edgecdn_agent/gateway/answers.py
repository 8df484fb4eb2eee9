"""A hub's answer, made fit for our clients: no trace of Xet, and addresses that lead to us. Pure.

A client that sees Xet goes to the Xet storage and around us; without, it takes plain HTTP.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from aiohttp import web

from edgecdn.errors import BadInput
from edgecdn.sources.reach import may_lead
from edgecdn_agent.gateway.errors import hub_error
from edgecdn_agent.gateway.hubs import HubAnswer
from edgecdn_agent.gateway.moved import local_location
from edgecdn_agent.gateway.paths import parse_target

__all__ = ["next_target", "to_response", "without_xet"]

_LINK = re.compile(r"<([^<>]{1,8000})>\s*((?:;\s*[^;,<>]+)*)")
_PASSED = (
    "etag", "x-repo-commit", "x-linked-etag", "x-linked-size", "x-error-code", "x-error-message", "x-total-count",
    "retry-after", "last-modified", "accept-ranges", "www-authenticate", "x-request-id", "content-disposition",
)  # fmt: skip
_XET_GRANT = ("x-xet-cas-url", "x-xet-access-token", "x-xet-token-expiration")
_XET = b'"xetHash"'
_SPACES = re.compile(r"[^\x20-\x7e]+")


def without_xet(body: bytes) -> bytes:
    """A JSON answer without any `xetHash`; what is no JSON stays as it is."""
    if _XET not in body:
        return body
    try:
        return msgspec.json.encode(_stripped(msgspec.json.decode(body)))
    except (msgspec.DecodeError, RecursionError):
        return body


def next_target(answer: HubAnswer) -> str | None:
    """Raw path and query of a listing's next page; None at its end, and for one that leads anywhere else."""
    for match in _LINK.finditer(answer.headers.get("link", "")):
        if not re.search(r'rel\s*=\s*"?next\b', match[2]):
            continue
        address = match[1]
        if address.startswith(answer.endpoint + "/"):
            address = address[len(answer.endpoint) :]
        try:
            parse_target(address)
        except BadInput:
            return None
        return address
    return None


def to_response(
    answer: HubAnswer, base: str, *, stale_s: float | None = None, xet_grant: bool = False, of_head: bool = False
) -> web.Response:
    """The answer for a client that addressed us as `base` (`http://127.0.0.1:8377`). `of_head`: to a HEAD."""
    passed = (*_PASSED, *_XET_GRANT) if xet_grant else _PASSED
    headers = {name.title(): _SPACES.sub(" ", answer.headers[name]) for name in passed if name in answer.headers}
    following = next_target(answer)
    if following is not None:
        headers["Link"] = f'<{base}{following}>; rel="next"'
    if stale_s is not None:
        headers |= {"Warning": '110 - "Response is Stale"', "X-Edgecdn-Stale": str(int(stale_s))}
    if 300 <= answer.status < 400 and answer.status != 304:
        location = local_location(answer) or _storage(answer)
        if location is None:
            return hub_error(502, "", "The hub sends to another address, which the gateway does not follow.")
        headers["Location"] = location
    content_type = answer.headers.get("content-type", "application/json" if answer.body else "")
    body = answer.body if xet_grant else without_xet(answer.body)
    if body != answer.body:
        headers.pop("Etag", None)  # it names other bytes; our own answers are asked for again in full
    if of_head and "content-length" in answer.headers:
        headers["Content-Length"] = answer.headers["content-length"]
    if content_type:
        headers["Content-Type"] = _SPACES.sub(" ", content_type)
    return web.Response(status=answer.status, body=body, headers=headers)


def _storage(answer: HubAnswer) -> str | None:
    """Where a hub's storage has a file of a kind that is only passed through: the client goes there itself."""
    location = answer.headers.get("location", "")
    if "x-repo-commit" not in answer.headers or not (location.isascii() and location.isprintable()):
        return None
    try:
        return location if may_lead(answer.endpoint, location) else None
    except ValueError:  # no address
        return None


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _stripped(inner) for name, inner in value.items() if name != "xetHash"}
    if isinstance(value, list):
        return [_stripped(inner) for inner in value]
    return value
