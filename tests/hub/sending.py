"""Writing bodies: sendfile where nothing interferes, and counting what really left."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from dataclasses import dataclass
from typing import BinaryIO

from aiohttp import web

from tests.hub.content import OnDisk
from tests.hub.faults import Active, Fault, Kind
from tests.hub.pacing import Pacer
from tests.hub.shaping import Shape, read_piece
from tests.hub.stats import Seen, Stats

SENDFILE_SLICE_BYTES = 4 << 20  # bounds how stale the counters can be
MEMORY_SLICE_BYTES = 64 << 10  # bounds what a broken connection can leave uncounted
DELIVERY_LIMIT_S = 1.0  # before a reset, for the kernel to hand over what was sent
POLL_S = 0.02  # how often a stalled answer looks whether its client left
LINGER_RESET = struct.pack("ii", 1, 0)  # SO_LINGER that turns close into RST
CUTS = (Kind.STALL, Kind.RESET, Kind.CLOSE_EARLY)


@dataclass
class Sending:
    """One body on its way."""

    request: web.BaseRequest
    shaped: Shape
    active: Active
    pacers: tuple[Pacer, ...]
    released: asyncio.Event  # set when faults are cleared: what is held up goes on
    stats: Stats
    seen: Seen

    async def run(self) -> web.StreamResponse:
        """Send headers and body; a client that leaves is no error."""
        response = web.StreamResponse(status=self.shaped.status, headers=self.shaped.headers)
        response.content_type = self.shaped.content_type
        response.content_length = self.shaped.length
        if self.request.method == "HEAD":
            return response
        if self.shaped.length is None:
            response.enable_chunked_encoding()
        self.stats.body_opened()
        try:
            await response.prepare(self.request)
            await self._send_body(response)
            await response.write_eof()
        except (ConnectionError, _Gone):
            response.force_close()
        finally:
            self.stats.body_closed()
        return response

    async def _send_body(self, response: web.StreamResponse) -> None:
        span = self.shaped.span
        cut = next((self.active[kind] for kind in CUTS if kind in self.active), None)
        if cut is None:
            return await self._send_span(response, span.start, span.end)
        middle = self._cut_at(cut)
        await self._send_span(response, span.start, middle)
        if cut.kind is Kind.STALL:
            if middle < span.end:
                await self._stall()
            return await self._send_span(response, middle, span.end)
        if cut.kind is Kind.RESET:
            await self._reset()
        elif (transport := self.request.transport) is not None:
            transport.close()
        raise _Gone

    def _cut_at(self, cut: Fault) -> int:
        span = self.shaped.span
        wanted = span.start + cut.after_bytes if cut.offset is None else cut.offset
        return max(span.start, min(span.end, wanted))

    async def _send_span(self, response: web.StreamResponse, start: int, end: int) -> None:
        body = self.shaped.body
        plain = not self.shaped.flip and self.shaped.length is not None
        if isinstance(body, OnDisk) and plain and end <= body.size:
            with body.path.open("rb", buffering=0) as file:
                await self._send_slices(response, start, end, file)
        else:
            await self._send_slices(response, start, end, None)

    async def _send_slices(self, response: web.StreamResponse, start: int, end: int, file: BinaryIO | None) -> None:
        largest = MEMORY_SLICE_BYTES if file is None else SENDFILE_SLICE_BYTES
        step = min([largest, *(pacer.slice_bytes for pacer in self.pacers)])
        while start < end:
            stop = min(end, start + step)
            for pacer in self.pacers:
                await pacer.take(stop - start, self.released)
            if file is None:
                await self._write(response, read_piece(self.shaped, start, stop))
            else:
                await self._sendfile(file, start, stop)
            start = stop

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        if self.request.transport is None:
            raise _Gone
        self.request.transport.set_write_buffer_limits(high=0)
        await response.write(data)
        await self.request.writer.drain()
        self.stats.count(self.seen, len(data))

    async def _sendfile(self, file: BinaryIO, start: int, stop: int) -> None:
        transport = self.request.transport
        if transport is None or transport.is_closing():
            raise _Gone
        file.seek(start)
        try:
            await asyncio.get_running_loop().sendfile(transport, file, start, stop - start)
        finally:  # the loop leaves the file position behind the last byte sent
            self.stats.count(self.seen, file.tell() - start)

    async def _stall(self) -> None:
        while not self.released.is_set():
            transport = self.request.transport
            if transport is None or transport.is_closing():
                raise _Gone
            try:
                async with asyncio.timeout(POLL_S):
                    await self.released.wait()
            except TimeoutError:
                continue

    async def _reset(self) -> None:
        transport = self.request.transport
        if transport is None:
            raise _Gone
        connection: socket.socket = transport.get_extra_info("socket")
        loop = asyncio.get_running_loop()
        limit = loop.time() + DELIVERY_LIMIT_S
        while _undelivered(connection) and loop.time() < limit:
            await asyncio.sleep(POLL_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        transport.abort()


class _Gone(Exception):
    """The connection has ended, by the client or by a fault."""


def _undelivered(connection: socket.socket) -> int:
    answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    waiting: int = struct.unpack("i", answer)[0]
    return waiting
