"""Rules that make chosen answers of the test hub wrong, late or short."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any


class Kind(StrEnum):
    """The shapes of misbehaviour."""

    STALL = "stall"  # send after_bytes of a longer answer (or, of the file, what is before offset), then nothing
    RESET = "reset"  # send after_bytes, then TCP RST
    CLOSE_EARLY = "close_early"  # send after_bytes, then an orderly close: a short body
    LONG_BODY = "long_body"  # delta bytes more than asked, announced in Content-Length
    STATUS = "status"  # status, headers and text instead of the answer
    WRONG_BYTES = "wrong_bytes"  # right size; the byte at offset, or all of them, inverted
    WRONG_LENGTH = "wrong_length"  # the file claims to be (and is) delta bytes longer
    IGNORE_RANGE = "ignore_range"  # 200 with the whole body
    WRONG_CONTENT_RANGE = "wrong_content_range"  # Content-Range delta bytes off
    GZIP = "gzip"  # Content-Encoding: gzip
    CAPTIVE_PORTAL = "captive_portal"  # 200 with a login page
    REDIRECT_TO = "redirect_to"  # 302 to url
    WRONG_ETAG = "wrong_etag"  # ETag and X-Linked-Etag name another digest
    NO_CONTENT_LENGTH = "no_content_length"  # chunked transfer
    SLOW_PER_CONNECTION = "slow_per_connection"  # bytes_per_s for each answer
    SLOW_TOTAL = "slow_total"  # bytes_per_s shared by every answer the rule matches
    DELAY_FIRST_BYTE = "delay_first_byte"  # seconds before the headers


ANSWER_KINDS = frozenset({Kind.DELAY_FIRST_BYTE, Kind.STATUS, Kind.CAPTIVE_PORTAL, Kind.REDIRECT_TO})
"""Kinds that replace an answer; looked up before it is worked out."""

HEADER_KINDS = frozenset({Kind.WRONG_ETAG, Kind.WRONG_LENGTH, Kind.NO_CONTENT_LENGTH})
"""Kinds that show on HEAD, on redirects and on bodies."""

BODY_KINDS = frozenset(Kind) - ANSWER_KINDS - HEADER_KINDS
"""Kinds that need a body: neither HEAD nor a redirect uses them up."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule: which requests it matches, how many of them, and what happens to those."""

    kind: Kind
    route: str | None = None  # api, resolve, cdn or modelscope
    path: str = "*"  # glob on the file path, "repo/id/file path" or the raw request path
    method: str | None = None
    host: str | None = None  # glob on the Host header
    times: int | None = None  # None: for ever
    after_bytes: int = 0
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    delta: int = 1
    offset: int | None = None  # in the file; None: every byte (wrong), or counted in the answer (stall)
    url: str = ""
    bytes_per_s: float = 0.0
    seconds: float = 0.0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fault:
        """Read a rule as the control listener receives it."""
        return cls(**{**value, "kind": Kind(value["kind"])})

    def to_json(self) -> dict[str, Any]:
        """Write a rule for the control listener."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about, as far as rules can match it."""

    route: str
    method: str
    host: str
    raw_path: str
    repo: str = ""
    file: str = ""

    def matches(self, fault: Fault) -> bool:
        """Tell whether the rule is about this request."""
        names = (self.file, f"{self.repo}/{self.file}", self.raw_path)
        return (
            fault.route in (None, self.route)
            and fault.method in (None, self.method)
            and (fault.host is None or fnmatchcase(self.host, fault.host))
            and any(fnmatchcase(name, fault.path) for name in names)
        )


Active = dict[Kind, Fault]
"""The rules that apply to one request: the first that matches, of each kind."""


class FaultBook:
    """The rules in force and how often each may still apply."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._rules: list[tuple[Fault, list[int]]] = []
        self._hits: list[Fault] = []
        for fault in faults:
            self.inject(fault)

    def inject(self, fault: Fault) -> None:
        """Add a rule behind those already in force."""
        self._rules.append((fault, [-1 if fault.times is None else fault.times]))

    def clear(self) -> None:
        """Forget every rule."""
        self._rules.clear()

    def __len__(self) -> int:
        return sum(1 for _, left in self._rules if left[0] != 0)

    @property
    def hits(self) -> tuple[Fault, ...]:
        """Every application of a rule so far, oldest first."""
        return tuple(self._hits)

    def take(self, target: Target, kinds: Set[Kind]) -> Active:
        """Pick the rules of these kinds for a request and count them down."""
        active: Active = {}
        for fault, left in self._rules:
            usable = left[0] != 0 and fault.kind in kinds and fault.kind not in active
            if usable and target.matches(fault):
                left[0] -= 1
                active[fault.kind] = fault
                self._hits.append(fault)
        return active


def stall(after_bytes: int = 0, **match: Any) -> Fault:
    """Send some bytes, and then nothing until the client leaves or it is lifted. A shorter answer ends as ever."""
    return Fault(Kind.STALL, after_bytes=after_bytes, **match)


def dry_up(offset: int, **match: Any) -> Fault:
    """Of a file only the bytes before `offset` come until it is lifted: the same however requests are cut."""
    return Fault(Kind.STALL, offset=offset, **match)


def reset(after_bytes: int = 0, **match: Any) -> Fault:
    """Send some bytes and then a TCP reset."""
    return Fault(Kind.RESET, after_bytes=after_bytes, **match)


def close_early(after_bytes: int = 0, **match: Any) -> Fault:
    """Send some bytes and close in good order."""
    return Fault(Kind.CLOSE_EARLY, after_bytes=after_bytes, **match)


def status(code: int, headers: Mapping[str, str] | None = None, **match: Any) -> Fault:
    """Answer with a status instead."""
    return Fault(Kind.STATUS, status=code, headers=headers or {}, **match)


def wrong_bytes(offset: int | None = None, **match: Any) -> Fault:
    """Invert one byte of the file, or all."""
    return Fault(Kind.WRONG_BYTES, offset=offset, **match)


def redirect_to(url: str, **match: Any) -> Fault:
    """Send the client elsewhere."""
    return Fault(Kind.REDIRECT_TO, url=url, **match)


def slow_per_connection(bytes_per_s: float, **match: Any) -> Fault:
    """Limit each answer."""
    return Fault(Kind.SLOW_PER_CONNECTION, bytes_per_s=bytes_per_s, **match)


def slow_total(bytes_per_s: float, **match: Any) -> Fault:
    """Limit all answers together."""
    return Fault(Kind.SLOW_TOTAL, bytes_per_s=bytes_per_s, **match)


def delay_first_byte(seconds: float, **match: Any) -> Fault:
    """Wait before answering."""
    return Fault(Kind.DELAY_FIRST_BYTE, seconds=seconds, **match)
