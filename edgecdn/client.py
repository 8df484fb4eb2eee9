"""The library's front: where a fetch runs. With the user's agent when there is one, else in the lab, else alone.

1. An agent of this home and cache runs: it fetches, and this process only watches.
2. Everything is here already: nothing has to run.
3. There may be a lab (mDNS or named peers): an agent is run for the time of the fetch (`--once`).
4. Else, or when that agent does not come up: in this process, from folders, mirrors and hubs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from edgecdn.agent_link import AgentAddress, AgentLink, JobHandle, find_agent
from edgecdn.control import FetchRequest
from edgecdn.errors import AccessDenied, AgentNotRunning, RepoMissing, Unreachable
from edgecdn.events import Event, Kind, Listener, Note
from edgecdn.fetched import Fetched
from edgecdn.fileset import FileSet
from edgecdn.names import ModelRef, RepoType
from edgecdn.once import run_once
from edgecdn.settings import Settings, load_settings
from edgecdn.shortnames import lookup

if TYPE_CHECKING:
    from edgecdn.local_fetch import FetchParts

__all__ = ["FetchOptions", "Wanted", "fetch", "fetch_async", "fetch_wanted"]

_NAME_S = 5.0
"""How long the hubs may take to say what a name stands for before the lab is joined, which they are then asked from."""

_CANCEL_S = 3.0
"""How long the agent may take to stop a fetch that was interrupted here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A fetch, parsed. `hub`: `modelscope` takes names from there. `keep_job`: when interrupted, the agent goes on."""

    ref: ModelRef
    files: FileSet = FileSet()
    local_dir: Path | None = None
    kinds: frozenset[Kind] = frozenset(Kind)
    hub: str = ""
    accept_lan_manifest: bool = False
    keep_job: bool = False


class FetchOptions(TypedDict, total=False):
    """What can be said of a fetch, beside its name; all of it optional."""

    repo_type: str
    """`model` (default), `dataset` or `space`."""
    include: Sequence[str]
    """Only files that match one of these shell patterns."""
    exclude: Sequence[str]
    """Not the files that match one of these."""
    all_formats: bool
    """Also the same weights in other formats than safetensors."""
    local_dir: str | os.PathLike[str]
    """Also put the files there."""
    settings: Settings
    """Instead of those of the environment and the configuration file."""
    listener: Listener
    """Told what happens (`edgecdn.events`), on the event loop of the fetch."""


def fetch(model: str, **options: Unpack[FetchOptions]) -> Fetched:
    """Fetch a model or data set into the Hugging Face cache, verified; returns where it is and what it took.

    `model` is what the command takes: a short name, `owner/name`, `owner/name@revision`, `datasets/...`;
    `options` are those of `FetchOptions`. Raises an EdgecdnError. Blocks; where an event loop runs already
    (a notebook), it works in a thread of its own; async code awaits `fetch_async`.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(fetch_async(model, **options))
    with ThreadPoolExecutor(1, thread_name_prefix="edgecdn-fetch") as aside:
        return aside.submit(lambda: asyncio.run(fetch_async(model, **options))).result()


async def fetch_async(model: str, **options: Unpack[FetchOptions]) -> Fetched:
    """As `fetch`, for async code."""
    repo_type, local_dir = options.get("repo_type"), options.get("local_dir")
    wanted = FileSet(
        tuple(options.get("include", ())), tuple(options.get("exclude", ())), options.get("all_formats", False)
    )
    fetch_of = Wanted(
        ref=ModelRef.parse(model, RepoType(repo_type) if repo_type else None),
        files=wanted,
        local_dir=None if local_dir is None else Path(local_dir),
    )
    return await fetch_wanted(fetch_of, options.get("settings") or load_settings(), options.get("listener"))


async def fetch_wanted(
    wanted: Wanted,
    settings: Settings,
    listener: Listener | None = None,
    before_hubs: Callable[[], None] = lambda: None,
    on_left: Callable[[int], None] = lambda _others: None,
) -> Fetched:
    """A fetch, wherever it is best run. Raises any EdgecdnError; AgentNotRunning when the agent is lost meanwhile.

    `before_hubs` is called before this process itself speaks to hubs; what that needs is imported only then
    (half a second and more), as a fetch by the agent does without. `on_left` is called when this is cancelled and
    the agent goes on all the same, with the number of others who wait for it (0: it was to be kept).
    """
    listen = listener or _ignore
    agent = await asyncio.to_thread(_usable_agent, settings, listen)
    if agent is not None:
        try:
            return await _by_agent(agent, wanted, settings, listen, on_left)
        except _NotTaken:
            listen(Note("The agent does not answer; this fetch does without it."))
        except (AccessDenied, RepoMissing):  # hubs answer both to who may not see a repo
            if not _has_own_token():
                raise
            listen(Note("The agent may not read it; this command tries with the HF_TOKEN it was given."))
    before_hubs()
    from edgecdn.local_fetch import FetchParts, open_pipeline

    parts = FetchParts(listener=listen, kinds=wanted.kinds, hub=wanted.hub, accept_lab=wanted.accept_lan_manifest)
    if Kind.LAN in wanted.kinds and (settings.discovery_mdns or settings.discovery_peers):
        found = await _already_here(wanted, settings, parts)
        if found is not None and wanted.local_dir is None:
            return found
        if found is None and (fetched := await _by_the_lab(wanted, settings, listen)) is not None:
            return fetched
    async with open_pipeline(settings, parts) as pipeline:
        return await pipeline.fetch(wanted.ref, wanted.files, wanted.local_dir)


async def _by_the_lab(wanted: Wanted, settings: Settings, listen: Listener) -> Fetched | None:
    """With an agent for the time of this fetch; None when none can be had."""
    async with run_once() as once:
        if once is not None:
            try:
                return await _by_agent(once, wanted, settings, listen, lambda _others: None)
            except (AgentNotRunning, _NotTaken):
                pass
    listen(Note("The lab could not be joined; this fetch does without it."))
    return None


class _NotTaken(Exception):
    """The agent did not take the fetch; nothing was begun."""


async def _by_agent(
    agent: AgentAddress, wanted: Wanted, settings: Settings, listen: Listener, on_left: Callable[[int], None]
) -> Fetched:
    handle, started = JobHandle(), time.monotonic()
    async with AgentLink(agent) as link:
        try:
            fetched = await link.fetch(_request(wanted, settings), listen, handle)
            return replace(fetched, seconds=round(time.monotonic() - started, 3))  # the job may be older than this ask
        except AgentNotRunning as error:
            if handle.job:
                raise
            raise _NotTaken from error
        except asyncio.CancelledError:
            if handle.job and wanted.keep_job:
                on_left(0)
            elif handle.job and (others := await _cancel(link, handle)):
                on_left(others)
            raise


async def _cancel(link: AgentLink, handle: JobHandle) -> int:
    """Stop waiting; how many others wait for the job, which then goes on."""
    try:
        async with asyncio.timeout(_CANCEL_S):
            return (await link.cancel(handle)).others
    except (AgentNotRunning, TimeoutError):
        return 0  # it does not answer: it cannot be told


async def _already_here(wanted: Wanted, settings: Settings, parts: FetchParts) -> Fetched | None:
    """The result, where nothing has to be fetched: then nobody is asked for anything but the name."""
    from edgecdn.local_fetch import open_pipeline

    heard: list[Event] = []
    started = time.monotonic()
    async with open_pipeline(settings, replace(parts, listener=heard.append)) as pipeline:
        try:
            async with asyncio.timeout(_NAME_S):
                prepared = await pipeline.prepare(wanted.ref, wanted.files)
        except (Unreachable, TimeoutError):  # the lab may know better
            return None
        found = await pipeline.look(prepared)
    if found is not None and wanted.local_dir is None and parts.listener is not None:
        for event in heard:  # else whoever fetches says it
            parts.listener(event)
    return None if found is None else replace(found, seconds=round(time.monotonic() - started, 3))


def _usable_agent(settings: Settings, listen: Listener) -> AgentAddress | None:
    """The agent of this home, unless it keeps its files or asks for them elsewhere than this program is told to."""
    agent = find_agent(settings.home)
    if agent is None:
        return None
    without = "; this fetch does without it."
    if agent.run.cache_dir not in ("", str(settings.cache_dir)):
        listen(Note(f"The agent keeps its files in {agent.run.cache_dir}, not in {settings.cache_dir}{without}"))
        return None
    if agent.run.hub_endpoints not in ((), settings.hub_endpoints):
        others, ours = ", ".join(agent.run.hub_endpoints), ", ".join(settings.hub_endpoints)
        listen(Note(f"The agent asks {others}, not {ours}{without}"))
        return None
    return agent


def _has_own_token() -> bool:
    """Whether this program was given a token that the agent, started earlier, may not have."""
    return bool(os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"))


def _request(wanted: Wanted, settings: Settings) -> FetchRequest:
    name, type_ = wanted.ref.name, wanted.ref.type
    if name.lower() in settings.aliases and (own := lookup(name, type_, settings.aliases)) is not None:
        type_, name = own  # the agent may have been started before the user gave the alias
    revision = f"@{wanted.ref.revision}" if wanted.ref.revision else ""
    return FetchRequest(
        model=f"{name}{revision}",
        type=type_.value if type_ else None,
        include=wanted.files.include,
        exclude=wanted.files.exclude,
        all_formats=wanted.files.all_formats,
        local_dir=None if wanted.local_dir is None else str(wanted.local_dir.absolute()),
        kinds=None if wanted.kinds == frozenset(Kind) else tuple(sorted(kind.value for kind in wanted.kinds)),
        hub=wanted.hub,
        accept_lan_manifest=wanted.accept_lan_manifest,
        cache_dir=str(settings.cache_dir),
        offline=settings.offline,
    )


def _ignore(_event: Event) -> None:
    """A fetch that nobody listens to."""
