"""Sending a part of an open file to a peer: by the kernel, and from a thread.

So neither a cold disk nor a slow reader ever holds up the event loop: asyncio's own sendfile reads the
disk on the loop's thread, and a hung mount would hang the agent. Here the loop waits until the socket
takes bytes, and one of a few threads fills it once, on its own copies of both descriptors.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import threading
from collections.abc import Callable

from aiohttp.abc import AbstractStreamWriter

from edgecdn.errors import BadInput
from edgecdn.pace import Pace
from edgecdn.spans import Span
from edgecdn_agent.lan.workers import Workers

__all__ = ["BlobSender", "ReadFailed", "parse_range"]

_AT_ONCE_BYTES = 8 << 20
"""Most that one run of a thread sends, when the reader is as fast as that: then the next one has its turn."""

_THREADS = 4
_DISK_S = 20.0
"""A run that takes longer is on a disk that hangs."""

_LEAST_MOVED_BYTES = 64 << 10
"""What must go out within the limit for a stall, unless the end comes first: 3 kB/s. Less is no reader."""

_SHORTER = "the file is shorter than it was"
_RANGE = re.compile(r"bytes=(?P<first>\d{0,19})-(?P<last>\d{0,19})\Z", re.ASCII)
_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""What file systems without it say."""


class ReadFailed(OSError):
    """The file could not be read to its end: bad sectors, or shorter than it was."""


def parse_range(header: str | None, size: int) -> Span | None:
    """What a Range header asks of a file of `size` bytes; None: all of it.

    Raises BadInput for what cannot be given: several ranges, none, backwards, beyond the end. A unit
    other than bytes is ignored, as RFC 9110 wants it.
    """
    if header is None or not header.startswith("bytes="):
        return None
    match = _RANGE.match(header.replace(" ", ""))
    if match is None or not (match["first"] or match["last"]):
        raise BadInput("it is not one range of bytes")
    if not match["first"]:
        span = Span(max(0, size - int(match["last"])), size)
    else:
        span = Span(int(match["first"]), min(size, int(match["last"]) + 1) if match["last"] else size)
    if not 0 <= span.start < span.stop:
        raise BadInput("there are no such bytes")
    return span


class BlobSender:
    """All that is sent at a time, at one pace. A reader that takes nothing for `stall_s` is given up."""

    def __init__(self, pace: Pace, stall_s: float) -> None:
        self._pace = pace
        self._stall_s = stall_s
        self._threads = Workers(_THREADS, "edgecdn-send")

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    async def send(
        self,
        writer: AbstractStreamWriter,
        transport: asyncio.Transport,
        fd: int,
        span: Span,
        sent: Callable[[int], None],
    ) -> None:
        """Send `span` of the open file `fd` as the body of a response; `writer` is what its `prepare` returned.

        Raises ReadFailed, TimeoutError when the reader (or the disk) moves nothing, and ConnectionError.
        After any of them the connection must be cut.
        """
        await _flush_headers(writer, transport, self._stall_s)
        own = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        try:
            await self._send(own, fd, span, sent)
        finally:
            own.close()

    async def _send(self, sock: socket.socket, fd: int, span: Span, sent: Callable[[int], None]) -> None:
        """Slice by slice. Of what is waited for, only the reader's part counts against it, not pace and threads."""
        at, moved, waited_s = span.start, 0, 0.0
        while at < span.stop:
            stop = span.stop
            if self._pace.rate_bytes_s is not None:
                stop = min(span.stop, at + self._pace.slice_bytes)
                await self._pace.take(stop - at)
            slice_start = at
            while at < stop and (at == slice_start or self._pace.rate_bytes_s is not None):
                waited_s += await _writable(sock, self._stall_s - waited_s)
                count = await self._push(sock, fd, Span(at, stop), sent)
                at, moved = at + count, moved + count
                if moved >= _LEAST_MOVED_BYTES or at == stop:
                    moved, waited_s = 0, 0.0

    async def _push(self, sock: socket.socket, fd: int, span: Span, sent: Callable[[int], None]) -> int:
        """How much of `span` the socket took."""
        push = _Push(sock.fileno(), fd, span)
        try:
            await self._threads.run(push.run, _DISK_S)
        finally:
            push.abandon()
            sent(push.sent)
        return push.sent


async def _flush_headers(writer: AbstractStreamWriter, transport: asyncio.Transport, limit_s: float) -> None:
    """Wait until nothing of ours is left in the transport: what follows goes past it."""
    transport.set_write_buffer_limits(high=0)
    try:
        async with asyncio.timeout(limit_s):
            while transport.get_write_buffer_size():
                await writer.drain()
    finally:
        transport.set_write_buffer_limits()


async def _writable(sock: socket.socket, limit_s: float) -> float:
    """Wait until a socket takes bytes, or will tell why not; how long that was. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    began_s = loop.time()
    loop.add_writer(sock, ready.set)
    try:
        async with asyncio.timeout(limit_s):
            await ready.wait()
    except TimeoutError as error:
        raise TimeoutError("the reader takes nothing") from error
    finally:
        loop.remove_writer(sock)
    return loop.time() - began_s


class _Push:
    """One run of a thread. It has its own copies of the descriptors: who waits for it may give up and close theirs."""

    def __init__(self, sock_fd: int, fd: int, span: Span) -> None:
        self._socket = socket.socket(fileno=os.dup(sock_fd))
        self._fd = os.dup(fd)
        self._span = Span(span.start, min(span.stop, span.start + _AT_ONCE_BYTES))
        self._lock = threading.Lock()
        self._is_whose = "nobody"
        self.sent = 0

    def run(self) -> None:
        """Send until the end, or until the socket is full; `sent` tells how much."""
        if not self._take("thread"):
            return
        try:
            while self.sent < len(self._span):
                count = self._send(self._span.start + self.sent)
                if not count:
                    return
                self.sent += count
        finally:
            self._close()

    def _send(self, at: int) -> int:
        count = self._span.stop - at
        try:
            sent = os.sendfile(self._socket.fileno(), self._fd, at, count)
        except BlockingIOError:
            return 0
        except ConnectionError:
            raise
        except OSError as error:
            if error.errno not in _NO_SENDFILE:
                raise _told_apart(error) from error
            return self._copy(at, count)
        if not sent:
            raise ReadFailed(errno.EIO, _SHORTER)
        return sent

    def _copy(self, at: int, count: int) -> int:
        try:
            data = os.pread(self._fd, min(count, _LEAST_MOVED_BYTES), at)
        except OSError as error:
            raise ReadFailed(error.errno, error.strerror) from error
        if not data:
            raise ReadFailed(errno.EIO, _SHORTER)
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def abandon(self) -> None:
        """Nobody waits for it any more: a thread that has begun ends by itself, another will not begin."""
        if self._take("waiter"):
            self._close()

    def _take(self, who: str) -> bool:
        """The copies belong to the first who takes them, and that one closes them."""
        with self._lock:
            if self._is_whose == "nobody":
                self._is_whose = who
            return self._is_whose == who

    def _close(self) -> None:
        self._socket.close()
        os.close(self._fd)


def _told_apart(error: OSError) -> OSError:
    """A failure of the network stays one; any other is the file's."""
    if error.errno in (errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN):
        return ConnectionResetError(error.errno, error.strerror)
    return ReadFailed(error.errno, error.strerror)
