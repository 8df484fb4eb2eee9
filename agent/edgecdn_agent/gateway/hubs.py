"""Questions to the configured hubs, in order: the first that answers is believed.

A caller's token goes to the one hub it belongs to (`edgecdn.token_owner`), and this agent's own user's token
to none. No redirect is followed here, so no answer can send us anywhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
import msgspec
from yarl import URL

from edgecdn.settings import Settings
from edgecdn.sources.answers import retry_after_s
from edgecdn.sources.faults import Broken, Busy, Misbehaved, SourceFault
from edgecdn.sources.http import RememberingResolver, get_proxy
from edgecdn.token_owner import token_owner
from edgecdn.version import VERSION
from edgecdn_agent.gateway.errors import NoAnswer

__all__ = ["HubAnswer", "Hubs", "Question"]

_log = logging.getLogger(__name__)

_ANSWER_S = 7.0
"""All hubs together: a client waits 10 s for a HEAD."""

_HURRY_S = 3.0
"""The same where something is known already."""

_CONNECT_S = 3.0
_REST_S = 15.0
"""A hub that was silent is not waited for again so soon where there is another way."""

_LONGEST_REST_S = 60.0
_MOST_BODY_BYTES = 64 << 20
_BUSY = frozenset({408, 425, 429, 503})
_REFUSED = frozenset({401, 403, 404})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Question:
    """`target`: raw path and query. `json`: only JSON is a good answer to it (else it comes from a login page).

    `only`: the one hub to be asked (empty: all).
    """

    method: str
    target: str
    body: bytes = b""
    content_type: str = ""
    json: bool = True
    only: str = ""


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """What a hub said. `endpoint`: which one."""

    endpoint: str
    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def size(self) -> int:
        """About how much memory it takes, bytes."""
        return len(self.body) + sum(len(k) + len(v) for k, v in self.headers.items()) + 512


@dataclass(slots=True)
class _Rest:
    """Until when a hub is left alone. `told`: it asked for that."""

    until: float = 0.0
    told: bool = False


@dataclass(slots=True)
class _Round:
    """One question on its way through the hubs."""

    said: list[str] = field(default_factory=list)
    wait_s: float | None = None

    def wait(self, wait_s: float) -> None:
        """It is of no use to ask again earlier."""
        self.wait_s = max(self.wait_s or 0.0, wait_s)


class Hubs:
    """Asks them. Close it at the end; after that the next question opens it anew."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.endpoints = settings.hub_endpoints
        self.offline = settings.offline
        self.owner = token_owner(settings.hub_endpoints, settings.hub_token_for)
        self._clock = clock
        self._rests = {endpoint: _Rest() for endpoint in self.endpoints}
        self._session: aiohttp.ClientSession | None = None

    def rests(self, endpoint: str, *, hurry: bool) -> bool:
        """Whether it is to be left alone: it asked for a pause, or was silent and there is another way."""
        rest = self._rests[endpoint]
        return self._clock() < rest.until and (rest.told or hurry)

    async def ask(self, question: Question, token: str | None, *, etag: str = "", hurry: bool = False) -> HubAnswer:
        """What the first hub that answers says to this caller. `hurry`: something is known without it.

        A token's own hub has the last word on what others do not have. Raises NoAnswer.
        """
        if self.offline:
            raise NoAnswer("No hub is asked: HF_HUB_OFFLINE is set.")
        so_far = _Round()
        loop = asyncio.get_running_loop()
        asked = [endpoint for endpoint in self.endpoints if question.only in ("", endpoint)]
        deadline = loop.time() + (_HURRY_S if hurry else _ANSWER_S)
        for position, endpoint in enumerate(asked, start=1):
            if self.rests(endpoint, hurry=hurry):
                so_far.said.append(f"{_name(endpoint)} is left alone for a while")
                so_far.wait(self._rests[endpoint].until - self._clock())
                continue
            left_s = deadline - loop.time()
            answer = await self._try(
                endpoint, question, token, etag, so_far, limit_s=left_s if position == len(asked) else left_s / 2
            )
            if answer is not None:
                return answer
        raise NoAnswer(f"No hub answers: {'; '.join(so_far.said)}.", so_far.wait_s)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _try(
        self, endpoint: str, question: Question, token: str | None, etag: str, so_far: _Round, *, limit_s: float
    ) -> HubAnswer | None:
        """Its answer, if that is one."""
        own = token if endpoint == self.owner else None
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._ask(endpoint, question, own, etag)
        except TimeoutError:
            self._rest(endpoint, _REST_S, told=False)
            so_far.said.append(f"{_name(endpoint)} does not answer in time")
            return None
        except Busy as busy:
            self._rest(endpoint, min(busy.retry_after_s or 1.0, _LONGEST_REST_S), told=True)
            so_far.wait(busy.retry_after_s or 1.0)
            so_far.said.append(f"{_name(endpoint)} {busy}")
            return None
        except SourceFault as fault:
            _log.info("a hub does not answer hub=%s reason=%s", endpoint, str(fault)[:200])
            so_far.said.append(f"{_name(endpoint)} {fault}")
            return None
        self._rests[endpoint] = _Rest()
        if answer.status in _REFUSED and token is not None and self.owner not in (None, endpoint):
            so_far.said.append(f"{_name(endpoint)} refuses strangers")  # the token's own hub has to say
            return None
        return answer

    def _rest(self, endpoint: str, rest_s: float, *, told: bool) -> None:
        self._rests[endpoint] = _Rest(self._clock() + rest_s, told)

    async def _ask(self, endpoint: str, question: Question, token: str | None, etag: str) -> HubAnswer:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if etag:
            headers["If-None-Match"] = etag
        if question.content_type:
            headers["Content-Type"] = question.content_type
        async with self._send(URL(endpoint + question.target, encoded=True), question, headers) as response:
            _refuse_faults(response, question)
            body = b"" if question.method == "HEAD" else await _read(response)
        if question.json and response.status == 200 and not _is_json(body):
            raise Misbehaved("answers something that is not JSON (a login page of this network?)")
        return HubAnswer(endpoint, response.status, _headers(response), body)

    @asynccontextmanager
    async def _send(
        self, url: URL, question: Question, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._open_session().request(
                question.method, url, headers=headers, data=question.body or None, allow_redirects=False,
                proxy=get_proxy(url),
            ) as response:  # fmt: skip
                yield response
        except aiohttp.ClientError as error:
            raise Broken(f"cannot be asked ({type(error).__name__})") from error
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            raise Broken(f"cannot be asked ({type(error).__name__})") from error

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=64, resolver=RememberingResolver(), use_dns_cache=False)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=_CONNECT_S, sock_read=_ANSWER_S),
                headers={"User-Agent": f"edgecdn/{VERSION}", "Accept-Encoding": "identity"},
                skip_auto_headers=("Content-Type",),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def _refuse_faults(response: aiohttp.ClientResponse, question: Question) -> None:
    """Raise for what is no answer of a hub, before its body is read."""
    status, headers = response.status, response.headers
    if status in _BUSY:
        raise Busy(f"is busy (HTTP {status})", retry_after_s(headers, datetime.now(tz=UTC)))
    if status >= 500:
        raise Broken(f"failed (HTTP {status})")
    if headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise Misbehaved("answers with a compressed body where a plain one was asked for")
    if status in _REDIRECTS and question.json and not _stays(response):
        raise Misbehaved("sends elsewhere (the login page of this network?)")


def _stays(response: aiohttp.ClientResponse) -> bool:
    """Whether a redirect leads to another path of the same hub."""
    try:
        target = response.url.join(URL(response.headers.get("Location", ""), encoded=True))
    except ValueError:
        return False
    return target.origin() == response.url.origin()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _MOST_BODY_BYTES:
            raise Misbehaved("answers with more than the gateway can hold")
    return bytes(body)


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    """By lower-case name; of several with one name the values are joined, as HTTP has it."""
    found: dict[str, str] = {}
    for name, value in response.headers.items():
        key = name.lower()
        found[key] = f"{found[key]}, {value}" if key in found else value
    return found


def _name(endpoint: str) -> str:
    return endpoint.partition("://")[2]
