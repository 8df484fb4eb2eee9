"""Who may put a file together out of pieces, and whether all of those would be proven.

A piece comes from a delivery under way, or from the origin as without us. Some clients (aria2c, hf_transfer) make
a whole file of pieces. So that none is complete with bytes of a delivery that were never proven:

1. The withheld end of a file is not relayed while a delivery is under way: it comes when the file is proven.
2. Where the end was relayed a while ago, other pieces do not come from a delivery before it is proven.
3. Where bytes were taken back after pieces had been given, no more pieces are given for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edgecdn.digest import Digest
from edgecdn.lately import Lately
from edgecdn_agent.deliver.delivery import Delivery

__all__ = ["Parts"]

_REMEMBERED_S = 600.0
"""Whoever puts a file together asks for the next piece at once."""


class Parts:
    """What was given in pieces lately, by digest. On one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, remembered_s: float = _REMEMBERED_S) -> None:
        self._given: Lately[tuple[Delivery, int]] = Lately(remembered_s, clock)
        self._ends: Lately[bool] = Lately(remembered_s, clock)

    def gave(self, digest: Digest, delivery: Delivery, mark: int) -> None:
        """A piece of an unproven delivery was given while its mark was `mark`; the first counts."""
        self._given.put(digest, self._given.get(digest) or (delivery, mark))

    def relayed_end(self, digest: Digest) -> None:
        """The end of the file, or a part of it, was relayed."""
        self._ends.put(digest, True)

    def may_be_unproven(self, digest: Digest) -> bool:
        """Whether pieces may come from a delivery that is not proven yet (rule 2)."""
        return self._ends.get(digest) is None

    def would_mix(self, digest: Digest) -> bool:
        """Whether a client may have pieces that were taken back meanwhile (rule 3)."""
        given = self._given.get(digest)
        return given is not None and given[0].mark != given[1]
