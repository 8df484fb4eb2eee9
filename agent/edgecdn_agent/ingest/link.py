"""What a member of an ingest asks the others: to hear what they have, for a run to read, for a unit.

Every answer is bounded, checked by `wire`, and may be a lie. A member that is dead is told apart from one that
is silent: of the first its machine says that nobody listens there any more, of the second nobody says anything.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Protocol

from aiohttp import ClientConnectorError, ClientError, ClientPayloadError, ClientResponse, ClientSession, ClientTimeout
from yarl import URL

from edgecdn.digest import Digest
from edgecdn.errors import BadInput
from edgecdn.lan_wire import AGENT_HEADER, BASE_PATH, PROTOCOL, PROTOCOL_HEADER, Asker
from edgecdn.pace import Pace
from edgecdn.sources.answers import refuse_status
from edgecdn.sources.faults import Broken, Misbehaved, SourceFault
from edgecdn_agent.ingest.wire import (
    MOST_ASK_BYTES,
    MOST_LINE_BYTES,
    LeaseAnswer,
    LeaseAsk,
    LeaseBack,
    Told,
    encode_ask,
    encode_back,
    parse_answer,
    parse_told,
)
from edgecdn_agent.lan.guard import Bucket

__all__ = ["Ended", "IngestClient", "NotThere", "Place", "Silent", "StreamFault"]

_CONNECT_S = 2.0
"""A machine on the same network answers in milliseconds."""

_SILENT_S = 3.0
"""A member says something every second; one that says nothing for so long is counted on no more."""

_LINE_S = 30.0
"""For a line that has begun: the longest one over a LAN that hundreds share."""

_ANSWER_S = 3.0
_UNIT_SILENT_S = 5.0
"""No byte of a unit for so long: others have it too."""

_WAKE_BYTES = 96 << 10
"""Less than a member must send within the limit for silence to be worth its place."""

_UNIT_S = 60.0
_LEAST_RATE = 16 << 10
"""Bytes a second of a unit, in the mean beyond the first minute: less is worth nobody's place."""

_LINES_S, _BURST_LINES = 400.0, 8000.0
"""A member says 200 lines a second at most, and after a pause those of the pause: more is an attack."""

_TURN_LINES = 64
"""After so many the loop has its turn."""

_BYTES_S, _BURST_BYTES = float(1 << 20), float(4 * MOST_LINE_BYTES)
"""Of lines: 16 thousand units a second, after a first line as long as any."""


class Place(Protocol):
    """Where a member is reached; `Peer` is one."""

    @property
    def host(self) -> str: ...
    @property
    def lan_port(self) -> int: ...


class StreamFault(Exception):
    """A member is not heard, or not any more."""


class NotThere(StreamFault):
    """It takes no part in this blob (any more), or may not share it, or speaks another protocol."""


class Ended(StreamFault):
    """The stream is over, or could not be had.

    `refused`: nobody listens there, so the agent is dead. Else it is there: it said good-bye, or it cut us or is
    busy; to listen again tells which.
    """

    def __init__(self, reason: str, *, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


class Silent(StreamFault):
    """Nothing comes, and nobody says why: it hangs, or the network between us does."""


class IngestClient:
    """Asks members. The session is the caller's; `me` tells them who asks. `pace`: for the bytes of units."""

    def __init__(self, session: ClientSession, me: Asker, pace: Pace | None = None) -> None:
        self._session = session
        self._pace = pace or Pace()
        self._headers = {PROTOCOL_HEADER: str(PROTOCOL), "Accept-Encoding": "identity"}
        self.introduce(me)

    def introduce(self, me: Asker) -> None:
        """Say from now on who asks, and where it is itself reached."""
        self._headers[AGENT_HEADER] = str(me)

    async def stream(self, place: Place, digest: Digest) -> AsyncGenerator[Told, None]:
        """All that a member says of a blob, line by line; it has no end of its own. Close it (`aclosing`).

        Raises StreamFault, and BadInput for what cannot be meant, or is far too much.
        """
        response = await self._open(place, digest)
        try:
            hearing = _Hearing(response, place)
            while True:
                yield await hearing.next()
        finally:
            response.close()

    async def ask(self, place: Place, digest: Digest, ask: LeaseAsk) -> LeaseAnswer:
        """Ask a coordinator for a run. Raises SourceFault: Missing where it takes no part."""
        data = await self._post(place, digest, "lease", encode_ask(ask))
        try:
            return parse_answer(data)
        except BadInput as error:
            raise Misbehaved(f"answers nonsense ({error})") from error

    async def give_back(self, place: Place, digest: Digest, start: int, stop: int) -> None:
        """Tell a coordinator that a run will not be read by us. Raises SourceFault."""
        await self._post(place, digest, "lease/back", encode_back(LeaseBack(start, stop)))

    async def unit(self, place: Place, digest: Digest, index: int, length: int) -> bytes:
        """The bytes of a unit, `length` of them, unchecked. Raises SourceFault: Missing when it has it not."""
        url, limit_s = _url(place, digest, f"/units/{index}"), _UNIT_S + length / _LEAST_RATE
        timeout = ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_UNIT_SILENT_S)
        try:
            async with (
                asyncio.timeout(limit_s) as patience,
                self._session.get(url, headers=self._headers, allow_redirects=False, timeout=timeout) as response,
            ):
                _refuse(response)
                if response.content_length != length:
                    raise Misbehaved(f"gives {response.content_length} bytes for a unit of {length}")
                return await self._body(response, length, patience)
        except (ClientError, OSError) as error:
            raise _broken(error) from error

    async def _body(self, response: ClientResponse, length: int, patience: asyncio.Timeout) -> bytes:
        """Exactly `length` bytes; what our own pace takes of the time is given back."""
        pieces, left, clock = list[bytes](), length, asyncio.get_running_loop().time
        wake_at = _waker(response)
        wake_at(left)
        async for piece in response.content.iter_any():
            pieces.append(piece)
            left -= len(piece)
            wake_at(left)
            if self._pace.rate_bytes_s is not None:
                began_s = clock()
                await self._pace.take(len(piece))
                patience.reschedule((patience.when() or 0.0) + clock() - began_s)
        if left:
            raise Broken("ended its answer early")
        return b"".join(pieces)

    async def _post(self, place: Place, digest: Digest, path: str, body: bytes) -> bytes:
        """The body of a good answer."""
        url, timeout = _url(place, digest, f"/{path}"), ClientTimeout(total=_ANSWER_S, sock_connect=_CONNECT_S)
        try:
            async with self._session.post(
                url, data=body, headers=self._headers, allow_redirects=False, timeout=timeout
            ) as response:
                _refuse(response, good=(200, 204))
                received = bytearray()
                async for piece in response.content.iter_any():
                    received += piece
                    if len(received) > MOST_ASK_BYTES:
                        raise Misbehaved("answers more than was asked for")
                return bytes(received)
        except (ClientError, OSError) as error:
            raise _broken(error) from error

    async def _open(self, place: Place, digest: Digest) -> ClientResponse:
        """The answer that goes on as long as the member does."""
        timeout = ClientTimeout(total=None, sock_connect=_CONNECT_S)
        try:
            async with asyncio.timeout(_SILENT_S):
                response = await self._session.get(
                    _url(place, digest), headers=self._headers, allow_redirects=False, timeout=timeout
                )
        except TimeoutError as error:
            raise Silent("does not answer") from error
        except (ClientError, OSError, ValueError) as error:
            raise await _why(place, error) from error
        if response.status == 200 and response.headers.get("Content-Encoding", "identity") == "identity":
            return response
        response.close()
        if response.status in (404, 410, 403, 426):
            raise NotThere(f"takes no part (HTTP {response.status})")
        if response.status in (429, 503):
            raise Ended("is busy", refused=False)
        raise BadInput(f"it answered HTTP {response.status}")


class _Hearing:
    """The lines of one stream as they come."""

    def __init__(self, response: ClientResponse, place: Place) -> None:
        self._response = response
        self._place = place
        self._clock = asyncio.get_running_loop().time
        self._whole: deque[bytes] = deque()
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._heard = 0
        now_s = self._clock()
        self._line_s = now_s
        self._lines = Bucket(_LINES_S, _BURST_LINES, _BURST_LINES, now_s)
        self._bytes = Bucket(_BYTES_S, _BURST_BYTES, _BURST_BYTES, now_s)

    async def next(self) -> Told:
        """The next line. Raises StreamFault, BadInput."""
        while not self._whole:
            self._take(await self._chunk())
        line = self._whole.popleft()
        self._line_s = now_s = self._clock()
        if self._lines.take(1, now_s) or self._bytes.take(len(line), now_s):
            raise BadInput("it talks too much")
        self._heard += 1
        if self._heard % _TURN_LINES == 0:  # lines that have come already are no wait
            await asyncio.sleep(0)
        return parse_told(line)

    def _take(self, chunk: bytes) -> None:
        first, *others = chunk.split(b"\n")
        self._rest.append(first)
        self._rest_bytes += len(first)
        if others:
            self._whole.append(b"".join(self._rest))
            *whole, rest = others
            self._whole.extend(whole)
            self._rest, self._rest_bytes = [rest], len(rest)
        if self._rest_bytes > MOST_LINE_BYTES:
            raise BadInput("a line has no end")
        if not self._whole and self._clock() - self._line_s > _LINE_S:
            raise Silent(f"ended no line for {_LINE_S:.0f} s")

    async def _chunk(self) -> bytes:
        content = self._response.content
        try:
            try:
                async with asyncio.timeout(_SILENT_S):
                    chunk = await content.readany()
            except TimeoutError as error:
                chunk = content.read_nowait()  # where our own loop was held up, what came in time is heard late
                if not chunk:
                    raise Silent(f"said nothing for {_SILENT_S:.0f} s") from error
        except (ClientError, OSError) as error:
            raise await _why(self._place, error) from error
        if not chunk:
            raise Ended("ended its stream", refused=False)
        return chunk


async def _why(place: Place, error: Exception) -> StreamFault:
    """Why a connection could not be had, or broke off: its machine is asked whether anybody listens there."""
    reason = f"{type(error).__name__}: {error}"[:200]
    cause = error.os_error if isinstance(error, ClientConnectorError) else error
    if isinstance(cause, ConnectionRefusedError):
        return Ended(reason, refused=True)
    if isinstance(error, ClientConnectorError):
        return Silent(reason)
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(place.host, place.lan_port)
    except ConnectionRefusedError:
        return Ended(reason, refused=True)
    except (OSError, TimeoutError):
        return Silent(reason)
    writer.transport.abort()
    return Ended(reason, refused=False)


def _waker(response: ClientResponse) -> Callable[[int], None]:
    """Have the loop woken for large pieces only, of what is still to come: on a LAN that halves what a unit costs."""
    transport = None if response.connection is None else response.connection.transport
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sys.platform != "linux":  # elsewhere it may wake nobody at the end
        return lambda _left: None
    return lambda left: sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, max(1, min(left, _WAKE_BYTES)))


def _url(place: Place, digest: Digest, path: str = "") -> URL:
    host = f"[{place.host}]" if ":" in place.host else place.host
    return URL(f"http://{host}:{place.lan_port}{BASE_PATH}/ingest/{digest.hex}{path}", encoded=True)


def _refuse(response: ClientResponse, good: tuple[int, ...] = (200,)) -> None:
    """Raise what an answer that is not good stands for."""
    if response.status not in good:
        refuse_status(response.status, response.headers, datetime.now(tz=UTC))
        raise Misbehaved(f"answered HTTP {response.status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Misbehaved("compressed its answer, which nobody asked for")


def _broken(error: Exception) -> SourceFault:
    if isinstance(error, TimeoutError):
        return Broken("gave no byte in time")
    if isinstance(error, ClientPayloadError):
        return Broken("ended its answer early")
    return Broken(f"cannot be reached ({type(error).__name__})")
