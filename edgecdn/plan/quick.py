"""How much to ask for at once of a file that somebody reads as it comes. Pure.

What can be read ends where the slowest of the first requests is: with long ones the reader gets what one
connection brings, not what all do. Short ones cost a round trip each, which is little against `_ENDS_IN_S`.
"""

from __future__ import annotations

from edgecdn.plan.state import SourceState
from edgecdn.spans import SEGMENT_BYTES

__all__ = ["quick_stop"]

_ENDS_IN_S = 2.0
"""How long a request should take, seconds."""

_LEAST_BYTES = 128 << 10
"""Also of a source of which no rate is known yet: the first answer tells, and then requests grow at once."""


def quick_stop(start: int, source: SourceState, now: float) -> int:
    """Where a request of `source` that begins (or is) at `start` had better end: at a multiple of 128 KiB."""
    rate = source.meter.rate(now) / max(1, source.window.size)  # not by those under way: several may just have ended
    wanted = min(SEGMENT_BYTES, max(_LEAST_BYTES, int(rate * _ENDS_IN_S)))
    return -(-(start + wanted) // _LEAST_BYTES) * _LEAST_BYTES
