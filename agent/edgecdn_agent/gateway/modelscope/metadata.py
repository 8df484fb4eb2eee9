"""What ModelScope says of its repos: asked as a stranger first, remembered a minute, and kept for when it is silent.

What a stranger is told, everybody may be told, and stays true for a while when nobody answers. What
only a caller's own session or token opens is asked with it, for that caller alone, and is told to
nobody when ModelScope is silent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from edgecdn_agent.gateway.errors import NoAnswer
from edgecdn_agent.gateway.hubs import HubAnswer
from edgecdn_agent.gateway.memory import FRESH_S, Memory
from edgecdn_agent.gateway.modelscope.callers import STRANGER, Caller
from edgecdn_agent.gateway.modelscope.paths import canonical
from edgecdn_agent.gateway.modelscope.public_answers import PublicAnswers
from edgecdn_agent.gateway.modelscope.upstream import Answer, Upstream

__all__ = ["Metadata", "Said"]

_JSON = "application/json"
_REFUSED = frozenset({401, 403, 404})
_MOST_SCOPES = 4096


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, whether strangers get it too, and whether it is one of before (ModelScope is silent)."""

    answer: Answer
    public: bool
    stale: bool = False


class Metadata:
    """Answers about repos; `scope` is the repo as it was named (`models/owner/name`)."""

    def __init__(self, upstream: Upstream, kept: PublicAnswers, clock: Callable[[], float] = time.monotonic) -> None:
        self._upstream = upstream
        self._kept = kept
        self._clock = clock
        self._memory = Memory(clock=clock)
        self._hidden: dict[str, float] = {}
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def ask(
        self, scope: str, target: str, caller: Caller, *, for_ever: bool = False, good_s: float = FRESH_S
    ) -> Said:
        """What it says, found or refused. `for_ever`: it names a commit; `good_s`: how old an answer may be.

        Raises NoAnswer.
        """
        question = canonical(target)
        known = self._known(question, caller, good_s)
        if known is not None:
            return known
        lock = self._asking.setdefault(f"{caller.key} {question}", asyncio.Lock())
        async with lock:
            return self._known(question, caller, good_s) or await self._ask(scope, target, question, caller, for_ever)

    def is_hidden(self, scope: str) -> bool:
        """Whether strangers were refused a moment ago."""
        return self._clock() < self._hidden.get(scope, 0.0)

    async def _ask(self, scope: str, target: str, question: str, caller: Caller, for_ever: bool) -> Said:
        try:
            if caller is STRANGER or not self.is_hidden(scope):
                answer = await self._upstream.ask(target, STRANGER)
                if answer.found or caller is STRANGER or answer.status not in (200, *_REFUSED):
                    await self._note(scope, question, answer, for_ever)
                    return Said(answer, public=True)
                self._hide(scope)
            answer = await self._upstream.ask(target, caller)
        except NoAnswer as error:
            return await self._last(question, error)
        if answer.found:
            self._memory.put((caller.key, question), _kept(answer), for_ever=for_ever)
        return Said(answer, public=False)

    def _known(self, question: str, caller: Caller, good_s: float) -> Said | None:
        for key in dict.fromkeys(("", caller.key)):
            kept = self._memory.get((key, question))
            if kept is not None and (kept.for_ever or self._memory.age_s(kept) < good_s):
                return Said(_answer(kept.answer.body), public=not key)
        return None

    async def _last(self, question: str, error: NoAnswer) -> Said:
        """What strangers were told last; raises `error` when that is nothing."""
        kept = self._memory.get(("", question))
        body = kept.answer.body if kept is not None else await asyncio.to_thread(self._kept.get, question)
        if body is None:
            raise error
        return Said(_answer(body), public=True, stale=True)

    async def _note(self, scope: str, question: str, answer: Answer, for_ever: bool) -> None:
        """A stranger's answer: kept, or, if it is a refusal, what was kept is not true any more."""
        if answer.found:
            self._hidden.pop(scope, None)
            self._memory.put(("", question), _kept(answer), for_ever=for_ever)
            await asyncio.to_thread(self._kept.put, question, answer.body)
        elif answer.status in (200, *_REFUSED):
            await self._forget(question)

    async def _forget(self, question: str) -> None:
        self._memory.forget(("", question))
        await asyncio.to_thread(self._kept.forget, question)

    def _hide(self, scope: str) -> None:
        if len(self._hidden) >= _MOST_SCOPES:
            self._hidden.clear()
        self._hidden[scope] = self._clock() + FRESH_S


def _kept(answer: Answer) -> HubAnswer:
    return HubAnswer("", answer.status, {"Content-Type": answer.content_type}, answer.body)


def _answer(body: bytes) -> Answer:
    return Answer(200, body, _JSON, found=True)
