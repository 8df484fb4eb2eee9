"""Who wants to be told: a list of callbacks that cannot break the one who tells."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Listeners"]

_log = logging.getLogger(__name__)

_Event = TypeVar("_Event")


class Listeners(Generic[_Event]):
    """Callbacks for events of one kind, called on the loop in the order they came."""

    def __init__(self) -> None:
        self._callbacks: dict[object, Callable[[_Event], None]] = {}

    def subscribe(self, callback: Callable[[_Event], None]) -> Callable[[], None]:
        """Call `callback` with every event from now on; returns what ends that."""
        key = object()
        self._callbacks[key] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(key, None)

        return unsubscribe

    def tell(self, event: _Event) -> None:
        """Call all; one that fails is logged and the others are called all the same."""
        for callback in list(self._callbacks.values()):
            try:
                callback(event)
            except Exception:  # noqa: BLE001 - logged; the teller's work is not the listener's
                _log.exception("a listener failed event=%s", type(event).__name__)
