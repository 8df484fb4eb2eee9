"""Simulated time and links: queues that pieces of a transfer pass one after the other."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Clock:
    """Simulated time: what is to happen, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._made = 0

    def after(self, seconds: float, act: Callable[..., None], *args: object) -> None:
        self._made += 1
        heapq.heappush(self._events, (self.now + seconds, self._made, act, args))

    def run(self, is_over: Callable[[], bool], limit_s: float) -> None:
        """Let things happen until it is over or time is."""
        while self._events and not is_over():
            when, _, act, args = heapq.heappop(self._events)
            if when > limit_s:
                return
            self.now = when
            act(*args)


@dataclass(slots=True)
class Link:
    """A queue of `rate` bytes/s."""

    rate: float
    free_s: float = 0.0
    passed: float = 0.0


@dataclass(slots=True, eq=False)
class Flow:
    """Bytes on their way over some links, piece by piece; `came` is called with each piece that arrived."""

    clock: Clock
    path: tuple[Link, ...]
    piece: float
    pieces: int
    came: Callable[[Flow], None]
    arrived: int = 0
    began_s: float = 0.0
    moved_s: float = 0.0
    stalled_until_s: float = 0.0
    is_cut: bool = False
    _sent: int = 0

    def start(self) -> None:
        self.began_s = self.moved_s = self.clock.now
        for _ in range(min(len(self.path) + 1, self.pieces)):
            self._sent += 1
            self._hop(0)

    def _hop(self, at: int) -> None:
        if self.is_cut:
            return
        now = self.clock.now
        self.moved_s = now if at else self.moved_s
        if at == 0 and self.stalled_until_s > now:
            if self.stalled_until_s < 1e9:
                self.clock.after(self.stalled_until_s - now, self._hop, 0)
            return
        if at == len(self.path):
            self.arrived += 1
            if self._sent < self.pieces:
                self._sent += 1
                self._hop(0)
            self.came(self)
            return
        link = self.path[at]
        link.free_s = max(now, link.free_s) + self.piece / link.rate
        link.passed += self.piece
        self.clock.after(link.free_s - now, self._hop, at + 1)
