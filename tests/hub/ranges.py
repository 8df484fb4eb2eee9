"""Single byte ranges, as the Hub and its CDN honour them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SINGLE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes [start, end)."""

    start: int
    end: int


def parse_range(header: str | None, size: int) -> Span | None:
    """Return the span asked for, None for the whole; ValueError when it cannot be satisfied.

    1. no header, or several ranges (which a server may ignore): the whole
    2. a-b and a-: cut at the end; unsatisfiable behind the end
    3. -n: the last n bytes
    """
    if header is None or "," in header:
        return None
    found = _SINGLE.fullmatch(header.replace(" ", ""))
    if found is None or found.group(0) == "bytes=-":
        raise ValueError(header)
    first, last = found.groups()
    if not first:
        span = Span(max(0, size - int(last)), size)
    else:
        span = Span(int(first), min(size, int(last) + 1 if last else size))
    if span.start >= span.end:
        raise ValueError(header)
    return span
