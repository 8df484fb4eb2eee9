"""Which bytes of a file a request asks for, by its Range, If-Range and If-None-Match headers. Pure; no I/O.

What RFC 9110 lets a server ignore is ignored, and the whole file given: several ranges, other units,
what is no range at all. Who resumes then begins anew, and nobody fails.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgecdn.spans import Span

__all__ = ["Asked", "FromOffset", "NotModified", "Part", "Unsatisfiable", "Whole", "asked_for"]

_RANGE = re.compile(r"bytes=[ \t]*(?P<first>\d*)[ \t]*-[ \t]*(?P<last>\d*)[ \t]*\Z", re.ASCII | re.IGNORECASE)
_BEYOND = 10**19
"""More than any file has; what numbers with more digits are taken for."""


@dataclass(frozen=True, slots=True)
class Whole:
    """All of it, as 200."""


@dataclass(frozen=True, slots=True)
class FromOffset:
    """From `start` to the end, as 206: a download, begun or resumed."""

    start: int


@dataclass(frozen=True, slots=True)
class Part:
    """A piece out of it, as 206: what is in it is looked at, and mostly no download follows."""

    span: Span


@dataclass(frozen=True, slots=True)
class Unsatisfiable:
    """There are no such bytes: 416."""


@dataclass(frozen=True, slots=True)
class NotModified:
    """The caller has these very bytes: 304."""


Asked = Whole | FromOffset | Part | Unsatisfiable | NotModified


def asked_for(
    range_: str | None, size: int, etag: str, *, if_range: str | None = None, if_none_match: str | None = None
) -> Asked:
    """What is asked of a file of `size` bytes whose (quoted, strong) tag is `etag`.

    A Range on top of other bytes than ours (`if_range`) gets the whole file, and so does one that is not
    understood. One range for the whole file is a download from its beginning.
    """
    if if_none_match is not None and _matches(if_none_match, etag):
        return NotModified()
    if range_ is None or (if_range is not None and if_range.strip() != etag):
        return Whole()
    match = _RANGE.match(range_.strip())
    if match is None or not (match["first"] or match["last"]):
        return Whole()
    if not match["first"]:
        return _last(_number(match["last"]), size)
    return _between(_number(match["first"]), _number(match["last"]) if match["last"] else _BEYOND, size)


def _between(first: int, last: int, size: int) -> Asked:
    """From `first` to `last`, which is included; to the end without it."""
    if last < first:
        return Whole()
    if first >= size:
        return Unsatisfiable()
    if last >= _BEYOND or (first == 0 and last >= size - 1):
        return FromOffset(first)
    return Part(Span(first, min(size, last + 1)))


def _last(count: int, size: int) -> Asked:
    """The last `count` bytes."""
    if not count:
        return Unsatisfiable()
    if not size:
        return Whole()
    return FromOffset(0) if count >= size else Part(Span(size - count, size))


def _number(digits: str) -> int:
    """Never more than `_BEYOND`: a header is long enough for numbers that take long to read."""
    short = digits.lstrip("0") or "0"
    return _BEYOND if len(short) >= len(str(_BEYOND)) else int(short)


def _matches(tags: str, etag: str) -> bool:
    """Whether an If-None-Match names `etag`. A weak tag counts for no file that is compared byte by byte."""
    return any(tag.strip() in ("*", etag) for tag in tags.split(","))
