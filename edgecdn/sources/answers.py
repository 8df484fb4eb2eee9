"""Judging an HTTP answer to a request for bytes, before one of them is used. Pure; no I/O.

What a good answer is follows RFC 9110 (Range, Content-Range) and what hubs and their CDNs were
seen to send. Everything else is named, so that it is never written as data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from edgecdn.digest import Digest
from edgecdn.errors import BadInput
from edgecdn.manifest import FileEntry
from edgecdn.names import CommitId
from edgecdn.sources.faults import Broken, Busy, Denied, Misbehaved, Missing, NoRanges
from edgecdn.spans import Span

__all__ = ["check_body", "check_identity", "refuse_status", "retry_after_s"]

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\Z")
_RATE_LIMIT = re.compile(r"r\s*=\s*(\d{1,9})\s*;\s*t\s*=\s*(\d{1,9})")
_MOST_DIGITS = 9
_DENIED = frozenset({401, 403, 451})
_GONE = frozenset({404, 410})
_BUSY = frozenset({408, 425, 429, 503})


def check_body(status: int, headers: Mapping[str, str], span: Span, size: int, *, ranged: bool) -> int:
    """Check that the body that follows is what was asked for; return how many of its bytes come before `span`.

    `span` is what is wanted of a file of `size` bytes; `ranged` whether a Range header was sent.
    Raises Misbehaved, or NoRanges for a whole file in answer to a Range request.
    """
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise Misbehaved(f"answered with a {encoding} body where plain bytes were asked for")
    content_range = headers.get("Content-Range")
    length = headers.get("Content-Length")
    if content_range is not None:  # some servers say 200 with a correct Content-Range: the range decides
        match = _CONTENT_RANGE.match(content_range)
        if (
            not match
            or (int(match[1]), int(match[2]) + 1) != (span.start, span.stop)
            or match[3] not in ("*", str(size))
        ):
            wanted = f"{span.start}-{span.stop - 1}/{size}"
            raise Misbehaved(f"answered with the range '{content_range[:60]}' where {wanted} was asked for")
        if length is not None and length != str(len(span)):
            raise Misbehaved(f"announced {length[:20]} bytes for a range of {len(span)}")
        return 0
    if status == 206:
        raise Misbehaved("answered 206 without a Content-Range")
    if "text/html" in headers.get("Content-Type", "") and length != str(size):
        raise Misbehaved("answered with a web page (the login page of this network?)")
    if length is not None and length != str(size):
        raise Misbehaved(f"announced {length[:20]} bytes for a file of {size}")
    if ranged:
        raise NoRanges("gives this file only whole")
    return span.start


def check_identity(headers: Mapping[str, str], entry: FileEntry, commit: CommitId | None) -> None:
    """Check that a server's own answer speaks of the bytes and the commit we want (None: it has no commits).

    Raises Missing when it names another digest, size or commit: it has some other file there.
    """
    seen_commit = headers.get("X-Repo-Commit", "")
    if commit is not None and seen_commit and seen_commit != commit.hex:
        raise Missing(f"answers for commit {seen_commit[:12]} where {commit.hex[:12]} was asked for")
    etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    try:
        digest = Digest.parse(etag)
    except BadInput:
        return  # a server's private ETag says nothing
    if digest.kind is entry.digest.kind and digest != entry.digest:
        raise Missing(f"has other bytes for {entry.path} ({digest.hex[:12]} instead of {entry.digest.hex[:12]})")
    linked_size = headers.get("X-Linked-Size", "")
    if linked_size and linked_size != str(entry.size):
        raise Missing(f"has a file of {linked_size} bytes for {entry.path} where {entry.size} were expected")


def refuse_status(status: int, headers: Mapping[str, str], now: datetime) -> None:
    """Raise the fault that an error status stands for; return for 200 and 206."""
    if status in (200, 206):
        return
    code = headers.get("X-Error-Code", "")
    said = headers.get("X-Error-Message", "")[:200] or code or f"HTTP {status}"
    if status in _DENIED and code not in ("RepoNotFound", "EntryNotFound", "RevisionNotFound"):
        raise Denied(said, gated=code == "GatedRepo")
    if status in _GONE or status in _DENIED:
        raise Missing(said)
    if status in _BUSY:
        raise Busy(f"is busy (HTTP {status})", retry_after_s(headers, now))
    if status >= 500:
        raise Broken(f"failed (HTTP {status})")
    raise Misbehaved(f"answered HTTP {status}")


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds a server asks us to wait; None when it does not say.

    `Retry-After` in seconds or as a date (RFC 9110, 10.2.3), else an exhausted `RateLimit`, such as
    `"api";r=0;t=55` (IETF draft-ietf-httpapi-ratelimit-headers).
    """
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text[:_MOST_DIGITS])
    if text:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - now).total_seconds())
    match = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    return float(match[2]) if match and match[1] == "0" else None
