"""Deciding what an answer looks like on the wire once the faults have had their say."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field, replace

from tests.hub.answers import Answer
from tests.hub.content import Source, read_range, size_of
from tests.hub.faults import Active, Kind
from tests.hub.ranges import Span, parse_range

PORTAL_PAGE = b"<!doctype html><html><body><h1>Please log in to the network</h1></body></html>\n"


@dataclass(frozen=True, slots=True)
class Shape:
    """Status, headers and the span of the source to send; `length` is what is announced."""

    status: int
    headers: dict[str, str]
    body: Source
    span: Span
    length: int | None
    content_type: str
    flip: range = field(default=range(0))  # offsets in the file whose bytes are inverted


def shape(answer: Answer, range_header: str | None, if_range: str | None, active: Active) -> Shape:
    """Work out one response."""
    etag = _etag(answer, active)
    headers = _headers(answer, etag, active)
    size = max(0, size_of(answer.body) + _delta(active, Kind.WRONG_LENGTH))
    if not answer.ranged or Kind.IGNORE_RANGE in active or if_range not in (None, f'"{etag}"'):
        range_header = None
    status = answer.status
    try:
        span = parse_range(range_header, size)
    except ValueError:
        headers["Content-Range"] = f"bytes */{size}"
        return Shape(416, headers, b"", Span(0, 0), 0, "text/plain")
    if span is not None:
        off = _delta(active, Kind.WRONG_CONTENT_RANGE)
        headers["Content-Range"] = f"bytes {span.start + off}-{span.end - 1 + off}/{size}"
        status = answer.range_status
    span = span or Span(0, size)
    span = Span(span.start, span.end + _delta(active, Kind.LONG_BODY))
    length = span.end - span.start
    result = Shape(status, headers, answer.body, span, length, answer.content_type)
    return _disguise(result, active, size)


def _delta(active: Active, kind: Kind) -> int:
    return active[kind].delta if kind in active else 0


def _etag(answer: Answer, active: Active) -> str | None:
    if answer.etag is None or Kind.WRONG_ETAG not in active:
        return answer.etag
    return answer.etag[::-1]


def _headers(answer: Answer, etag: str | None, active: Active) -> dict[str, str]:
    headers = dict(answer.headers)
    if etag is not None:
        headers["ETag"] = f'"{etag}"'
        if "X-Linked-Etag" in headers:
            headers["X-Linked-Etag"] = f'"{etag}"'
    if "X-Linked-Size" in headers:
        size = int(headers["X-Linked-Size"]) + _delta(active, Kind.WRONG_LENGTH)
        headers["X-Linked-Size"] = str(size)
        if Kind.NO_CONTENT_LENGTH in active:
            del headers["X-Linked-Size"]
    if answer.ranged:
        headers["Accept-Ranges"] = "bytes"
    return headers


def _disguise(plain: Shape, active: Active, size: int) -> Shape:
    if Kind.WRONG_BYTES in active:
        offset = active[Kind.WRONG_BYTES].offset
        flip = range(size) if offset is None else range(offset, offset + 1)
        plain = replace(plain, flip=flip)
    if Kind.GZIP in active:
        body = gzip.compress(read_piece(plain, plain.span.start, plain.span.end), 1, mtime=0)
        headers = {**plain.headers, "Content-Encoding": "gzip"}
        whole = Span(0, len(body))
        plain = Shape(plain.status, headers, body, whole, len(body), plain.content_type)
    if Kind.NO_CONTENT_LENGTH in active:
        plain = replace(plain, length=None)
    return plain


def read_piece(shaped: Shape, start: int, end: int) -> bytes:
    """Read part of the span: padded behind the end of the source, inverted where flipped."""
    data = read_range(shaped.body, start, end).ljust(end - start, b"\0")
    first, last = max(start, shaped.flip.start), min(end, shaped.flip.stop)
    if first >= last:
        return data
    inverted = bytes(byte ^ 0xFF for byte in data[first - start : last - start])
    return data[: first - start] + inverted + data[last - start :]
