"""Answers to the hub's API: told by a hub, remembered, or made from what is known here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import parse_qs

import msgspec

from edgecdn.errors import BadInput
from edgecdn.manifest import Manifest
from edgecdn.names import CommitId, RepoId, Revision
from edgecdn_agent.gateway.access import Access
from edgecdn_agent.gateway.errors import HubRefusal, NoAnswer
from edgecdn_agent.gateway.hubs import HubAnswer, Question
from edgecdn_agent.gateway.listings import Listings
from edgecdn_agent.gateway.local import Local
from edgecdn_agent.gateway.made import made_info, made_paths_info, made_refs, made_tree
from edgecdn_agent.gateway.metadata import Metadata, Reply
from edgecdn_agent.gateway.paths import Asked, Info, OfRepo, Other, PathsInfo, Refs, Tree, commit_of

__all__ = ["Api"]

_MAIN = Revision("main")
_Made = Callable[[bool], Awaitable[HubAnswer | None]]


class _Seen(msgspec.Struct):
    private: bool | None = None
    gated: bool | str | None = None
    disabled: bool = False
    sha: str = ""


@dataclass(frozen=True, slots=True)
class Api:
    """Answers one caller's question about repos."""

    metadata: Metadata
    access: Access
    listings: Listings
    local: Local

    async def answer(self, asked: Asked, question: Question, token: str | None) -> Reply:
        """The answer. Raises HubRefusal, NoAnswer."""
        if isinstance(asked, Other):
            if asked.lists:
                return await self.metadata.ask(question, token)
            return Reply(await self.metadata.pass_on(question, token))
        assert isinstance(asked, Info | Tree | PathsInfo | Refs | OfRepo)
        if isinstance(asked, OfRepo) and asked.perishable:
            return Reply(await self.metadata.pass_on(question, token))
        reply = await self._of_repo(asked, question, token)
        if reply.stale_s is None:
            self._note(asked.repo, asked, reply.answer)
        return reply

    async def _of_repo(
        self, asked: Info | Tree | PathsInfo | Refs | OfRepo, question: Question, token: str | None
    ) -> Reply:
        """The first of these that there is.

        1. What this caller was told within a minute. 2. Of a commit: what is here, if the caller may see it.
        3. The hub's answer. 4. It is silent: what is here, if the caller may see it.
        """
        kept = self.metadata.kept(question, token)
        if kept is not None and self.metadata.is_recent(kept):
            return Reply(kept.answer)
        made = self._maker(asked, question)
        commit = commit_of(asked)
        if commit is not None:
            found = kept.answer if kept is not None else None
            if found is None and isinstance(asked, Tree | PathsInfo):
                found = await made(False)
            if found is not None:
                if await self._may(asked.repo, token):
                    return Reply(found)
                self.metadata.forget(question, token)
                kept = None
        try:
            hurry = kept is not None or await self._is_here(asked)
            reply = await self.metadata.ask(question, token, for_ever=commit is not None, hurry=hurry)
        except NoAnswer:
            await self.access.check(asked.repo, token)
            last = await made(True)
            if last is None:
                raise
            return Reply(last, 0.0)
        if reply.stale_s is not None:
            await self.access.check(asked.repo, token)
        return reply

    async def _is_here(self, asked: Asked) -> bool:
        """Whether there is another way to know than to ask."""
        if not isinstance(asked, Info | Tree | PathsInfo):
            return False
        return await self.local.ref(asked.repo, asked.revision or _MAIN) is not None

    async def _may(self, repo: RepoId, token: str | None) -> bool:
        """Whether the caller may see files of it; one who may not hears what the hub says to the question."""
        try:
            await self.access.check(repo, token)
        except HubRefusal:
            return False
        return True

    def _maker(self, asked: Asked, question: Question) -> _Made:
        """What is known here without a hub; and in the lab, if it is asked."""

        async def make(ask_lab: bool) -> HubAnswer | None:
            if isinstance(asked, Refs):
                refs = await self.local.refs(asked.repo)
                return _json(made_refs(refs, pull_requests=asked.pull_requests)) if refs else None
            if isinstance(asked, OfRepo | Other):
                return None
            manifest = await self._known(asked, ask_lab=ask_lab)
            return None if manifest is None else await asyncio.to_thread(_make, asked, question, manifest)

        return make

    async def _known(self, asked: Asked, *, ask_lab: bool) -> Manifest | None:
        """The listing a question is about, from here or from the lab."""
        assert isinstance(asked, Info | Tree | PathsInfo)
        revision = asked.revision or _MAIN
        commit = await self.local.ref(asked.repo, revision) or revision.commit
        if commit is not None:
            found = await self.listings.here(asked.repo, commit)
            if found is not None:
                return found
        if not ask_lab:
            return None
        claimed = commit or await self.local.claimed_commit(asked.repo, revision)
        return await self.local.claimed_tree(asked.repo, claimed) if claimed is not None else None

    def _note(self, repo: RepoId, asked: Asked, answer: HubAnswer) -> None:
        """Have it known when the hub says another thing of who may see a repo."""
        if answer.headers.get("x-error-code") in ("RepoNotFound", "GatedRepo") or answer.status in (401, 403):
            self.access.note(repo, public=False)
        elif isinstance(asked, Info) and answer.status == 200:
            seen = _seen(answer.body)
            if seen is not None and seen.private is not None and seen.gated is not None:
                self.access.note(repo, public=seen.private is False and seen.gated is False and not seen.disabled)
            if seen is not None:
                with suppress(BadInput):
                    self.listings.branches.learn(repo, asked.revision or _MAIN, CommitId(seen.sha))


def _seen(body: bytes) -> _Seen | None:
    try:
        return msgspec.json.decode(body, type=_Seen)
    except msgspec.DecodeError:
        return None


def _make(asked: Asked, question: Question, manifest: Manifest) -> HubAnswer | None:
    if isinstance(asked, Info):
        return _json(made_info(manifest, blobs=asked.blobs)) if asked.plain else None
    if isinstance(asked, PathsInfo):
        form = parse_qs(question.body.decode("utf-8", "replace"), keep_blank_values=True)
        expands = form.get("expand", ["false"])[0].lower() in ("true", "1")
        return None if expands else _json(made_paths_info(manifest, form.get("paths", [])))
    if isinstance(asked, Tree) and asked.plain:
        items = made_tree(manifest, asked.folder, recursive=asked.recursive)
        if items is not None:
            return _json(items)
        headers = {"x-error-code": "EntryNotFound", "x-error-message": f"{asked.folder} does not exist"}
        return _json({"error": f"{asked.folder} does not exist"}, 404, headers)
    return None


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> HubAnswer:
    return HubAnswer("", status, {"content-type": "application/json", **(headers or {})}, msgspec.json.encode(value))
