"""FAULTS 9, 20, 21, 50 and 51: every answer that is not the data asked for is named, and none is written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from edgecdn.names import CommitId
from edgecdn.sources.answers import check_body, check_identity, refuse_status, retry_after_s
from edgecdn.sources.faults import Broken, Busy, Denied, Misbehaved, Missing, NoRanges, SourceFault
from edgecdn.spans import Span
from tests.unit.made import COMMIT, git_file, lfs_file

SIZE = 1000
PART = Span(100, 200)
WHOLE = Span(0, SIZE)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("status", "headers", "span", "ranged", "skip"),
    [
        (206, {"Content-Range": "bytes 100-199/1000", "Content-Length": "100"}, PART, True, 0),
        (206, {"Content-Range": "bytes 100-199/1000"}, PART, True, 0),
        (206, {"Content-Range": "bytes 100-199/*"}, PART, True, 0),
        (200, {"Content-Range": "bytes 100-199/1000", "Content-Length": "100"}, PART, True, 0),
        (200, {"Content-Length": "1000"}, WHOLE, False, 0),
        (200, {}, WHOLE, False, 0),
        (200, {"Content-Length": "1000"}, PART, False, 100),
        (200, {"Content-Length": "1000", "Content-Type": "text/html"}, WHOLE, False, 0),
        (200, {"Content-Encoding": "identity"}, WHOLE, False, 0),
    ],
)
def test_good_bodies(status: int, headers: Mapping[str, str], span: Span, ranged: bool, skip: int) -> None:
    assert check_body(status, headers, span, SIZE, ranged=ranged) == skip


@pytest.mark.parametrize(
    ("status", "headers", "fault"),
    [
        # 9: another range than the one asked for
        (206, {}, Misbehaved),
        (206, {"Content-Range": ""}, Misbehaved),
        (206, {"Content-Range": "bytes 100-198/1000"}, Misbehaved),
        (206, {"Content-Range": "bytes 101-200/1000"}, Misbehaved),
        (206, {"Content-Range": "bytes 0-999/1000"}, Misbehaved),
        (206, {"Content-Range": "bytes 199-100/1000"}, Misbehaved),
        (206, {"Content-Range": "bytes 100-199/1001"}, Misbehaved),
        (206, {"Content-Range": "bytes */1000"}, Misbehaved),
        (206, {"Content-Range": "items 100-199/1000"}, Misbehaved),
        (206, {"Content-Range": "bytes 100-199/1000, bytes 300-399/1000"}, Misbehaved),
        (206, {"Content-Type": "multipart/byteranges; boundary=x"}, Misbehaved),
        (206, {"Content-Range": f"bytes {2**64}-{2**64 + 99}/1000"}, Misbehaved),
        # 20: the login page of a network
        (200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": "312"}, Misbehaved),
        (200, {"Content-Type": "text/html"}, Misbehaved),
        # 51: longer, shorter, packed
        (206, {"Content-Range": "bytes 100-199/1000", "Content-Length": "101"}, Misbehaved),
        (206, {"Content-Range": "bytes 100-199/1000", "Content-Length": "99"}, Misbehaved),
        (200, {"Content-Length": "1001"}, Misbehaved),
        (200, {"Content-Length": "999"}, Misbehaved),
        (206, {"Content-Range": "bytes 100-199/1000", "Content-Encoding": "gzip"}, Misbehaved),
        (200, {"Content-Length": "1000", "Content-Encoding": "BR"}, Misbehaved),
        # the whole file where a part was asked for
        (200, {"Content-Length": "1000"}, NoRanges),
        (200, {}, NoRanges),
    ],
)
def test_wrong_bodies(status: int, headers: Mapping[str, str], fault: type[SourceFault]) -> None:
    with pytest.raises(fault):
        check_body(status, headers, PART, SIZE, ranged=True)


@pytest.mark.parametrize("header", ["Content-Range", "X-Linked-Size"])
def test_numbers_of_5000_digits(header: str) -> None:
    with pytest.raises(SourceFault):
        if header == "Content-Range":
            check_body(206, {header: f"bytes {HUGE}-{HUGE}/1000"}, PART, SIZE, ranged=True)
        entry = lfs_file("m.safetensors", b"right")
        check_identity({"X-Linked-Etag": f'"{entry.digest}"', header: HUGE}, entry, COMMIT)


class TestIdentity:
    """FAULTS 50 and 55: other bytes or another commit under the same name."""

    entry = lfs_file("m.safetensors", b"right")
    small = git_file("config.json", b"{}")

    @pytest.mark.parametrize("etag", ['"{}"', 'W/"{}"', "{}"])
    def test_the_same(self, etag: str) -> None:
        for entry in (self.entry, self.small):
            size = str(entry.size)
            headers = {"ETag": etag.format(entry.digest), "X-Repo-Commit": COMMIT.hex, "X-Linked-Size": size}
            check_identity(headers, entry, COMMIT)

    def test_what_says_nothing_is_let_through(self) -> None:
        check_identity({}, self.entry, COMMIT)
        check_identity({"ETag": '"5f3a-private"'}, self.entry, COMMIT)
        check_identity({"ETag": f'"{self.small.digest}"'}, self.entry, COMMIT)  # the pointer's id beside a SHA-256
        check_identity({"X-Repo-Commit": "d" * 40}, self.entry, None)

    def test_other_bytes_another_size_or_commit(self) -> None:
        other = lfs_file("m.safetensors", b"wrong").digest
        for headers in (
            {"X-Linked-Etag": f'"{other}"'},
            {"ETag": f'W/"{other}"'},
            {"X-Linked-Etag": f'"{self.entry.digest}"', "X-Linked-Size": "6"},
            {"X-Repo-Commit": "d" * 40},
            {"X-Repo-Commit": "main"},
        ):
            with pytest.raises(Missing):
                check_identity(headers, self.entry, COMMIT)
        with pytest.raises(Missing):
            check_identity({"ETag": git_file("x", b"[]").digest.hex}, self.small, CommitId("e" * 40))


@pytest.mark.parametrize(
    ("status", "code", "fault"),
    [
        (401, "", Denied), (403, "", Denied), (451, "", Denied), (403, "GatedRepo", Denied),
        (401, "RepoNotFound", Missing), (403, "EntryNotFound", Missing), (401, "RevisionNotFound", Missing),
        (404, "", Missing), (404, "EntryNotFound", Missing), (410, "", Missing),
        (408, "", Busy), (425, "", Busy), (429, "", Busy), (503, "", Busy),
        (500, "", Broken), (502, "", Broken), (504, "", Broken), (599, "", Broken),
        (400, "", Misbehaved), (416, "", Misbehaved), (204, "", Misbehaved), (304, "", Misbehaved),
        (302, "", Misbehaved), (418, "", Misbehaved),
    ],
)  # fmt: skip
def test_statuses(status: int, code: str, fault: type[SourceFault]) -> None:
    with pytest.raises(SourceFault) as caught:
        refuse_status(status, {"X-Error-Code": code}, NOW)
    assert type(caught.value) is fault
    if isinstance(caught.value, Denied):
        assert caught.value.gated is (code == "GatedRepo")


def test_good_statuses_and_what_a_server_said() -> None:
    refuse_status(200, {}, NOW)
    refuse_status(206, {}, NOW)
    with pytest.raises(Denied, match="ask the owner"):
        refuse_status(403, {"X-Error-Message": "ask the owner"}, NOW)
    with pytest.raises(Busy) as caught:
        refuse_status(429, {"Retry-After": "11"}, NOW)
    assert caught.value.retry_after_s == 11.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": " 120 "}, 120.0),
        ({"Retry-After": format_datetime(NOW + timedelta(seconds=90), usegmt=True)}, 90.0),
        ({"Retry-After": format_datetime(NOW - timedelta(days=9), usegmt=True)}, 0.0),
        ({"Retry-After": "Fri, 02 Jan 2026 03:05:05"}, 60.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Mon, 99 Jan 2026 00:00:00 GMT"}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api"; r = 0; t = 7'}, 7.0),
        ({"RateLimit": '"api";r=3;t=55'}, None),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "3"}, 3.0),
    ],
)
def test_retry_after(headers: Mapping[str, str], seconds: float | None) -> None:
    """FAULTS 21."""
    assert retry_after_s(headers, NOW) == seconds


@pytest.mark.parametrize("text", [f"Mon, 01 Jan {HUGE[:20]} 00:00:00 GMT", f"Mon, 01 Jan 2026 00:00:00 +{HUGE[:14]}"])
def test_dates_out_of_range(text: str) -> None:
    assert retry_after_s({"Retry-After": text}, NOW) is None
