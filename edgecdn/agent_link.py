"""The way from a program to the agent of its user: find it, ask it, hand it a fetch.

An agent is there when it holds the lock of its home; what `run.json` says beyond that may be left over
from one that was killed. Proxies of the environment are for the world outside and do not apply here.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from edgecdn.control import (
    API,
    LOCK_FILE,
    RUN_FILE,
    SILENCE_S,
    TOKEN_FILE,
    Cancelled,
    ErrorInfo,
    FetchRequest,
    HealthInfo,
    JobInfo,
    PeerInfo,
    RunInfo,
    StatusInfo,
    TopInfo,
    decode_event,
    decode_line,
    parse,
    rebuilt_error,
)
from edgecdn.errors import AgentNotRunning, BadInput
from edgecdn.events import Listener
from edgecdn.fetched import Fetched

__all__ = ["AgentAddress", "AgentLink", "JobHandle", "find_agent", "is_locked"]

_T = TypeVar("_T")
_ANSWER_S = 4.0
"""A question to the agent that takes longer (seconds) counts as unanswered."""

_MOST_FILE_BYTES = 64 << 10
_MOST_LINE_BYTES = 4 << 20
"""A line of a stream is small; a result of many sources is far below this."""

_GOES_ON = " (it was lost during the fetch)"
_GOES_ON_HINT = "The fetch goes on when the agent is back: `edgecdn agent start`, then run the same command again."


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """A running agent: its process, where it answers, and the token that it answers to."""

    run: RunInfo
    token: str = field(repr=False)

    @property
    def url(self) -> str:
        """Base of the local listener; one bound to all addresses is spoken to by loopback."""
        host, _, port = self.run.listeners["local"].rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared
        return f"http://{host}:{port}"


@dataclass(slots=True)
class JobHandle:
    """What a caller needs to cancel a fetch it waits for; empty until the agent has told."""

    job: str = ""
    asker: str = ""
    stopped: bool = False
    """The agent said that it stops; it was not lost."""


def find_agent(home: Path) -> AgentAddress | None:
    """The agent that serves `home`, or None: there is none, or only what a killed one left behind."""
    try:
        run = parse(_read_own(home / RUN_FILE), RunInfo)
        token = _read_own(home / TOKEN_FILE).decode("ascii").strip()
    except (OSError, BadInput, UnicodeDecodeError):
        return None
    if not token or "local" not in run.listeners or not is_locked(home):
        return None
    return AgentAddress(run, token)


def is_locked(home: Path) -> bool:
    """Whether a living process holds the home's lock; the kernel frees it when that dies, however it dies."""
    try:
        fd = os.open(home / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _read_own(path: Path) -> bytes:
    """A small file that this user (or root) wrote: nobody else says where the token is sent."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode) or seen.st_uid not in (os.getuid(), 0):
            raise BadInput(f"{path} is not a file of this user")
        return file.read(_MOST_FILE_BYTES)


class AgentLink:
    """A conversation with one agent; use as `async with AgentLink(address) as link`."""

    def __init__(self, address: AgentAddress, *, silence_s: float = SILENCE_S) -> None:
        self._address = address
        self._silence_s = silence_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AgentLink:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._address.token}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_ANSWER_S, sock_read=self._silence_s),
            trust_env=False,
            read_bufsize=1 << 18,
            max_line_size=_MOST_FILE_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def health(self) -> HealthInfo:
        """Whether the agent is ready, and what of it is down."""
        return await self._ask("GET", "/healthz", HealthInfo, also=503)

    async def status(self) -> StatusInfo:
        """What `edgecdn status` shows."""
        return await self._ask("GET", f"{API}/status", StatusInfo)

    async def peers(self) -> tuple[PeerInfo, ...]:
        """The agents it knows, without itself."""
        return await self._ask("GET", f"{API}/peers", tuple[PeerInfo, ...])

    async def top(self) -> TopInfo:
        """Rates at this moment."""
        return await self._ask("GET", f"{API}/top", TopInfo)

    async def jobs(self) -> tuple[JobInfo, ...]:
        """Its fetches, running and ended."""
        return await self._ask("GET", f"{API}/jobs", tuple[JobInfo, ...])

    async def cancel(self, handle: JobHandle) -> Cancelled:
        """Leave the fetch of `handle`, and stop it where nobody else waits for it."""
        params = {"asker": handle.asker} if handle.asker else {}
        return await self._ask("DELETE", f"{API}/jobs/{handle.job}", Cancelled, params=params)

    async def fetch(self, request: FetchRequest, listener: Listener, handle: JobHandle | None = None) -> Fetched:
        """Have the agent fetch; its events go to `listener`. When this is cancelled, the job goes on.

        `handle` is filled for `cancel`. Raises what the fetch raised there, AgentNotRunning (<= 5 s after) when
        the agent is lost.
        """
        try:
            body = msgspec.json.encode(request)
        except UnicodeEncodeError as error:
            raise BadInput("A name or folder that is not UTF-8 cannot be handed to the agent") from error
        handle = handle or JobHandle()
        try:
            async with self._request("POST", f"{API}/jobs", data=body) as answer:
                await _refuse(answer)
                return await self._follow(answer, listener, handle)
        except AgentNotRunning as error:
            if not handle.job or handle.stopped:
                raise
            raise AgentNotRunning(_GOES_ON, hint=_GOES_ON_HINT) from error

    async def _follow(self, answer: aiohttp.ClientResponse, listener: Listener, handle: JobHandle) -> Fetched:
        async for line in _lines(answer):
            if "job" in line:
                handle.job, handle.asker = str(line["job"]), str(line.get("asker", ""))
            elif "result" in line:
                return _converted(line["result"], Fetched)
            elif "error" in line:
                error = rebuilt_error(_converted(line["error"], ErrorInfo))
                handle.stopped = isinstance(error, AgentNotRunning)
                raise error
            elif (event := decode_event(line)) is not None:
                listener(event)
        raise AgentNotRunning

    async def _ask(self, method: str, path: str, shape: type[_T], also: int = 200, **options: Any) -> _T:
        try:
            async with asyncio.timeout(_ANSWER_S), self._request(method, path, **options) as answer:
                if answer.status != also:
                    await _refuse(answer)
                return parse(await answer.read(), shape)
        except TimeoutError as error:
            raise AgentNotRunning(f" (no answer for {_ANSWER_S:.0f} s)") from error

    @asynccontextmanager
    async def _request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "use `async with`"
        try:
            async with self._session.request(
                method, self._address.url + path, allow_redirects=False, **options
            ) as answer:
                yield answer
        except aiohttp.ClientError as error:
            raise AgentNotRunning(f" ({error})" if str(error) else "") from error


async def _refuse(answer: aiohttp.ClientResponse) -> None:
    """Raise what an answer that is none says."""
    if answer.status == 200:
        return
    body = await answer.content.read(_MOST_FILE_BYTES)
    try:
        info = parse(body, ErrorInfo)
    except BadInput:
        raise AgentNotRunning(f" ({answer.url.path} is answered with {answer.status})") from None
    raise rebuilt_error(info)


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The lines of a stream; ends where the stream does, whole or not."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MOST_LINE_BYTES:
            raise AgentNotRunning(" (it sends no lines)")
        for line in whole:
            if line:
                yield decode_line(line)


def _converted(value: object, shape: type[_T]) -> _T:
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise BadInput(f"The agent's answer is not a {shape.__name__}: {error}") from error
