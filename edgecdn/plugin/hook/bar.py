"""Progress as the library shows it."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Bar"]


class Bar:
    """One bar, made when there is something to show; never the reason why anything fails.

    `kind`: the class the caller asked for; None: the library's own, which knows when it is switched off.
    """

    def __init__(self, title: str, kind: Any) -> None:
        self._title, self._kind, self._shown = title, kind, 0
        self._bar: Any = None

    def show(self, told: dict[str, Any]) -> None:
        """What the agent told."""
        try:
            done, total = int(told.get("done_bytes") or 0), int(told.get("total_bytes") or 0)
            if self._bar is None and total:
                self._bar = self._made(total)
            if self._bar is not None and done > self._shown:
                self._bar.update(done - self._shown)
                self._shown = done
        except Exception:
            self._bar = None

    def _made(self, total: int) -> Any:
        import logging

        library: Any = sys.modules["huggingface_hub.utils.tqdm"]
        kind = self._kind or library.tqdm
        named = {"name": "huggingface_hub.http_get"} if kind is library.tqdm else {}
        off = library.is_tqdm_disabled(logging.getLogger("huggingface_hub").getEffectiveLevel())
        title = self._title if len(self._title) <= 40 else f"(…){self._title[-40:]}"
        return kind(unit="B", unit_scale=True, total=total, initial=0, desc=title, disable=off, **named)

    def close(self) -> None:
        """It is over."""
        if self._bar is not None:
            self._bar.close()
