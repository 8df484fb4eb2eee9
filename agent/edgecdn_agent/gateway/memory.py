"""What hubs answered, for as long as it holds. No I/O.

A branch's answer is fresh for a minute, and what a commit holds never changes. Everything is kept for
the caller it was given to; the token is only known here by its hash.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from edgecdn_agent.gateway.hubs import HubAnswer

__all__ = ["FRESH_S", "Kept", "Memory"]

FRESH_S = 60.0
"""How long a branch's answer is believed without asking."""

_MOST_BYTES = 64 << 20

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer. `at`: when a hub last said so (seconds of the memory's clock)."""

    answer: HubAnswer
    at: float
    for_ever: bool


class Memory:
    """Answers, the longest unused ones forgotten first."""

    def __init__(self, most_bytes: int = _MOST_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_bytes = most_bytes
        self._clock = clock
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._bytes = 0

    def get(self, key: Key) -> Kept | None:
        """What is remembered."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, answer: HubAnswer, *, for_ever: bool) -> None:
        """Remember it from now."""
        self.forget(key)
        if answer.size > self._most_bytes // 4:  # one that would drive out all the others
            return
        self._kept[key] = Kept(answer, self._clock(), for_ever)
        self._bytes += answer.size
        while self._bytes > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.answer.size

    def forget(self, key: Key) -> None:
        """It holds no longer."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.answer.size

    def age_s(self, kept: Kept) -> float:
        """How long ago a hub said so."""
        return max(0.0, self._clock() - kept.at)

    def is_recent(self, kept: Kept) -> bool:
        """Whether a hub said so within the last minute."""
        return self.age_s(kept) < FRESH_S

    def is_fresh(self, kept: Kept) -> bool:
        """Whether it holds without asking."""
        return kept.for_ever or self.is_recent(kept)

    @property
    def bytes(self) -> int:
        """How much is kept."""
        return self._bytes
