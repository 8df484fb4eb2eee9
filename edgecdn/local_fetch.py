"""A fetch in this process: built from settings and run. The composition root of fetching."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from edgecdn.cache.catalog import Catalog
from edgecdn.errors import BadInput, Unreachable
from edgecdn.events import Event, Kind, Listener
from edgecdn.fileset import FileSet
from edgecdn.names import ModelRef
from edgecdn.pace import Pace
from edgecdn.pipeline import Fetched, Pipeline
from edgecdn.resolve import Index, LabIndex, Resolver
from edgecdn.settings import Settings
from edgecdn.sources import Source
from edgecdn.sources.folder import FolderSource
from edgecdn.sources.http import ByteClient, Credentials
from edgecdn.sources.hub import HubSource
from edgecdn.sources.hub_api import HubApi, user_token
from edgecdn.sources.modelscope import ModelScopeApi, ModelScopeSource
from edgecdn.sources.paced import PacedSource
from edgecdn.sources.xet import XetSource
from edgecdn.together import Together
from edgecdn.token_owner import token_owner
from edgecdn.transfer.carrier import Lab
from edgecdn.transfer.incoming import Pools

__all__ = ["FetchParts", "caller_client", "credentials", "hub_indexes", "open_pipeline", "run_fetch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchParts:
    """What a fetch is made with, beside the settings.

    `kinds` limits which sources give bytes; `hub` is `modelscope` to take names from there. `lab` gives
    what peers have, `lab_index` what they say of names, which `accept_lab` believes when no hub
    answers. `wan` is the pace of everything that crosses the line.

    Of an agent: `together` is what its fetches share, and `pools` threads that some do. `client` has open
    connections and the one token that may be used (None: its own, with the user's tokens); `connections`
    bounds how many a source gets (0: as the settings say). `urgent`: somebody reads the files as they come.
    """

    listener: Listener | None = None
    kinds: frozenset[Kind] = frozenset(Kind)
    hub: str = ""
    lab: Lab | None = None
    lab_index: LabIndex | None = None
    accept_lab: bool = False
    wan: Pace | None = None
    together: Together | None = None
    pools: Pools | None = None
    client: ByteClient | None = None
    connections: int = 0
    urgent: bool = False


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
    """A fetch in this process, from hubs and folders alone."""
    async with open_pipeline(settings, FetchParts(listener=listener, kinds=kinds, hub=hub)) as pipeline:
        return await pipeline.fetch(ref, wanted, local_dir)


@asynccontextmanager
async def open_pipeline(settings: Settings, parts: FetchParts) -> AsyncIterator[Pipeline]:
    """A pipeline for one fetch, with everything it needs, which is released at the end."""
    own = credentials(settings) if parts.client is None else None  # a caller's fetch never uses the user's token
    byte_client = parts.client or ByteClient([c for c in (own, _modelscope_credentials(settings)) if c])
    together = parts.together or Together()
    hubs = _indexes(settings, parts.hub, own, byte_client)
    reached = parts.kinds - {Kind.MIRROR, Kind.ORIGIN} if settings.offline else parts.kinds

    def make_sources() -> list[Source]:
        made = [source for source in _sources(settings, parts, byte_client) if source.kind in reached]
        if parts.wan is None:
            return made
        return [s if s.kind is Kind.CACHE else PacedSource(s, parts.wan) for s in made]

    catalog = together.catalog or Catalog(settings.home)
    resolver = Resolver(settings, hubs, parts.lab_index, parts.accept_lab)
    lab = parts.lab if Kind.LAN in parts.kinds else None
    try:
        listener = parts.listener or _ignore
        yield Pipeline(
            settings, resolver, make_sources, catalog, listener, lab, together, urgent=parts.urgent, pools=parts.pools
        )
    finally:
        if byte_client is not parts.client:
            await byte_client.close()
        if catalog is not together.catalog:
            await asyncio.to_thread(catalog.close)


def _indexes(settings: Settings, hub: str, own: Credentials | None, byte_client: ByteClient) -> list[Index]:
    if hub != "modelscope":
        return hub_indexes(settings, own)
    modelscope = settings.hub_modelscope
    if not modelscope:
        raise BadInput("ModelScope is off in the settings; `edgecdn config set hub.modelscope URL` switches it on")
    if settings.offline:
        raise Unreachable(f"{modelscope} is not asked, HF_HUB_OFFLINE is set", hint="Unset HF_HUB_OFFLINE.")
    return [ModelScopeApi(modelscope, byte_client)]


def _sources(settings: Settings, parts: FetchParts, byte_client: ByteClient) -> list[Source]:
    """Every source the settings name; peers are not among them."""
    hub, connections = parts.hub, parts.connections or settings.fetch_connections
    made: list[Source] = [FolderSource(path) for path in settings.local_folders]
    if hub != "modelscope":
        for position, endpoint in enumerate(settings.hub_endpoints):
            kind = Kind.ORIGIN if position == 0 else Kind.MIRROR
            made.append(HubSource(endpoint, kind, byte_client, connections=connections))
        made.append(XetSource(settings.hub_endpoints[0], Kind.ORIGIN, byte_client))
    if settings.hub_modelscope:
        own = hub == "modelscope"
        kind = Kind.ORIGIN if own else Kind.MIRROR
        made.append(ModelScopeSource(settings.hub_modelscope, kind, byte_client, connections=connections, own=own))
    return made


def hub_indexes(settings: Settings, own: Credentials | None) -> list[Index]:
    """The metadata side of every configured hub, in the user's order."""
    return [HubApi(endpoint, own) for endpoint in settings.hub_endpoints]


def credentials(settings: Settings) -> Credentials | None:
    """The user's token and the one hub it is for; None when there is no token, or no hub it belongs to."""
    token = user_token()
    owner = token_owner(settings.hub_endpoints, settings.hub_token_for)
    return Credentials(owner, token) if token and owner else None


def caller_client(settings: Settings, token: str | None, hub: str = "") -> ByteClient:
    """Connections for a fetch in somebody's name: with their token for the one hub it is for, or with none at all."""
    if hub == "modelscope":
        owner, cookie = settings.hub_modelscope or None, "m_session_id"
    else:
        owner, cookie = token_owner(settings.hub_endpoints, settings.hub_token_for), ""
    return ByteClient([Credentials(owner, token, cookie)] if token and owner else [])


def _modelscope_credentials(settings: Settings) -> Credentials | None:
    token = os.environ.get("MODELSCOPE_API_TOKEN", "")
    return Credentials(settings.hub_modelscope, token, "m_session_id") if token and settings.hub_modelscope else None


def _ignore(_event: Event) -> None:
    """A fetch that nobody listens to."""
