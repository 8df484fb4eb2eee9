"""The checks of `edgecdn doctor`: facts are gathered here, judged in `edgecdn.upkeep.diagnosis`."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from yarl import URL

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.health import oddities
from edgecdn.errors import NoSpace
from edgecdn.settings import Settings
from edgecdn.sources.faults import SourceFault
from edgecdn.sources.http import ByteClient
from edgecdn.sources.hub_api import user_token
from edgecdn.token_owner import token_owner
from edgecdn.upkeep import diagnosis
from edgecdn.upkeep.diagnosis import Check, Heard, State
from edgecdn.upkeep.lab_checks import check_lab
from edgecdn.upkeep.probe import DEFAULT_REPO

__all__ = ["check_up"]

_ANSWER_S = 8.0
"""A hub that has not answered a small question in this time would not serve a fetch either."""


def check_up(settings: Settings) -> Iterator[Check]:
    """Every check, in the order they are shown; each is made when it is asked for."""
    yield from _disk("cache.dir", settings.cache_dir)
    yield from _same_disk(settings) or _disk("home", settings.home)
    home_fault = _home_fault(settings.home)
    for folder in settings.local_folders:
        if not folder.is_dir():
            remedy = "Mount or make it, or take it out: `edgecdn config set local.folders DIR ...`."
            yield Check("local.folders", State.WARN, f"{folder} is not there", remedy)
    heard = [] if settings.offline else asyncio.run(_hear_all(settings))
    yield from diagnosis.endpoints(heard, offline=os.environ.get("HF_HUB_OFFLINE", ""))
    yield diagnosis.clock(heard[0] if heard else None)
    yield from check_lab(settings, home_fault)
    yield diagnosis.token(
        present=user_token() is not None, owner=token_owner(settings.hub_endpoints, settings.hub_token_for)
    )
    yield from diagnosis.cache(list(oddities(settings.cache_dir)))
    yield _quarantine(settings.home / "quarantine")
    yield _catalog(settings.home, home_fault)
    yield _versions()


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _same_disk(settings: Settings) -> list[Check]:
    """That the home shares the cache's full disk: said once, not twice; else nothing."""
    cache, home = _there(settings.cache_dir), _there(settings.home)
    if cache.stat().st_dev != home.stat().st_dev or not diagnosis.is_full(shutil.disk_usage(home).free):
        return []
    remedy = "The same remedy; or put the home on another disk: EDGECDN_HOME=DIR."
    shared = Check("home space", State.FAIL, f"on the same full disk ({settings.home})", remedy, NoSpace.exit_code)
    may_write = os.access(home, os.W_OK | os.X_OK)
    return [shared, diagnosis.writable("home", settings.home, is_folder=home.is_dir(), may_write=may_write)]


def _home_fault(home: Path) -> str:
    """What keeps the home from being written, which explains much else; empty where nothing does."""
    there = _there(home)
    if diagnosis.is_full(shutil.disk_usage(there).free):
        return "the disk of the home is full"
    return "" if os.access(there, os.W_OK | os.X_OK) else "the home cannot be written"


def _disk(what: str, folder: Path) -> Iterator[Check]:
    there = _there(folder)
    usage = shutil.disk_usage(there)
    seen = os.statvfs(there)
    yield diagnosis.space(what, folder, usage.free, usage.total)
    yield diagnosis.inodes(what, folder, seen.f_favail, seen.f_files)
    yield diagnosis.writable(what, folder, is_folder=there.is_dir(), may_write=os.access(there, os.W_OK | os.X_OK))


async def _hear_all(settings: Settings) -> list[Heard]:
    client = ByteClient()
    hub = f"/api/models/{DEFAULT_REPO.name}"
    asked = [(endpoint, URL(endpoint + hub)) for endpoint in settings.hub_endpoints]
    if settings.hub_modelscope:
        asked.append((settings.hub_modelscope, URL(f"{settings.hub_modelscope}/api/v1/models/{DEFAULT_REPO.name}")))
    try:
        return await asyncio.gather(*(_hear(client, endpoint, url) for endpoint, url in asked))
    finally:
        await client.close()


async def _hear(client: ByteClient, endpoint: str, url: URL) -> Heard:
    started = time.monotonic()
    try:
        async with asyncio.timeout(_ANSWER_S), client.get(url, {}) as (response, _):
            is_hub = response.content_type == "application/json" or "X-Error-Code" in response.headers
            latency_ms = (time.monotonic() - started) * 1000
            offset_s = _offset_s(response.headers.get("Date", ""))
            return Heard(endpoint, "", response.status, is_hub, latency_ms, offset_s)
    except TimeoutError:
        return Heard(endpoint, f"does not answer within {_ANSWER_S:.0f} s")
    except SourceFault as fault:
        return Heard(endpoint, str(fault))


def _offset_s(date: str) -> float | None:
    """How far this machine's clock is ahead of a Date header, seconds."""
    try:
        said = parsedate_to_datetime(date)
    except ValueError:
        return None
    said = said if said.tzinfo else said.replace(tzinfo=UTC)
    return (datetime.now(tz=UTC) - said).total_seconds()


def _quarantine(folder: Path) -> Check:
    sizes = [path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    count = f"{len(sizes)} file" if len(sizes) == 1 else f"{len(sizes)} files"
    if not sizes:
        return Check("quarantine", State.OK, f"empty ({folder})")
    remedy = "Look whether you need them; `edgecdn gc --quarantine` removes them."
    return Check("quarantine", State.WARN, f"{count}, {sum(sizes) / 1e6:.1f} MB in {folder}", remedy)


def _catalog(home: Path, home_fault: str) -> Check:
    catalog = Catalog(home)
    if not catalog.path.exists():
        return Check("catalog", State.OK, "not begun yet")
    said = catalog.check()
    catalog.close()
    return diagnosis.catalog(said, rebuilt=catalog.rebuilt, home_fault=home_fault)


def _versions() -> Check:
    names = ("edgecdn", "huggingface_hub", "hf_xet", "aiohttp")
    found = {dist: _version(dist) for dist in names}
    return diagnosis.versions(platform.python_version(), found)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
