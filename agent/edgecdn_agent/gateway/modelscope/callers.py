"""Who asks: a stranger, or somebody with a session or token of ModelScope's, which goes there and nowhere else.

Nothing of it is kept: what is remembered for a caller is remembered under a hash of it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDictProxy
from yarl import URL

from edgecdn.sources.http import Credentials

__all__ = ["SESSION_COOKIE", "STRANGER", "Caller", "CallerAuth"]

SESSION_COOKIE = "m_session_id"
_SALT = secrets.token_bytes(16)
"""So that a key tells nothing of a token, not even to who has both."""


@dataclass(frozen=True, slots=True)
class CallerAuth(Credentials):
    """What a caller sent, as it was sent: clients of before 1.38 have a session and no token."""

    sent: Mapping[str, str] = field(default_factory=dict, repr=False)

    def headers_for(self, url: URL) -> dict[str, str]:
        """It goes to ModelScope and to no other origin."""
        return dict(self.sent) if URL(self.endpoint).origin() == url.origin() else {}


@dataclass(frozen=True, slots=True)
class Caller:
    """`key` tells callers apart; a stranger's is empty."""

    key: str = ""
    sent: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, request: web.BaseRequest) -> Caller:
        """Who sends this request."""
        return cls._of(request.headers, request.cookies.get(SESSION_COOKIE, ""))

    @classmethod
    def _of(cls, headers: CIMultiDictProxy[str], session: str) -> Caller:
        sent: dict[str, str] = {}
        bearer = headers.get("Authorization", "")
        if bearer.startswith("Bearer ") and bearer.isascii() and bearer.isprintable() and len(bearer) > len("Bearer "):
            sent["Authorization"] = bearer
        if session and session.isascii() and session.isprintable() and ";" not in session:
            sent["Cookie"] = f"{SESSION_COOKIE}={session}"
        if not sent:
            return STRANGER
        said = "\0".join(sent.values()).encode()
        return cls(hashlib.blake2b(said, key=_SALT, digest_size=16).hexdigest(), sent)

    def auth(self, endpoint: str) -> tuple[CallerAuth, ...]:
        """For a client of one request."""
        return (CallerAuth(endpoint, "", "", self.sent),) if self.sent else ()


STRANGER = Caller()
