"""The event streams of the LAN server: a hello, a beat, and a word whenever something changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import web

from edgecdn.lan_wire import LanEvent, encode_event
from edgecdn_agent.lan.guard import Limits
from edgecdn_agent.lan.parts import LanParts

__all__ = ["EventStreams"]


@dataclass(slots=True, eq=False)
class _Reader:
    """One who listens: woken when there is something to say, and whether it is that holdings changed."""

    woken: asyncio.Event = field(default_factory=asyncio.Event)
    is_changed: bool = False

    def take_changed(self) -> bool:
        """Whether holdings changed since this was asked last."""
        was, self.is_changed = self.is_changed, False
        return was


class EventStreams:
    """Everybody who listens. A stream ends when its reader leaves or the server closes."""

    def __init__(self, parts: LanParts, limits: Limits) -> None:
        self._parts = parts
        self._limits = limits
        self._readers: set[_Reader] = set()
        self._unsubscribe: list[Callable[[], None]] = []
        self._closing = False

    def start(self) -> None:
        """Listen to what changes."""
        self._closing = False
        self._unsubscribe = [subscribe(self._changed) for subscribe in self._parts.changes]
        self._unsubscribe += [subscribe(self._wake) for subscribe in self._parts.peer_changes]

    def close(self) -> None:
        """End all streams."""
        self._closing = True
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()
        self._wake()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One stream, until it ends."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        reader = _Reader()
        self._readers.add(reader)
        try:
            await response.prepare(request)
            with suppress(ConnectionError):
                await self._tell(response, reader)
        finally:
            self._readers.discard(reader)
        return response

    async def _tell(self, response: web.StreamResponse, reader: _Reader) -> None:
        beat = 0
        loop = asyncio.get_running_loop()
        beat_at_s = loop.time() + self._limits.beat_s
        peers = self._parts.told_peers()
        await self._write(response, LanEvent(hello=self._parts.hello()))
        while not self._closing:
            await _until(reader.woken, beat_at_s - loop.time())
            if self._closing:
                return
            was_woken = reader.woken.is_set()
            reader.woken.clear()
            if reader.take_changed():
                await self._write(response, LanEvent(changed=True))
            if peers != (peers := self._parts.told_peers()):
                await self._write(response, LanEvent(peers=peers))
            if was_woken:
                await asyncio.sleep(self._limits.change_s)  # so that many changes become one word
            if loop.time() >= beat_at_s:
                beat, beat_at_s = beat + 1, loop.time() + self._limits.beat_s
                await self._write(response, LanEvent(beat=beat))

    async def _write(self, response: web.StreamResponse, event: LanEvent) -> None:
        async with asyncio.timeout(self._limits.stall_s):
            await response.write(encode_event(event))

    def _changed(self) -> None:
        for reader in self._readers:
            reader.is_changed = True
        self._wake()

    def _wake(self) -> None:
        for reader in self._readers:
            reader.woken.set()


async def _until(woken: asyncio.Event, limit_s: float) -> None:
    """Wait for something to say, `limit_s` at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, limit_s)):
            await woken.wait()
