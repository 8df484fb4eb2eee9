"""The library's front: builds a fetch from settings and runs it. The composition root of fetching."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict, Unpack

from edgecdn.cache.catalog import Catalog
from edgecdn.errors import BadInput, Unreachable
from edgecdn.events import Event, Kind, Listener
from edgecdn.fileset import FileSet
from edgecdn.names import ModelRef, RepoType
from edgecdn.pipeline import Fetched, Pipeline
from edgecdn.resolve import Index, Resolver
from edgecdn.settings import Settings, load_settings
from edgecdn.sources import Source
from edgecdn.sources.folder import FolderSource
from edgecdn.sources.http import ByteClient, Credentials
from edgecdn.sources.hub import HubSource
from edgecdn.sources.hub_api import HubApi, user_token
from edgecdn.sources.modelscope import ModelScopeApi, ModelScopeSource
from edgecdn.sources.xet import XetSource
from edgecdn.token_owner import token_owner

__all__ = ["FetchOptions", "credentials", "fetch", "fetch_async", "hub_indexes", "run_fetch"]


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
    return await run_fetch(
        ModelRef.parse(model, RepoType(repo_type) if repo_type else None),
        wanted,
        options.get("settings") or load_settings(),
        listener=options.get("listener"),
        local_dir=None if local_dir is None else Path(local_dir),
    )


async def run_fetch(
    ref: ModelRef,
    wanted: FileSet,
    settings: Settings,
    *,
    listener: Listener | None = None,
    local_dir: Path | None = None,
    kinds: frozenset[Kind] = frozenset(Kind),
    hub: str = "",
) -> Fetched:
    """A fetch from parsed parts: what the programs call.

    `kinds` limits which sources give bytes; `hub` is `modelscope` to take names from there.
    """
    own = credentials(settings)
    byte_client = ByteClient([c for c in (own, _modelscope_credentials(settings)) if c])
    modelscope = settings.hub_modelscope
    if hub == "modelscope" and not modelscope:
        raise BadInput("ModelScope is off in the settings; `edgecdn config set hub.modelscope URL` switches it on")
    if hub == "modelscope" and settings.offline:
        raise Unreachable(f"{modelscope} is not asked, HF_HUB_OFFLINE is set", hint="Unset HF_HUB_OFFLINE.")
    hubs: list[Index] = [ModelScopeApi(modelscope, byte_client)] if hub == "modelscope" else hub_indexes(settings, own)

    def make_sources() -> list[Source]:
        made: list[Source] = [FolderSource(path) for path in settings.local_folders]
        for position, endpoint in enumerate(settings.hub_endpoints if hub != "modelscope" else ()):
            kind = Kind.ORIGIN if position == 0 else Kind.MIRROR
            made.append(HubSource(endpoint, kind, byte_client, connections=settings.fetch_connections))
        if hub != "modelscope":
            made.append(XetSource(settings.hub_endpoints[0], Kind.ORIGIN, byte_client))
        if modelscope:
            kind = Kind.ORIGIN if hub == "modelscope" else Kind.MIRROR
            made.append(ModelScopeSource(modelscope, kind, byte_client, connections=settings.fetch_connections))
        reached = kinds - {Kind.MIRROR, Kind.ORIGIN} if settings.offline else kinds
        return [source for source in made if source.kind in reached]

    catalog = Catalog(settings.home)
    pipeline = Pipeline(settings, Resolver(settings, hubs), make_sources, catalog, listener or _ignore)
    try:
        return await pipeline.fetch(ref, wanted, local_dir)
    finally:
        await byte_client.close()
        await asyncio.to_thread(catalog.close)


def hub_indexes(settings: Settings, own: Credentials | None) -> list[Index]:
    """The metadata side of every configured hub, in the user's order."""
    return [HubApi(endpoint, own) for endpoint in settings.hub_endpoints]


def credentials(settings: Settings) -> Credentials | None:
    """The user's token and the one hub it is for; None when there is no token, or no hub it belongs to."""
    token = user_token()
    owner = token_owner(settings.hub_endpoints, settings.hub_token_for)
    return Credentials(owner, token) if token and owner else None


def _modelscope_credentials(settings: Settings) -> Credentials | None:
    token = os.environ.get("MODELSCOPE_API_TOKEN", "")
    return Credentials(settings.hub_modelscope, token, "m_session_id") if token and settings.hub_modelscope else None


def _ignore(_event: Event) -> None:
    """A fetch that nobody listens to."""
