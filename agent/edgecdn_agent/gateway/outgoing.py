"""An answer under way: its head, then bytes of the file in order, from open files or from memory."""

from __future__ import annotations

import asyncio

from aiohttp import web

from edgecdn.spans import Span
from edgecdn_agent.lan.sender import BlobSender

__all__ = ["Outgoing"]

_CHUNK_BYTES = 256 << 10


class Outgoing:
    """Gives bytes `span` of a file; `at` is where it is. The head goes out before the first of them.

    Every method raises ConnectionError when the reader is gone, and TimeoutError when it takes nothing for
    `stall_s`; the connection must be cut then.
    """

    def __init__(
        self, request: web.Request, head: web.StreamResponse, span: Span, sender: BlobSender, stall_s: float
    ) -> None:
        self.head = head
        self.at = self.start = span.start
        self.stop = span.stop
        self._request = request
        self._sender = sender
        self._stall_s = stall_s

    @property
    def has_begun(self) -> bool:
        """Whether the head is out: it is too late for an error."""
        return self.head.prepared

    @property
    def is_done(self) -> bool:
        """Whether all is out."""
        return self.at == self.stop

    async def begin(self) -> None:
        """Send the head, once."""
        if not self.has_begun:
            await self.head.prepare(self._request)

    async def send(self, fd: int, stop: int) -> None:
        """Send up to `stop` from an open file. Raises ReadFailed too."""
        await self.begin()
        writer, transport = await self.head.prepare(self._request), self._request.transport
        if writer is None or transport is None:
            raise ConnectionResetError("the reader is gone")
        await self._sender.send(writer, transport, fd, Span(self.at, stop), self._moved)

    async def write(self, data: bytes) -> None:
        """Send what is in memory; not more than is left."""
        await self.begin()
        left = memoryview(data)[: self.stop - self.at]
        while left:
            chunk, left = left[:_CHUNK_BYTES], left[_CHUNK_BYTES:]
            async with asyncio.timeout(self._stall_s):
                await self.head.write(chunk)
            self._moved(len(chunk))

    def _moved(self, count: int) -> None:
        self.at += count
