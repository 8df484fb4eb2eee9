"""edgecdn: model files for a lab, fetched once, verified always, shared by everyone.

`edgecdn.fetch("qwen-7b")` brings a model into the Hugging Face cache and returns where it is.
Importing this package loads nothing heavy; its names are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgecdn.version import VERSION

if TYPE_CHECKING:
    from edgecdn.client import fetch, fetch_async
    from edgecdn.errors import EdgecdnError
    from edgecdn.pipeline import Fetched

__version__ = VERSION
__all__ = ["EdgecdnError", "Fetched", "__version__", "fetch", "fetch_async"]

_HOMES = {
    "EdgecdnError": "edgecdn.errors",
    "Fetched": "edgecdn.pipeline",
    "fetch": "edgecdn.client",
    "fetch_async": "edgecdn.client",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgecdn' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
