"""Which repos may be given to peers: what a hub tells everybody, and what the user said.

A hub is asked as a stranger would, without any token: what it shows to everybody may be shared.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import count

from yarl import URL

from edgecdn.cache.catalog import Catalog
from edgecdn.names import RepoId, RepoType
from edgecdn.settings import Settings
from edgecdn.sources.faults import Denied, Misbehaved, Missing, SourceFault
from edgecdn.sources.http import ByteClient
from edgecdn_agent.listeners import Listeners

__all__ = ["SharingRule"]

_log = logging.getLogger(__name__)

_DAY_S = 86400.0
_GOOD_S = 7 * _DAY_S
"""How long an answer counts when no hub answers."""

_SPREAD = 0.1
"""Answers are asked for again up to this share of a day early, so that not all agents ask at once."""

_CLOCK_BACK_S = 3600.0
"""An answer from further in the future than this was given under another clock: nobody knows how old it is."""

_REQUEST_S = 1.0
"""Between two requests, so that a large cache is no burden to a hub."""

_BACK_OFF_S = (5.0, 600.0)
"""First and longest pause after no hub answered; doubling."""

_LOOK_AGAIN_S = 5.0
"""Between looks whether an answer is due, or a repo new."""


@dataclass(frozen=True, slots=True)
class _Answer:
    shared: bool
    checked_at: float
    again_at: float


class SharingRule:
    """`allows` decides from memory alone; `run` keeps that memory fresh. On one event loop."""

    def __init__(self, settings: Settings, catalog: Catalog, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._catalog = catalog
        self._clock = clock
        self._answers: dict[RepoId, _Answer] = {}
        self._soon: dict[RepoId, None] = {}
        self._tried: dict[RepoId, int] = {}
        self._turn = count(1)
        self._wake = asyncio.Event()
        self._listeners: Listeners[None] = Listeners()
        self._back_off_s = 0.0

    def allows(self, repo: RepoId) -> bool:
        """Whether peers may have it: share.deny before share.allow before what a hub said; unknown: no."""
        if any(_denies(pattern, repo) for pattern in self._settings.share_deny):
            return False
        if any(_allows(pattern, repo) for pattern in self._settings.share_allow):
            return True
        return self.is_public(repo) is True

    def is_public(self, repo: RepoId) -> bool | None:
        """What a hub said of it to a stranger, whatever the user shares; None when that is not known."""
        answer = self._answers.get(repo)
        return None if answer is None or self._age_s(answer) >= _GOOD_S else answer.shared

    async def load(self) -> None:
        """Take what was remembered; before anything is asked of the rule."""
        remembered = await asyncio.to_thread(self._catalog.sharing)
        for name, (shared, checked_at) in remembered.items():
            with suppress(ValueError):
                self._answers.setdefault(_repo(name), _answer(checked_at, shared=shared))
        self._listeners.tell(None)

    def learn(self, repo: RepoId, *, again: bool = False) -> None:
        """Have `run` ask for it next, if it is not known; `again`: known or not (a hub just refused it)."""
        answer = self._answers.get(repo)
        if again and answer is not None:
            self._answers[repo] = replace(answer, again_at=0.0)
        if again or answer is None:
            self._soon[repo] = None
            self._wake.set()

    async def refresh(self, repo: RepoId) -> bool:
        """Ask the hubs now, in order; the first that answers is believed. Whether one did."""
        if self._settings.offline:
            return False
        client = ByteClient()  # without credentials: whatever token the user has, it is not sent
        try:
            shared = await self._ask(client, repo)
        finally:
            await client.close()
        if shared is None:
            return False
        await self._remember(repo, shared=shared)
        return True

    async def run(self, repos: Callable[[], Iterable[RepoId]]) -> None:
        """Keep what is known of these repos fresh, one request a second at most, until cancelled."""
        await self.load()
        while True:
            self._wake.clear()
            repo = self._next(repos())
            if repo is not None:
                self._soon.pop(repo, None)
                self._tried[repo] = next(self._turn)
                answered = await self.refresh(repo)
                await asyncio.sleep(self._pause_s(answered=answered))
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._wake.wait()

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called after what may be shared changed; returns what ends that."""
        return self._listeners.subscribe(lambda _: callback())

    def _next(self, repos: Iterable[RepoId]) -> RepoId | None:
        if self._settings.offline:
            return None
        if self._soon:
            return next(iter(self._soon))
        now = self._clock()
        # the one not tried for longest: one that a hub cannot answer for must not keep the others waiting
        due = (repo for repo in repos if self._is_due(repo, now))
        return min(due, key=lambda repo: self._tried.get(repo, 0), default=None)

    def _is_due(self, repo: RepoId, now: float) -> bool:
        answer = self._answers.get(repo)
        return answer is None or not answer.checked_at - _CLOCK_BACK_S <= now < answer.again_at

    def _age_s(self, answer: _Answer) -> float:
        age_s = self._clock() - answer.checked_at
        return max(0.0, age_s) if age_s > -_CLOCK_BACK_S else _GOOD_S

    def _pause_s(self, *, answered: bool) -> float:
        first, longest = _BACK_OFF_S
        self._back_off_s = 0.0 if answered else min(longest, max(first, self._back_off_s * 2))
        return self._back_off_s or _REQUEST_S

    async def _ask(self, client: ByteClient, repo: RepoId) -> bool | None:
        for endpoint in self._settings.hub_endpoints:
            url = URL(endpoint) / "api" / repo.type.plural / repo.name
            try:
                return _is_public(await client.get_json(url))
            except (Denied, Missing):
                return False
            except (SourceFault, TimeoutError) as fault:
                _log.info("a hub does not answer hub=%s reason=%s", endpoint, str(fault)[:200])
        return None

    async def _remember(self, repo: RepoId, *, shared: bool) -> None:
        before = self.allows(repo)
        answer = _answer(self._clock(), shared=shared)
        self._answers[repo] = answer
        await asyncio.to_thread(self._catalog.set_sharing, repo, shared=shared, checked_at=answer.checked_at)
        if self.allows(repo) != before:
            self._listeners.tell(None)


def _is_public(body: object) -> bool:
    """What a hub's page of a repo says; raises Misbehaved when it is no such page."""
    if not isinstance(body, dict) or "private" not in body or "gated" not in body:
        raise Misbehaved("answers something that is not a repo's page")
    return body["private"] is False and body["gated"] is False and body.get("disabled", False) is False


def _answer(checked_at: float, *, shared: bool) -> _Answer:
    return _Answer(shared, checked_at, checked_at + _DAY_S * (1 - _SPREAD * random.random()))


def _repo(text: str) -> RepoId:
    for type_ in (RepoType.DATASET, RepoType.SPACE):
        if text.startswith(f"{type_.plural}/"):
            return RepoId(type_, text.removeprefix(f"{type_.plural}/"))
    return RepoId(RepoType.MODEL, text)


def _denies(pattern: str, repo: RepoId) -> bool:
    """Widely: in any case, and `OWNER/*` for the owner's data sets too. Too little shared does no harm."""
    wanted = pattern.casefold()
    return any(fnmatchcase(text.casefold(), wanted) for text in (repo.url_path, repo.name))


def _allows(pattern: str, repo: RepoId) -> bool:
    """Narrowly: exactly as written, and data sets and spaces only by a pattern that begins so."""
    prefix = "" if repo.type is RepoType.MODEL else f"{repo.type.plural}/"
    return pattern.startswith(prefix) and fnmatchcase(repo.name, pattern.removeprefix(prefix))
