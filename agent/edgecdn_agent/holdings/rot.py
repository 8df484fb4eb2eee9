"""A blob that may have rotted: hashed again, and set aside when it has. Blocking; called in threads."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from threading import Event

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.inventory import check_blob, set_aside
from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.errors import CacheRefused, ReadOnlyStore
from edgecdn.pipeline import partials_dir
from edgecdn.settings import Settings
from edgecdn.upkeep.housekeeping import job_lock
from edgecdn_agent.holdings.held_files import Holding

__all__ = ["recheck_file"]

_log = logging.getLogger(__name__)


def recheck_file(settings: Settings, catalog: Catalog, holding: Holding, stop: Event) -> bool:
    """Whether a blob still has its bytes, whatever was remembered of it.

    Wrong twice in a row, it is moved to the quarantine, as a fetch would do it; nothing is deleted.
    Raises Interrupted soon after `stop` is set.
    """
    with suppress(FileNotFoundError, CacheRefused), open_repo(settings.cache_dir, holding.repo) as store:
        found = None
        for _ in range(2):
            found = check_blob(store, catalog, holding.digest, holding.size, lambda: None, again=True, stop=stop)
            if found is None or found.right:
                return found is not None
        if found is not None:
            kept = _set_aside(settings, store, catalog, holding, found.seen)
            _log.warning("a blob is not what its name says path=%s kept=%s", holding.path, kept)
    return False


def _set_aside(
    settings: Settings, store: RepoStore, catalog: Catalog, holding: Holding, seen: os.stat_result
) -> Path | None:
    catalog.forget(holding.path)
    with suppress(ReadOnlyStore), partials_dir(settings, store) as state, job_lock(state) as free:
        if free:  # else a fetch of the repo runs, and checks by itself
            return set_aside(store, catalog, holding.digest, settings.home, seen)
    return None
