"""Sees huggingface_hub come, and puts the hook into it."""

from __future__ import annotations

import os
import sys

from edgecdn.plugin.hook.guide import guide
from edgecdn.plugin.hook.httpx_client import register_httpx
from edgecdn.plugin.hook.library import FILES_MODULE, HTTP_MODULE
from edgecdn.plugin.hook.offline import wrap_lookup
from edgecdn.plugin.hook.requests_session import register_requests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["enable"]

NOT_SET = ("", "0", "off", "no", "false")


def enable() -> bool:
    """Have huggingface_hub of this process ask the agent; False where EDGECDN_DISABLE says no."""
    if os.environ.get("EDGECDN_DISABLE", "").strip().lower() not in NOT_SET:
        return False
    if not any(getattr(finder, "is_edgecdn", False) for finder in sys.meta_path):
        finder: Any = Finder()
        sys.meta_path.insert(0, finder)
    for name in (HTTP_MODULE, FILES_MODULE):
        module = sys.modules.get(name)
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            loaded(module)
    return True


def loaded(module: Any) -> None:
    """A module of the library is there. Whatever does not fit here, the library works as without us."""
    try:
        if "edgecdn" in module.__dict__:
            return
        module.edgecdn = guide
        if module.__name__ == FILES_MODULE:
            wrap_lookup(module)
            return
        if hasattr(module, "set_client_factory"):
            register_httpx(module)
        else:
            register_requests(module)
        guide.agent()  # Xet is off from the first request on: listings kept by a download without us skip the HEADs
    except Exception as error:
        if os.environ.get("HF_DEBUG"):
            sys.stderr.write(f"edgecdn: the hook does not fit this huggingface_hub: {error!r}\n")


class Finder:
    """Passes over all but two modules, which are found by those that find modules anyway."""

    is_edgecdn = True

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec that others find, with our loader around theirs."""
        if name not in (HTTP_MODULE, FILES_MODULE):
            return None
        for finder in sys.meta_path:
            found: Any = None if isinstance(finder, Finder) else finder.find_spec(name, path, target)
            if found is not None:
                if found.loader is not None:
                    found.loader = Loader(found.loader)
                return found
        return None


class Loader:
    """Loads as the one it stands for, then has the hook put in."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def exec_module(self, module: Any) -> None:
        """Run the module."""
        module.__spec__.loader = module.__loader__ = self._inner
        self._inner.exec_module(module)
        loaded(module)
