"""A blob that may have rotted: hashed again, and set aside when it has and edgecdn brought it. Blocking, in threads."""

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
from edgecdn_agent.holdings.held_files import Holding, open_held

__all__ = ["recheck_file"]

_log = logging.getLogger(__name__)


def recheck_file(settings: Settings, catalog: Catalog, holding: Holding, stop: Event) -> bool:
    """Whether a blob still has its bytes, whatever was remembered of it.

    Only the very file that `holding` tells of is looked at: what stands there instead of it is somebody else's.
    Wrong twice in a row, it is moved to the quarantine, as a fetch would do it, if edgecdn brought it; a
    file of the user stays where it is. Nothing is deleted. Raises Interrupted soon after `stop` is set.
    """
    with suppress(FileNotFoundError, CacheRefused), open_repo(settings.cache_dir, holding.repo) as store:
        os.close(open_held(settings.cache_dir, holding))
        found = None
        for _ in range(2):
            found = check_blob(store, catalog, holding.digest, holding.size, lambda: None, again=True, stop=stop)
            if found is None or not holding.is_file(found.seen):
                return False
            if found.right:
                return True
        if found is not None:
            kept = _put_away(settings, store, catalog, holding, found.seen)
            _log.warning("a blob is not what its name says path=%s kept=%s", holding.path, kept or "where it is")
    return False


def _put_away(
    settings: Settings, store: RepoStore, catalog: Catalog, holding: Holding, seen: os.stat_result
) -> Path | None:
    was_brought = catalog.was_brought(holding.path, holding.path.lstat())  # to be asked before it is forgotten
    catalog.forget(holding.path)
    return _set_aside(settings, store, catalog, holding, seen) if was_brought else None


def _set_aside(
    settings: Settings, store: RepoStore, catalog: Catalog, holding: Holding, seen: os.stat_result
) -> Path | None:
    with suppress(ReadOnlyStore), partials_dir(settings, store) as state, job_lock(state) as free:
        if free:  # else a fetch of the repo runs, and checks by itself
            return set_aside(store, catalog, holding.digest, settings.home, seen)
    return None
