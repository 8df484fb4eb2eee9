"""Addresses where an agent may be: a bounded table of hints, and when each is tried again. Pure but for `Event`.

Hints come from strangers (mDNS, other agents' lists, whoever asks us for something), so what one
teller may fill is bounded, and an address that never answered makes room for a new one.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["MOST_CANDIDATES", "MOST_UNPROVEN_EACH", "Candidate", "Candidates", "Timing"]

MOST_CANDIDATES = 512
"""Addresses in all: a lab of 200 machines with two addresses each fits."""

MOST_UNPROVEN_EACH = 128
"""Addresses one teller may have in the table before they answered, so that none fills it alone."""

_EVICTION_S = 0.05
"""A flood of hints changes the table at most so often; each change costs a connection."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may take, seconds."""

    dial_s: float = 5.0
    """Connecting, and the peer's first line."""
    silence_s: float = 12.0
    """Peers speak every 5 s; two missed and some, and the peer is gone (at most 15 s after it was killed)."""
    first_retry_s: float = 1.0
    longest_retry_s: float = 60.0
    hint_lifetime_s: float = 600.0
    """A hint that leads to nobody for so long is forgotten, until it is heard again."""
    nudge_s: float = 2.0
    """A hint heard again ends the pause before the next try, but there is never less between two tries."""
    refused_s: float = 600.0
    """An agent of another protocol is asked again after this: it may have been updated."""
    ban_s: float = 3600.0


@dataclass(slots=True, eq=False)
class Candidate:
    """One address. `is_named`: by the user, so never forgotten; `by`: who told of it first.

    `again_s`: there is news of it, so it is tried no later than then; `wake` is set when that changes.
    """

    host: str
    port: int
    is_named: bool
    by: str
    heard_s: float
    failures: int = 0
    tried_s: float = float("-inf")
    not_before_s: float = float("-inf")
    again_s: float = float("inf")
    has_answered: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def failed(self, timing: Timing) -> float:
        """Count a failure; returns the pause before the next try, spread so that a lab does not act in step."""
        self.failures += 1
        pause_s = min(timing.longest_retry_s, timing.first_retry_s * 2.0 ** min(self.failures - 1, 16))
        return pause_s * random.uniform(0.8, 1.0)


class Candidates:
    """All addresses in use, at most MOST_CANDIDATES (what the user named comes on top)."""

    def __init__(self, timing: Timing, clock: Callable[[], float]) -> None:
        self._timing = timing
        self._clock = clock
        self._known: dict[tuple[str, int], Candidate] = {}
        self._unproven: Counter[str] = Counter()
        self._evicted_s = float("-inf")

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(list(self._known.values()))

    def hear(self, host: str, port: int, by: str) -> Candidate | None:
        """A hint. Returns a candidate when it is a new one and there is room; one that is known is tried soon."""
        now_s = self._clock()
        known = self._known.get((host, port))
        if known is not None:
            known.heard_s = now_s
            soon_s = max(now_s, known.not_before_s, known.tried_s + self._timing.nudge_s)
            known.again_s = min(known.again_s, soon_s)
            known.wake.set()
            return None
        if not self._has_room(by):
            return None
        return self._add(Candidate(host, port, is_named=False, by=by, heard_s=now_s))

    def answered(self, candidate: Candidate) -> None:
        """An agent is (or was until now) there: its life begins anew."""
        candidate.heard_s = self._clock()
        if not candidate.has_answered:
            candidate.has_answered = True
            self._unproven[candidate.by] -= 1

    def name(self, host: str, port: int) -> Candidate:
        """An address the user gave."""
        return self._add(Candidate(host, port, is_named=True, by="", heard_s=self._clock()))

    def is_worth(self, candidate: Candidate) -> bool:
        """Whether it is still to be tried."""
        if self._known.get((candidate.host, candidate.port)) is not candidate:
            return False
        return candidate.is_named or self._clock() - candidate.heard_s < self._timing.hint_lifetime_s

    def forget(self, candidate: Candidate) -> None:
        """Give its place to others."""
        if self._known.get((candidate.host, candidate.port)) is candidate:
            del self._known[candidate.host, candidate.port]
            self._unproven[candidate.by] -= not candidate.has_answered
            self._unproven += Counter()  # drops tellers that have none
            candidate.again_s = self._clock()
            candidate.wake.set()

    def _add(self, candidate: Candidate) -> Candidate:
        self._known[candidate.host, candidate.port] = candidate
        self._unproven[candidate.by] += 1
        return candidate

    def _has_room(self, by: str) -> bool:
        """Whether another hint of `by` fits; the oldest that never led to anybody gives way."""
        is_greedy = self._unproven[by] >= MOST_UNPROVEN_EACH
        if not is_greedy and len(self._known) < MOST_CANDIDATES:
            return True
        now_s = self._clock()
        if now_s < self._evicted_s + _EVICTION_S:
            return False
        hopeless = [c for c in self if c.failures and not c.has_answered and not c.is_named]
        if is_greedy:
            hopeless = [c for c in hopeless if c.by == by]
        if not hopeless:
            return False
        self._evicted_s = now_s
        self.forget(min(hopeless, key=lambda c: c.heard_s))
        return True
