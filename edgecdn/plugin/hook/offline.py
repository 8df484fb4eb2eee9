"""HF_HUB_OFFLINE: what the cache lacks may be in the lab, where the user allowed to look there.

Offline, the library refuses every request and looks in its cache instead. The moment before it looks is ours.
"""

from __future__ import annotations

import os

from edgecdn.plugin.hook.guide import guide
from edgecdn.plugin.hook.library import below_endpoint, cache_folder, caller, is_cached, is_offline, named_repo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["before_refusal", "wrap_lookup"]


def before_refusal(url: str) -> None:
    """The library is about to refuse a request because it is offline."""
    target = below_endpoint(url) if is_offline() else None
    named = named_repo(target) if target is not None else None
    if named is None:
        return
    local = caller("huggingface_hub._snapshot_download", ("snapshot_download",)) or {}
    whole = bool(local) and not local.get("allow_patterns") and not local.get("ignore_patterns")
    guide.place_snapshot(named[:3], cache_folder(local), every=whole)


def wrap_lookup(files: Any) -> None:
    """Callers that are offline ask for local files only, without any request: this is where those are looked up."""
    stock = getattr(files, "_get_metadata_or_catch_error", None)
    if stock is None or not is_offline():
        return

    def looked_up(*args: Any, **told: Any) -> Any:
        folder, path = told.get("storage_folder"), told.get("relative_filename")
        if folder and path and not is_cached(folder, told["revision"], path):
            named = (told["repo_type"], told["repo_id"], told["revision"])
            guide.place_snapshot(named, os.path.dirname(folder), every=False)
        return stock(*args, **told)

    files._get_metadata_or_catch_error = looked_up
