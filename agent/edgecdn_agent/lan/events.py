"""The event streams of the LAN server: a hello, a beat, and a word whenever something changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web

from edgecdn.lan_wire import LanEvent, encode_event
from edgecdn_agent.lan.guard import Limits
from edgecdn_agent.lan.parts import LanParts

__all__ = ["EventStreams"]


class EventStreams:
    """Everybody who listens. A stream ends when its reader leaves or the server closes."""

    def __init__(self, parts: LanParts, limits: Limits) -> None:
        self._parts = parts
        self._limits = limits
        self._wakers: set[asyncio.Event] = set()
        self._unsubscribe: list[Callable[[], None]] = []
        self._closing = False

    def start(self) -> None:
        """Listen to what changes."""
        self._unsubscribe = [subscribe(self._changed) for subscribe in self._parts.changes]

    def close(self) -> None:
        """End all streams."""
        self._closing = True
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()
        self._changed()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One stream, until it ends."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        changed = asyncio.Event()
        self._wakers.add(changed)
        try:
            await response.prepare(request)
            with suppress(ConnectionError):
                await self._tell(response, changed)
        finally:
            self._wakers.discard(changed)
        return response

    async def _tell(self, response: web.StreamResponse, changed: asyncio.Event) -> None:
        peers = self._parts.told_peers()
        beat = 0
        loop = asyncio.get_running_loop()
        beat_at_s = loop.time() + self._limits.beat_s
        await self._write(response, LanEvent(hello=self._parts.hello()))
        while not self._closing:
            await _until(changed, beat_at_s - loop.time())
            if self._closing:
                return
            if changed.is_set():
                changed.clear()
                await self._write(response, LanEvent(changed=True))
                await asyncio.sleep(self._limits.change_s)  # so that many changes become one word
            if peers != (peers := self._parts.told_peers()):
                await self._write(response, LanEvent(peers=peers))
            if loop.time() >= beat_at_s:
                beat, beat_at_s = beat + 1, loop.time() + self._limits.beat_s
                await self._write(response, LanEvent(beat=beat))

    async def _write(self, response: web.StreamResponse, event: LanEvent) -> None:
        async with asyncio.timeout(self._limits.stall_s):
            await response.write(encode_event(event))

    def _changed(self) -> None:
        for waker in self._wakers:
            waker.set()


async def _until(changed: asyncio.Event, limit_s: float) -> None:
    """Wait for a change, `limit_s` at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, limit_s)):
            await changed.wait()
