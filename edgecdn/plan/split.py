"""Taking over the tail of a slow request. Pure.

Near the end of a file, or when a source stalls, a connection with nothing to do takes part of what
another still has to bring: no byte is asked for twice, so a hedge costs only what was already in
the slow connection's buffers.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgecdn.plan.state import Lease, SourceState
from edgecdn.spans import UNIT_BYTES, Span

__all__ = ["STALLED_S", "choose_split"]

STALLED_S = 2.0
"""Without a byte for this long, a request's rest may go to another source."""

_WORTH_S = 1.0
"""A request that ends sooner than this is left alone."""


_LONGEST_TAIL_S = 3.0
_MUCH_SOONER = 4
"""What was in the slow connection's buffers comes twice: that has to be worth it."""


def choose_split(thief: SourceState, leases: Iterable[Lease], now: float) -> tuple[Lease, Span] | None:
    """The request whose rest `thief` should share, and which bytes; None when nothing is worth it."""
    best: tuple[float, Lease, Span] | None = None
    for lease in leases:
        if lease.blob not in thief.offered or lease.blob in thief.whole_only or lease.revoked or lease.whole:
            continue
        found = _share(thief, lease, now)
        if found is not None and (best is None or found[0] > best[0]):
            best = (found[0], lease, found[1])
    return None if best is None else best[1:]


def _share(thief: SourceState, lease: Lease, now: float) -> tuple[float, Span] | None:
    same = lease.source is thief
    if lease.idle_s(now) >= STALLED_S:
        # 1. Stalled: all of it goes to another source; the same one is left to the watchdog.
        return None if same else (float("inf"), Span(lease.position, lease.stop))
    slow = max(lease.rate(now), 1.0)
    eta_s = lease.remaining / slow
    if eta_s < (2 * _WORTH_S if same else _WORTH_S):
        return None
    # 2. Slow: each goes on with what it will finish at the same time.
    fast = slow if same else (thief.connection_rate(now) or slow)
    kept = int(lease.remaining * slow / (slow + fast))
    cut = -(-(lease.position + kept) // UNIT_BYTES) * UNIT_BYTES
    if lease.stop - cut >= UNIT_BYTES:
        return eta_s, Span(cut, lease.stop)
    # 3. A last unit that trickles: another source that has all of it much sooner takes it over.
    trickles = eta_s > _LONGEST_TAIL_S and lease.remaining / fast < eta_s / _MUCH_SOONER
    if trickles and not same and now - lease.granted_at >= STALLED_S:
        return eta_s, Span(lease.position, lease.stop)
    return None
