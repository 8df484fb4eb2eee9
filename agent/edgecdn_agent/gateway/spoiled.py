"""What clients may hold that is wrong: bytes given before they were proven. They must not resume on top of it.

Two things are remembered, by digest: that wrong bytes were given (who resumes then gets the whole file anew, until
the agent ends, and after that by `HandedOut`), and for a while, of downloads that broke off, on which delivery and
state of it their bytes stand. Who resumes later than that gets the whole file too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container

from edgecdn.digest import Digest
from edgecdn.lately import Lately
from edgecdn_agent.deliver.delivery import Delivery, DeliveryState

__all__ = ["Spoiled"]

_REMEMBERED_S = 600.0
"""Clients resume within seconds, after a minute at most."""


class Spoiled:
    """On one event loop. `given`: those of which somebody may have bytes that nobody has proven."""

    def __init__(
        self,
        given: Container[Digest] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
        remembered_s: float = _REMEMBERED_S,
    ) -> None:
        self._given = given
        self._wrong: set[Digest] = set()
        self._broke_off: Lately[tuple[Delivery, int]] = Lately(remembered_s, clock)

    def note(self, digest: Digest) -> None:
        """Bytes were given of it that are wrong, or may never be proven."""
        self._wrong.add(digest)
        self._broke_off.pop(digest)

    def broke_off(self, digest: Digest, delivery: Delivery, mark: int) -> None:
        """Somebody got unproven bytes of `delivery` while its mark was `mark`, and may come back for the rest.

        The first counts until it is forgotten: what it has stood the fewest changes.
        """
        self._broke_off.put(digest, self._broke_off.get(digest) or (delivery, mark))

    def is_awaited(self, digest: Digest) -> bool:
        """Whether somebody's download of it broke off lately."""
        return self._broke_off.get(digest) is not None

    def is_spoiled(self, digest: Digest) -> bool:
        """Whether whoever resumes must get the whole file."""
        return digest in self._wrong or (digest in self._given and self._broke_off.get(digest) is None)

    def resumes_wrong(self, digest: Digest, current: Delivery | None) -> bool:
        """Whether who resumes a download now may stand on bytes that were taken back meanwhile.

        It does not when its delivery is still the `current` one, or was proven, and took nothing back.
        """
        known = self._broke_off.get(digest)
        if known is None:
            return False
        delivery, mark = known
        return delivery.mark != mark or not (delivery is current or delivery.state is DeliveryState.HERE)
