"""Joins the modules of `edgecdn.plugin.hook` into the one file that enters a user's environment.

They are written for it: standard library only, every name used once, imports of each other on top.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgecdn.version import VERSION

__all__ = ["MARKER", "hook_source", "pth_source"]

MARKER = "# edgecdn hook"
"""How both files begin: what begins otherwise is not ours, and left alone."""

_PARTS = ("agent", "library", "again", "bar", "guide", "offline", "httpx_client", "requests_session", "finder")
_HEAD = f'''{MARKER} {VERSION}
"""huggingface_hub in this Python asks the edgecdn agent of its user first; EDGECDN_DISABLE=1 switches it off.

Put here by `edgecdn hook install`; `edgecdn hook remove` takes it away. Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from typing import Any

__all__ = ["IntegrityError", "enable", "guide"]
'''
_PTH = f'{MARKER} {VERSION}: `edgecdn hook remove` takes it away\nimport os; exec("{{}}")\n'
_GUARDED = (
    r"try:\n if os.environ.get('EDGECDN_DISABLE', '') in ('', '0'):\n  import edgecdn_hook\n  edgecdn_hook.enable()\n"
    r"except Exception:\n pass"
)


def hook_source() -> str:
    """The text of `edgecdn_hook.py`."""
    folder = Path(__file__).parent / "hook"
    return "\n\n".join([_HEAD, *(_body((folder / f"{part}.py").read_text(encoding="utf-8")) for part in _PARTS)])


def pth_source() -> str:
    """The text of `edgecdn_hook.pth`: nothing that happens in it keeps a Python from starting."""
    return _PTH.format(_GUARDED)


def _body(text: str) -> str:
    """What follows a module's `__all__`."""
    return re.split(r"^__all__ = \[[^\]]*\]\n", text, maxsplit=1, flags=re.MULTILINE)[1].strip() + "\n"
