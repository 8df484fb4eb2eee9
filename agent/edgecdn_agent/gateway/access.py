"""May this caller see this repo? What a hub shows to everybody: yes. All else: what the hub says to this caller.

A yes holds a minute for that caller and repo, a no a few seconds. When the hub is silent, nobody gets
what is not known to be public.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from edgecdn.names import RepoId, Revision
from edgecdn.repopath import RepoPath
from edgecdn.token_owner import token_key
from edgecdn_agent.gateway.errors import HubRefusal, Moved, NoAnswer
from edgecdn_agent.gateway.hubs import HubAnswer, Hubs, Question
from edgecdn_agent.gateway.memory import FRESH_S
from edgecdn_agent.gateway.metadata import refusal_of
from edgecdn_agent.gateway.moved import moved_to
from edgecdn_agent.gateway.paths import resolve_target
from edgecdn_agent.gateway.single import SingleFlight
from edgecdn_agent.holdings.sharing import SharingRule

__all__ = ["Access"]

_log = logging.getLogger(__name__)

_REFUSED_S = 5.0
"""A no holds so long: who accepts a licence on the hub's page tries again at once."""

_REFRESH_S = 3.0
_MOST_KEPT = 4096
_FILE_ONLY = frozenset({"EntryNotFound", "RevisionNotFound"})
_ALWAYS_SHOWN = frozenset({"README.md", ".gitattributes"})
"""Of a gated repo hubs show these to everybody: a yes to one of them opens no other file."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What the hub said to a caller. `refusal`: None is a yes."""

    refusal: HubRefusal | None
    until: float


class Access:
    """Decides, and remembers. `vouched`: whether the lab alone stands for a repo, and the user takes its word."""

    def __init__(
        self,
        rule: SharingRule,
        hubs: Hubs,
        single: SingleFlight,
        vouched: Callable[[RepoId], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rule = rule
        self._hubs = hubs
        self._single = single
        self._vouched = vouched
        self._clock = clock
        self._said: dict[tuple[str, RepoId], _Said] = {}
        self._doubted: set[RepoId] = set()

    def is_public(self, repo: RepoId) -> bool:
        """Whether everybody may see it, as far as is known."""
        return self._rule.is_public(repo) is True and repo not in self._doubted

    async def check(self, repo: RepoId, token: str | None, file: tuple[Revision, RepoPath] | None = None) -> bool:
        """Return if the caller may read files of it: True if everybody may. `file`: the one that is asked for.

        Raises HubRefusal (what the hub says to this caller; Moved too), NoAnswer.
        """
        if repo in self._doubted:
            await self._look_again(repo)
        if self.is_public(repo):
            return True
        key = (token_key(token), repo)
        shown = file is not None and str(file[1]) in _ALWAYS_SHOWN
        said = self._said.get(key)
        if shown and said is not None and said.refusal is not None:
            said = None  # who may not see the others may see this one
        if said is None or said.until <= self._clock():
            try:
                said = await self._single.once(("access", *key, file), lambda: self._ask(repo, token, file))
            except NoAnswer:
                if self._rule.is_public(repo) is None and await self._vouched(repo):
                    return True
                raise
        if said.refusal is not None:
            raise said.refusal.with_traceback(None)
        return self.is_public(repo)

    def note(self, repo: RepoId, *, public: bool) -> None:
        """A hub just said whether everybody may see it; where that is news, what was known counts no more."""
        known = self._rule.is_public(repo)
        if known is None or known == public:
            return
        _log.info("a repo is no longer what it was repo=%s public=%s", repo, public)
        self._rule.learn(repo, again=True)
        self._doubted.add(repo)
        for key in [key for key in self._said if key[1] == repo]:
            del self._said[key]

    async def _ask(self, repo: RepoId, token: str | None, file: tuple[Revision, RepoPath] | None) -> _Said:
        """Ask the hub as this caller; a yes makes the rule ask as a stranger, where it never did."""
        answer = await self._hubs.ask(_question(repo, file), token)
        moved = moved_to(answer, repo)
        if moved is not None:
            raise Moved(answer.status, moved)
        yes = _is_yes(answer, file is not None)
        if not yes and answer.status < 400:
            raise NoAnswer(f"{answer.endpoint} answers something that is not a hub's.")
        if answer.headers.get("x-error-code") in _FILE_ONLY:
            raise refusal_of(answer)  # it says nothing of the repo
        refusal = None if yes else refusal_of(answer)
        now = self._clock()
        said = _Said(refusal, now + (FRESH_S if yes else _REFUSED_S))
        if len(self._said) >= _MOST_KEPT:
            self._said = {key: kept for key, kept in self._said.items() if kept.until > now}
        if len(self._said) < _MOST_KEPT and (file is None or str(file[1]) not in _ALWAYS_SHOWN):
            self._said[token_key(token), repo] = said
        if yes and self._rule.is_public(repo) is None:
            await self._look_again(repo)
        return said

    async def _look_again(self, repo: RepoId) -> None:
        """Have the rule ask as a stranger now."""

        async def ask() -> bool:
            with suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_S):
                    return await self._rule.refresh(repo)
            return False

        if await self._single.once(("public", repo), ask):
            self._doubted.discard(repo)


def _is_yes(answer: HubAnswer, of_file: bool) -> bool:
    """Whether a hub says yes, and not a login page in its place."""
    if of_file:
        return answer.status < 400 and "x-repo-commit" in answer.headers
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    return answer.status == 200 and (is_json or answer.body in (b"", b"OK"))


def _question(repo: RepoId, file: tuple[Revision, RepoPath] | None) -> Question:
    if file is None:
        return Question("GET", f"/api/{repo.type.plural}/{repo.name}/auth-check", json=False)
    return Question("HEAD", resolve_target(repo, *file), json=False)
