"""The library's front: builds a fetch from settings and runs it. The composition root of fetching."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

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

__all__ = ["credentials", "fetch", "fetch_async", "hub_indexes"]


def fetch(
    model: str,
    *,
    repo_type: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    all_formats: bool = False,
    local_dir: str | os.PathLike[str] | None = None,
    settings: Settings | None = None,
    listener: Listener | None = None,
) -> Fetched:
    """Fetch a model or data set into the Hugging Face cache, verified; returns where it is and what it took.

    `model` is what the command takes: a short name, `owner/name`, `owner/name@revision`, `datasets/...`.
    Raises an EdgecdnError. Blocks; from async code use `fetch_async`.
    """
    return asyncio.run(
        fetch_async(
            ModelRef.parse(model, RepoType(repo_type) if repo_type else None),
            FileSet(tuple(include), tuple(exclude), all_formats),
            settings or load_settings(),
            listener=listener,
            local_dir=None if local_dir is None else Path(local_dir),
        )
    )


async def fetch_async(
    ref: ModelRef,
    wanted: FileSet,
    settings: Settings,
    *,
    listener: Listener | None = None,
    local_dir: Path | None = None,
    kinds: frozenset[Kind] = frozenset(Kind),
    hub: str = "",
) -> Fetched:
    """As `fetch`. `kinds` limits which sources give bytes; `hub` is `modelscope` to take names from there."""
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
