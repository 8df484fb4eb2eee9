"""What the hook knows of huggingface_hub: where it asks, what its addresses mean, what it is about to do."""

from __future__ import annotations

import os
import sys

from edgecdn.plugin.hook.agent import Agent, Asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "FILES_MODULE",
    "HTTP_MODULE",
    "Call",
    "below_endpoint",
    "cache_folder",
    "caller",
    "constants",
    "download_call",
    "endpoint",
    "is_cached",
    "is_offline",
    "is_read",
    "named_repo",
]

HTTP_MODULE, FILES_MODULE = "huggingface_hub.utils._http", "huggingface_hub.file_download"
DOWNLOADS = ("_hf_hub_download_to_cache_dir", "_hf_hub_download_to_local_dir")
SINGULAR = {"datasets": "dataset", "spaces": "space", "kernels": "kernel"}
FILE = r"/(?:(datasets|spaces|kernels)/)?([^/?]+(?:/[^/?]+)?)/resolve/([^/?]+)/([^?]+)"
API = (
    r"/api/(models|datasets|spaces)(?=[/?]|$)"
    r"(?:/([^/?]+(?:/(?!(?:revision|tree)/)[^/?]+)?)(?:/(?:revision|tree)/([^/?]+))?)?"
)
NOT_READS = ("/xet-", "/settings", "/jwt", "/user-access")


def constants() -> Any:
    """The library's settings."""
    return sys.modules["huggingface_hub.constants"]


def endpoint() -> str:
    """The hub this process uses."""
    return str(constants().ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """HF_HUB_OFFLINE, as the library understood it."""
    return bool(getattr(constants(), "HF_HUB_OFFLINE", False))


def below_endpoint(url: str) -> str | None:
    """Path and query of what is asked of the hub; None for what goes elsewhere."""
    base = endpoint()
    return url[len(base) :] if url.startswith(base + "/") else None


def is_read(asked: Asked) -> bool:
    """Whether this only reads of repos: nothing else goes to the agent."""
    import re

    if asked.method == "POST":
        return asked.target.startswith("/api/") and "/paths-info/" in asked.target
    if asked.method not in ("GET", "HEAD"):
        return False
    if re.match(FILE, asked.target):
        return True
    return bool(re.match(API, asked.target)) and not any(word in asked.target for word in NOT_READS)


def named_repo(target: str) -> tuple[str, str, str, str] | None:
    """Type, name, revision and path (or nothing) that a request is about."""
    import re
    from urllib.parse import unquote

    found = re.match(FILE, target) or re.match(API, target)
    if found is None or not found[2]:
        return None
    path = found[4] if found.re.groups == 4 else ""
    return SINGULAR.get(found[1], "model"), unquote(found[2]), unquote(found[3] or "main"), unquote(path)


def cache_folder(local: Any) -> str:
    """The cache that a function of the library works in: what it was told, else HF_HUB_CACHE."""
    return os.path.abspath(os.path.expanduser(str(local.get("cache_dir") or constants().HF_HUB_CACHE)))


def caller(module: str, functions: tuple[str, ...]) -> Any:
    """The variables of the nearest of these functions that this thread is in; None: in none of them."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in functions and frame.f_globals.get("__name__") == module:
            return frame.f_locals
        frame = frame.f_back
    return None


def is_cached(folder: str, revision: str, path: str) -> bool:
    """Whether a repo's folder has a file of what it last saw the revision at."""
    commit = revision
    try:
        with open(os.path.join(folder, "refs", *revision.split("/")), encoding="ascii") as file:
            commit = file.read(64).strip()
    except (OSError, ValueError):
        pass  # a commit, or never seen
    return os.path.exists(os.path.join(folder, "snapshots", commit, *path.split("/")))


class Call:
    """A download of one file that the library is about to begin. `message`: what the agent is told of it."""

    def __init__(self, asked: Asked, named: tuple[str, str, str, str], local: Any) -> None:
        kind, repo, self._revision, self.path = named
        self.cache_dir = cache_folder(local)
        self.bars = local.get("tqdm_class")
        stored_as = str(local.get("repo_id") or repo)  # a repo that has another name now stays where it was
        self._folder = os.path.join(self.cache_dir, "--".join([kind + "s", *stored_as.split("/")]))
        self.message: dict[str, Any] = {"type": kind, "repo": repo, "revision": self._revision, "path": self.path}
        self.message.update(cache_dir=self.cache_dir, stored_as=stored_as, token=asked.token)

    @property
    def is_cached(self) -> bool:
        """Whether the cache has the file, perhaps of an older commit."""
        return is_cached(self._folder, self._revision, self.path)

    def has_blob(self, etag: str) -> bool:
        """Whether the cache has the bytes of this ETag."""
        name = etag.replace("W/", "").strip('"')
        return bool(name) and os.path.exists(os.path.join(self._folder, "blobs", name))


def download_call(asked: Asked, agent: Agent) -> Call | None:
    """The download that this HEAD begins; None for one that only looks (`file_exists`, dry runs, plain metadata)."""
    local: Any = (caller(FILES_MODULE, DOWNLOADS) if asked.method == "HEAD" else None) or {"dry_run": True}
    named = named_repo(asked.target)
    if named is None or not named[3] or named[0] == "kernel" or local.get("dry_run") or local.get("force_download"):
        return None
    call = Call(asked, named, local)
    if local.get("local_dir") and os.path.realpath(call.cache_dir) != os.path.realpath(agent.cache_dir):
        return None  # it goes to another place than the cache: its bytes come by the gateway
    return call
