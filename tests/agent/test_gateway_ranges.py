"""Which bytes a Range asks for: what RFC 9110 says, and never a failure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecdn.spans import Span
from edgecdn_agent.gateway.ranges import Asked, FromOffset, NotModified, Part, Unsatisfiable, Whole, asked_for

ETAG = '"abc"'
SIZE = 1000

# FAULTS 9 is all of it: several ranges, inverted, overflow.
TABLE: list[tuple[str | None, Asked]] = [
    (None, Whole()),
    ("bytes=0-", FromOffset(0)),
    ("bytes=10-", FromOffset(10)),
    ("bytes=999-", FromOffset(999)),
    ("bytes=1000-", Unsatisfiable()),
    ("bytes=0-0", Part(Span(0, 1))),
    ("bytes=10-19", Part(Span(10, 20))),
    ("BYTES= 10 - 19 ", Part(Span(10, 20))),
    ("bytes=10-5000", Part(Span(10, 1000))),
    ("bytes=0-999", FromOffset(0)),
    ("bytes=0-998", Part(Span(0, 999))),
    ("bytes=-10", Part(Span(990, 1000))),
    ("bytes=-1000", FromOffset(0)),
    ("bytes=-5000", FromOffset(0)),
    ("bytes=-0", Unsatisfiable()),
    ("bytes=1000-1001", Unsatisfiable()),
    ("bytes=20-10", Whole()),
    ("bytes=-", Whole()),
    ("bytes=", Whole()),
    ("bytes=a-b", Whole()),
    ("bytes=0-1,5-6", Whole()),
    ("bytes=0-1,", Whole()),
    ("bytes=0x1-2", Whole()),
    ("bytes=-1-2", Whole()),
    ("bytes=+1-2", Whole()),
    ("bytes=١-٢", Whole()),
    ("items=0-1", Whole()),
    ("0-1", Whole()),
    ("bytes=99999999999999999999-", Unsatisfiable()),
    ("bytes=18446744073709551616-18446744073709551617", Unsatisfiable()),
    ("bytes=5-99999999999999999999", FromOffset(5)),
    ("bytes=0-" + "9" * 5000, FromOffset(0)),
    ("bytes=" + "9" * 5000 + "-", Unsatisfiable()),
    ("bytes=" + "0" * 5000 + "7-", FromOffset(7)),
    ("bytes=-" + "9" * 5000, FromOffset(0)),
]


@pytest.mark.parametrize(("header", "asked"), TABLE, ids=lambda value: str(value)[:30])
def test_what_is_asked(header: str | None, asked: Asked) -> None:
    assert asked_for(header, SIZE, ETAG) == asked


@pytest.mark.parametrize(
    ("header", "asked"), [("bytes=0-", Unsatisfiable()), ("bytes=-5", Whole()), ("bytes=0-0", Unsatisfiable())]
)
def test_of_an_empty_file(header: str, asked: Asked) -> None:
    assert asked_for(header, 0, ETAG) == asked


@pytest.mark.parametrize("other", ['"other"', 'W/"abc"', "Sat, 21 Nov 2026 00:00:00 GMT", "abc", ""])
def test_on_top_of_other_bytes_all_is_given(other: str) -> None:
    assert asked_for("bytes=10-", SIZE, ETAG, if_range=other) == Whole()
    assert asked_for("bytes=5000-", SIZE, ETAG, if_range=other) == Whole()


def test_on_top_of_the_same_bytes_the_rest_is_given() -> None:
    assert asked_for("bytes=10-", SIZE, ETAG, if_range=ETAG) == FromOffset(10)


@pytest.mark.parametrize(
    ("tags", "same"), [(ETAG, True), ('"x", "abc"', True), ("*", True), ('W/"abc"', False), ("", False)]
)
def test_who_has_it(tags: str, same: bool) -> None:
    asked = asked_for("bytes=10-", SIZE, ETAG, if_none_match=tags)
    assert asked == (NotModified() if same else FromOffset(10))


@given(st.text(max_size=40) | st.from_regex(r"bytes=\d*-\d*", fullmatch=True), st.integers(0, 1 << 44))
def test_never_beyond_the_file(header: str, size: int) -> None:
    match asked_for(header, size, ETAG):
        case FromOffset(start):
            assert 0 <= start < size
        case Part(span):
            assert 0 <= span.start < span.stop <= size
        case NotModified():
            raise AssertionError


@given(st.integers(0, 200), st.integers(0, 200), st.binary(min_size=1, max_size=150))
def test_a_range_is_the_slice(first: int, last: int, data: bytes) -> None:
    asked = asked_for(f"bytes={first}-{last}", len(data), ETAG)
    wanted = data[first : last + 1]
    match asked:
        case Part(span):
            assert data[span.start : span.stop] == wanted
        case FromOffset(start):
            assert data[start:] == wanted
        case Unsatisfiable():
            assert first >= len(data)
        case _:
            assert last < first
