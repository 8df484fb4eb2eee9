"""A question of a caller to the hubs: from memory while that holds, else asked, else the last known answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from edgecdn.token_owner import token_key
from edgecdn_agent.gateway.errors import HubRefusal, NoAnswer
from edgecdn_agent.gateway.hubs import HubAnswer, Hubs, Question
from edgecdn_agent.gateway.memory import Kept, Memory
from edgecdn_agent.gateway.paths import same_question
from edgecdn_agent.gateway.single import SingleFlight

__all__ = ["Metadata", "Reply", "refusal_of"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SHOWN = ("x-repo-commit", "retry-after", "www-authenticate", "x-request-id")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `stale_s`: how old it is, where no hub could be asked again (None: it holds)."""

    answer: HubAnswer
    stale_s: float | None = None


class Metadata:
    """Asks for all callers; what one was told is never given to another."""

    def __init__(self, hubs: Hubs, memory: Memory, single: SingleFlight) -> None:
        self.hubs = hubs
        self._memory = memory
        self._single = single

    def kept(self, question: Question, token: str | None) -> Kept | None:
        """What is remembered, fresh or not."""
        return self._memory.get(_key(question, token))

    def is_recent(self, kept: Kept) -> bool:
        """Whether a hub told this very caller within the last minute."""
        return self._memory.is_recent(kept)

    def forget(self, question: Question, token: str | None) -> None:
        """What this caller was told holds no longer."""
        self._memory.forget(_key(question, token))

    async def ask(self, question: Question, token: str | None, *, for_ever: bool = False, hurry: bool = False) -> Reply:
        """What memory or a hub says. `for_ever`: it is about a commit. `hurry`: there is another way to know.

        Raises NoAnswer where no hub answers and none ever did.
        """
        key = _key(question, token)
        kept = self._memory.get(key)
        if kept is not None and self._memory.is_fresh(kept):
            return Reply(kept.answer)

        async def ask() -> HubAnswer:
            return await self._ask(question, token, kept, for_ever=for_ever, hurry=hurry or kept is not None)

        try:
            return Reply(await self._single.once(("ask", question.only, hurry, *key), ask))
        except NoAnswer:
            if kept is None:
                raise
            return Reply(kept.answer, self._memory.age_s(kept))

    async def pass_on(self, question: Question, token: str | None) -> HubAnswer:
        """Asked now, remembered nowhere. Raises NoAnswer."""
        return await self.hubs.ask(question, token)

    async def _ask(
        self, question: Question, token: str | None, kept: Kept | None, *, for_ever: bool, hurry: bool
    ) -> HubAnswer:
        key = _key(question, token)
        etag = kept.answer.headers.get("etag", "") if kept is not None else ""
        answer = await self.hubs.ask(question, token, etag=etag, hurry=hurry)
        if answer.status == 304 and kept is not None:
            answer = kept.answer
        code = answer.headers.get("x-error-code")
        if answer.status == 200 or answer.status in _REDIRECTS or code in ("EntryNotFound", "RevisionNotFound"):
            self._memory.put(key, answer, for_ever=for_ever and (answer.status == 200 or code == "EntryNotFound"))
        else:
            self._memory.forget(key)
        return answer


def refusal_of(answer: HubAnswer) -> HubRefusal:
    """An answer that is no success, as an error to be given on."""
    headers: Mapping[str, str] = answer.headers
    message = headers.get("x-error-message") or f"The hub answers HTTP {answer.status}."
    shown = {name.title(): headers[name] for name in _SHOWN if name in headers}
    return HubRefusal(answer.status, headers.get("x-error-code", ""), message, shown)


def _key(question: Question, token: str | None) -> tuple[str, ...]:
    path, _, query = question.target.partition("?")
    body = hashlib.sha256(question.body).hexdigest() if question.body else ""
    return token_key(token), question.method, same_question(path, query), body
