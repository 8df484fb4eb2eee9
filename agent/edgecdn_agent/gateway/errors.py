"""What the gateway says when there is no file: a hub's own refusal, or that nobody answers; in a hub's form.

`X-Error-Code` decides for clients, and they do not guess it for plain http: it is always sent where it is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from aiohttp import web

from edgecdn.names import RepoId

__all__ = ["HubRefusal", "Moved", "NoAnswer", "StillListing", "hub_error", "no_answer"]

_MOST_MESSAGE = 500
_INVALID_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - what hubs say of a wrong one


class HubRefusal(Exception):
    """A hub's own answer to this caller, that is no file: to be given on as it is."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message or code or f"HTTP {status}")
        self.status = status
        self.code = code or _code(status, message)
        self.message = message
        self.headers = dict(headers or {})


class Moved(HubRefusal):
    """The hub has the repo under another name now: `repo`."""

    def __init__(self, status: int, repo: RepoId) -> None:
        super().__init__(status, "", f"It is now {repo}.")
        self.repo = repo


class NoAnswer(Exception):
    """Nobody can say: no hub answers and nothing is known here. Clients then take what they have themselves."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StillListing(NoAnswer):
    """The listing of a large commit is on its way and takes longer than the caller can wait."""


def hub_error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error as hubs give it."""
    said = _one_line(message)
    sent = {**(headers or {}), "X-Error-Message": said, "Cache-Control": "no-store"}
    if code:
        sent["X-Error-Code"] = code
    body = msgspec.json.encode({"error": message})
    return web.Response(status=status, body=body, content_type="application/json", headers=sent)


def no_answer(error: NoAnswer) -> web.Response:
    """503: clients of hubs fall back to their own cache."""
    wait = {} if error.retry_after_s is None else {"Retry-After": str(math.ceil(error.retry_after_s))}
    return hub_error(503, "", str(error), wait)


def _code(status: int, message: str) -> str:
    """Clients take a bare 401 for a missing repo, but only where the address begins with https."""
    return "RepoNotFound" if status == 401 and message != _INVALID_TOKEN else ""


def _one_line(message: str) -> str:
    return " ".join(message.encode("ascii", "replace").decode().split())[:_MOST_MESSAGE]
