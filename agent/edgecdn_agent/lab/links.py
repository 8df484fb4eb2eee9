"""One connection to a peer's event stream: who it is, that it lives, that it has something new.

The peer is not trusted: its lines are bounded in length and number, its words are checked by
`lan_wire`, and silence ends the link. A link makes no decisions; `Peers` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout
from yarl import URL

from edgecdn.errors import BadInput
from edgecdn.lan_wire import (
    AGENT_HEADER,
    BASE_PATH,
    MOST_HELLO_BYTES,
    PROTOCOL,
    PROTOCOL_HEADER,
    Asker,
    Hello,
    LanEvent,
    parse_event,
    parse_refusal,
)
from edgecdn_agent.lab.candidates import Timing

__all__ = ["Greeting", "Link", "LinkLost", "OtherProtocol"]

_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 2))
"""Seconds, seconds, probes: the kernel notices a dead machine even when this process is stopped for a while."""

_LINES_S = 5.0
_BURST_LINES = 60
"""A peer says a line every second at most, and a beat every 5 s; far more of them is noise or an attack."""


class LinkLost(Exception):
    """There is nobody, or not any more."""


class OtherProtocol(LinkLost):
    """Somebody is there who speaks no protocol of ours."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a peer said first, and by how much its clock is ahead of ours, seconds."""

    hello: Hello
    clock_offset_s: float


class Link:
    """The event stream of the agent at one address: `open`, then `follow`; `close` always."""

    def __init__(self, session: ClientSession, host: str, port: int, asker: Asker, timing: Timing) -> None:
        self.host, self.port = host, port
        self._session = session
        self._asker = asker
        self._timing = timing
        self._response: ClientResponse | None = None
        self._lines: _Lines | None = None
        self._patience: asyncio.Timeout | None = None
        self._is_cut = False

    async def open(self) -> Greeting:
        """Connect and learn who is there. Raises LinkLost."""
        with _translated():
            async with asyncio.timeout(self._timing.dial_s):
                self._response = response = await self._session.get(
                    URL.build(scheme="http", host=self.host, port=self.port, path=f"{BASE_PATH}/events"),
                    headers={
                        PROTOCOL_HEADER: str(PROTOCOL),
                        AGENT_HEADER: str(self._asker),
                        "Accept-Encoding": "identity",
                    },
                    allow_redirects=False,
                    timeout=ClientTimeout(total=None),
                )
                await _refuse_wrong_answer(response)
                _keep_alive(response)
                self._lines = _Lines(response)
                event = await self._next_event()
                if event.hello is None:
                    raise LinkLost("its first line is no hello")
                if not event.hello.is_understood():
                    raise OtherProtocol(f"speaks protocols {event.hello.oldest} to {event.hello.protocol}")
                return Greeting(event.hello, event.hello.time - time.time())

    async def follow(self, heard: Callable[[LanEvent], None]) -> None:
        """Tell of every line until the peer is gone. Raises LinkLost, always."""
        clock = asyncio.get_running_loop().time
        allowance, last_s = float(_BURST_LINES), clock()
        with _translated():
            async with asyncio.timeout(self._timing.silence_s) as self._patience:
                while not self._is_cut:
                    event = await self._next_event()
                    now_s = clock()
                    allowance = min(_BURST_LINES, allowance + (now_s - last_s) * _LINES_S) - 1
                    last_s = now_s
                    if allowance < 0:
                        raise LinkLost("it talks too much")
                    if not self._is_cut:
                        self._patience.reschedule(now_s + self._timing.silence_s)
                        heard(event)
        raise LinkLost("cut")

    def cut(self) -> None:
        """End `follow` now."""
        self._is_cut = True
        if self._patience is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._patience.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Close the connection; nothing waits."""
        if self._response is not None:
            self._response.close()

    async def _next_event(self) -> LanEvent:
        assert self._lines is not None
        return parse_event(await self._lines.next())


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Foreign errors become LinkLost."""
    try:
        yield
    except TimeoutError as error:
        raise LinkLost("silent") from error
    except (ClientError, OSError, ValueError) as error:
        raise LinkLost(f"{type(error).__name__}: {error}"[:200]) from error


async def _refuse_wrong_answer(response: ClientResponse) -> None:
    """Raise LinkLost unless the answer begins an event stream."""
    if response.status == 426:
        body = await response.content.read(MOST_HELLO_BYTES)
        try:
            raise OtherProtocol(parse_refusal(body))
        except BadInput as error:
            raise LinkLost("refused without words") from error
    if response.status != 200:
        raise LinkLost(f"answered {response.status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise LinkLost("compressed, which nobody asked for")


class _Lines:
    """The lines of an answer as they come, none longer than a message may be."""

    def __init__(self, response: ClientResponse) -> None:
        self._content = response.content
        self._whole: deque[bytes] = deque()
        self._rest = b""

    async def next(self) -> bytes:
        """The next line, without its end. Raises LinkLost at the end of the stream."""
        while not self._whole:
            chunk = await self._content.readany()
            if not chunk:
                raise LinkLost("closed")
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._whole.extend(lines)
            if len(self._rest) > MOST_HELLO_BYTES:
                raise LinkLost("a line without end")
        return self._whole.popleft()


def _keep_alive(response: ClientResponse) -> None:
    connection = response.connection
    transport = connection.transport if connection is not None else None
    raw = transport.get_extra_info("socket") if transport is not None else None
    if raw is None:
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        raw.setsockopt(socket.IPPROTO_TCP, option, value)
