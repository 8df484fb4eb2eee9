"""May this caller have the bytes of a repo? A listing that is shown does not say so: some are open, their files not."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakValueDictionary

from edgecdn.names import RepoId
from edgecdn.repopath import RepoPath
from edgecdn_agent.gateway.errors import NoAnswer
from edgecdn_agent.gateway.memory import FRESH_S
from edgecdn_agent.gateway.modelscope.callers import STRANGER, Caller
from edgecdn_agent.gateway.modelscope.paths import file_target
from edgecdn_agent.gateway.modelscope.public_answers import PublicAnswers
from edgecdn_agent.gateway.modelscope.upstream import Answer, Upstream

__all__ = ["Access", "Refused"]

_MOST = 4096


class Refused(Exception):
    """ModelScope's own answer to this caller, that is no file: to be given on as it is."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"HTTP {answer.status}")
        self.answer = answer


class Access:
    """ModelScope is asked for the first byte of the file, as a stranger, then as the caller; once a minute a repo."""

    def __init__(self, upstream: Upstream, kept: PublicAnswers, clock: Callable[[], float] = time.monotonic) -> None:
        self._upstream = upstream
        self._kept = kept
        self._clock = clock
        self._until: OrderedDict[tuple[RepoId, str], tuple[float, bool]] = OrderedDict()
        self._asking: WeakValueDictionary[RepoId, asyncio.Lock] = WeakValueDictionary()

    async def check(self, repo: RepoId, revision: str, path: RepoPath, caller: Caller, *, hidden: bool) -> bool:
        """True: everybody may have it; False: this caller alone. `hidden`: its listing is not for strangers.

        Raises Refused, and NoAnswer when nobody can say.
        """
        lock = self._asking.setdefault(repo, asyncio.Lock())
        async with lock:
            if not hidden and await self._is_public(repo, revision, path, caller):
                return True
            if self._known(repo, caller) is not True:
                answer = await self._upstream.may_read(file_target(repo, revision, path), caller)
                if answer is not None:
                    raise Refused(answer)
                self._note(repo, caller, allowed=True)
            return False

    async def _is_public(self, repo: RepoId, revision: str, path: RepoPath, caller: Caller) -> bool:
        known = self._known(repo, STRANGER)
        if known is not None and (known or caller is not STRANGER):
            return known
        question = f"bytes of {repo}"
        try:
            answer = await self._upstream.may_read(file_target(repo, revision, path), STRANGER)
        except NoAnswer:
            if await asyncio.to_thread(self._kept.get, question) is None:
                raise
            return True
        if answer is not None and answer.status == 404:
            raise Refused(answer)  # the file, not the repo: the listing was open to strangers
        self._note(repo, STRANGER, allowed=answer is None)
        if answer is None:
            await asyncio.to_thread(self._kept.put, question, b"")
            return True
        await asyncio.to_thread(self._kept.forget, question)
        if caller is STRANGER:
            raise Refused(answer)
        return False

    def _known(self, repo: RepoId, caller: Caller) -> bool | None:
        until, allowed = self._until.get((repo, caller.key), (0.0, False))
        return allowed if self._clock() < until else None

    def _note(self, repo: RepoId, caller: Caller, *, allowed: bool) -> None:
        self._until[repo, caller.key] = (self._clock() + FRESH_S, allowed)
        while len(self._until) > _MOST:
            self._until.popitem(last=False)
