"""What was noted a short while ago, and no more of it than fits: for memories that must not grow without end."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Lately"]

_MOST = 4096
_T = TypeVar("_T")


class Lately(Generic[_T]):
    """What was noted within the last `for_s` seconds; of more than `most` the oldest are forgotten."""

    def __init__(self, for_s: float, clock: Callable[[], float] = time.monotonic, most: int = _MOST) -> None:
        self._clock = clock
        self._for_s = for_s
        self._most = most
        self._known: OrderedDict[Hashable, tuple[float, _T]] = OrderedDict()

    def get(self, key: Hashable) -> _T | None:
        """What was noted last."""
        self._forget()
        known = self._known.get(key)
        return known[1] if known else None

    def put(self, key: Hashable, value: _T) -> None:
        """Note it."""
        self._known[key] = (self._clock(), value)
        self._known.move_to_end(key)
        self._forget()

    def pop(self, key: Hashable) -> None:
        """Forget it."""
        self._known.pop(key, None)

    def __len__(self) -> int:
        return len(self._known)

    def _forget(self) -> None:
        over_s = self._clock() - self._for_s
        while self._known and (len(self._known) > self._most or next(iter(self._known.values()))[0] <= over_s):
            self._known.popitem(last=False)
