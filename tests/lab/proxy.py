"""A TCP proxy that spoils what goes through it: wrong bytes, cuts, resets, silence.

It runs in the event loop of the test; only its sockets are in the namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, replace
from typing import Self

from tests.lab.namespaces import Namespace

__all__ = ["Proxy", "Spoil"]

_CHUNK = 64 * 1024
_LINGER_ZERO = struct.pack("ii", 1, 0)
_CLOSE_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Spoil:
    """What happens to the bytes from the target, counted over each connection."""

    corrupt_at: int | None = None
    """This byte is turned over."""
    corrupt_every: int | None = None
    """As is one in so many."""
    cut_after: int | None = None
    """The connection ends politely after so many bytes."""
    reset_every: int | None = None
    """The connection is reset after so many bytes; one that comes again gets as many more."""
    silent_after: int | None = None
    """Nothing more comes after so many bytes, and nobody hangs up; 0: never a byte."""


class Proxy:
    """Listens in a namespace and connects from there."""

    def __init__(self, space: Namespace, target: tuple[str, int]) -> None:
        self._space, self.target = space, target
        self.spoil = Spoil()
        self.connections = 0
        self.sent = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(cls, space: Namespace, listen: tuple[str, int], target: tuple[str, int]) -> Self:
        """Listen."""
        proxy = cls(space, target)
        listener = space.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(listen)
        proxy._server = await asyncio.start_server(proxy._accepted, sock=listener)
        return proxy

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def set(self, **change: int | None) -> None:
        """Spoil from now on; connections that run are meant too."""
        self.spoil = replace(Spoil(), **change)

    async def close(self) -> None:
        """End every connection."""
        if self._server is None:
            return
        self._server.close()
        for task in self._tasks:
            task.cancel()
        async with asyncio.timeout(_CLOSE_LIMIT_S):
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # a proxy has nobody to tell; the streams' own callback would log a cancelled handler
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        outward = self._space.socket()
        outward.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(outward, self.target)
        except BaseException:
            outward.close()
            raise
        from_target, to_target = await asyncio.open_connection(sock=outward)
        try:
            # The first direction to end ends both, as a cut does; half-open connections are not spoken here.
            async with asyncio.TaskGroup() as group:
                onward = group.create_task(_copy(reader, to_target))
                await self._return(from_target, writer)
                onward.cancel()
        except* OSError:
            _reset(writer)
        finally:
            to_target.transport.abort()

    async def _return(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        position = 0
        while data := await reader.read(_CHUNK):
            spoil = self.spoil
            ends = [end for end in (spoil.cut_after, spoil.reset_every, spoil.silent_after) if end is not None]
            passed = data[: max(0, min(ends, default=position + len(data)) - position)]
            writer.write(_corrupted(passed, position, spoil))
            position += len(passed)
            self.sent += len(passed)
            await writer.drain()
            if len(passed) == len(data):
                continue
            if spoil.silent_after is not None and position >= spoil.silent_after:
                await asyncio.Event().wait()  # ended by close()
            if spoil.reset_every is not None and position >= spoil.reset_every:
                _reset(writer)
            break
        with contextlib.suppress(OSError):
            writer.write_eof()
            await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def _corrupted(data: bytes, position: int, spoil: Spoil) -> bytes:
    places = []
    if spoil.corrupt_at is not None:
        places = [spoil.corrupt_at - position]
    if spoil.corrupt_every is not None:
        first = -position % spoil.corrupt_every
        places += range(first, len(data), spoil.corrupt_every)
    spoiled = bytearray(data)
    for place in places:
        if 0 <= place < len(data):
            spoiled[place] ^= 0xFF
    return bytes(spoiled)


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    writer.transport.abort()
