"""What was asked a moment ago, for jobs that share connections: a listing is not asked for again for each file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edgecdn.sources.faults import Denied, Missing, SourceFault

__all__ = ["Kept"]

_KEPT_S = 60.0
_FAULT_KEPT_S = 2.0
"""What went wrong may go right soon; but those who asked at the same time do not each try it."""

_MOST = 32

_T = TypeVar("_T")


@dataclass(slots=True)
class _Answer:
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    until: float = 0.0
    value: Any = None
    fault: SourceFault | None = None


class Kept:
    """Answers by question, good for a minute; a refusal is one too. On one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: dict[Hashable, _Answer] = {}

    async def ask(self, question: Hashable, ask: Callable[[], Awaitable[_T]]) -> _T:
        """The answer to `question`; those who ask at the same time wait for the one who does."""
        answer = self._answers.setdefault(question, _Answer())
        async with answer.asking:  # who asks and is cancelled leaves it to the next
            if answer.until < self._clock():
                kept_s = _KEPT_S
                try:
                    answer.value, answer.fault = await ask(), None
                except SourceFault as fault:
                    answer.value, answer.fault = None, fault
                    kept_s = _KEPT_S if isinstance(fault, Missing | Denied) else _FAULT_KEPT_S
                answer.until = self._clock() + kept_s
        while len(self._answers) > _MOST:
            del self._answers[next(iter(self._answers))]
        if answer.fault is not None:
            raise answer.fault.with_traceback(None)
        value: _T = answer.value
        return value
