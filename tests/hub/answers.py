"""What handlers receive and return: plain values, so that they can stay synchronous."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.hub.content import Source


@dataclass(frozen=True, slots=True)
class Asked:
    """A parsed request."""

    method: str
    raw_path: str  # without the query, percent signs untouched
    query: Mapping[str, str]
    headers: Mapping[str, str]
    base_url: str  # scheme and authority the client used
    form_paths: Sequence[str] = ()
    posted: Mapping[str, Any] = field(default_factory=dict)  # the object a POST of JSON carries

    @property
    def token(self) -> str | None:
        """The bearer token, if one was sent."""
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        return value if scheme.lower() == "bearer" and value else None

    def flag(self, name: str) -> bool:
        """Read a boolean as any client version writes it."""
        return self.query.get(name, "").lower() in ("true", "1")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response to send; `file` names the file whose bytes are the body."""

    status: int = 200
    body: Source = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str | None = None
    ranged: bool = False
    range_status: int = 206


class HubError(Exception):
    """An error answer with the codes that clients look at."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        named = {"X-Error-Code": code} if code else {}
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        self.status = status
        self.headers = {**named, "X-Error-Message": message, **extra}

    def answer(self) -> Answer:
        """Return the response for this error."""
        body = json.dumps({"error": str(self)}).encode()
        return Answer(self.status, body, headers=self.headers)


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return a JSON response."""
    return Answer(status, json.dumps(value).encode(), headers=headers or {})
