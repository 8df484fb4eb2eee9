"""What agents of a lab say to each other over HTTP: messages, their limits, their checks. Pure; no I/O.

Everything a peer says comes through a `parse_` function here, which checks every field and raises
BadInput for what cannot be meant. Fields we do not know are ignored, so that a newer peer can say
more; a peer whose protocol we do not speak is told which ones we do (`encode_refusal`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TypeVar

import msgspec

from edgecdn.digest import Digest
from edgecdn.errors import BadInput
from edgecdn.manifest import MAX_FILE_BYTES
from edgecdn.names import CommitId

__all__ = [
    "AGENT_HEADER",
    "BASE_PATH",
    "INLINE_BYTES",
    "MOST_ANSWER_BYTES",
    "MOST_DIGESTS",
    "MOST_HELLO_BYTES",
    "MOST_INLINE_BYTES",
    "MOST_PEERS",
    "MOST_QUERY_BYTES",
    "OLDEST",
    "PROTOCOL",
    "PROTOCOL_HEADER",
    "Asker",
    "BlobState",
    "Hello",
    "LanEvent",
    "encode_event",
    "encode_have_answer",
    "encode_have_query",
    "encode_hello",
    "encode_ref",
    "encode_refusal",
    "encode_rotten",
    "format_address",
    "parse_address",
    "parse_asker",
    "parse_event",
    "parse_have_answer",
    "parse_have_query",
    "parse_hello",
    "parse_ref",
    "parse_refusal",
    "parse_rotten",
    "speaks",
]

PROTOCOL = 1
"""The newest protocol this version speaks."""

OLDEST = 1
"""The oldest protocol this version still speaks."""

BASE_PATH = "/edgecdn/v1"
PROTOCOL_HEADER = "Edgecdn-Protocol"
AGENT_HEADER = "Edgecdn-Agent"

MOST_QUERY_BYTES = 512 << 10
"""Longest request body: MOST_DIGESTS sha256 digests in JSON are 270 KiB."""

MOST_HELLO_BYTES = 16 << 10
"""Longest hello or event; MOST_PEERS addresses are 4 KiB."""

MOST_ANSWER_BYTES = 8 << 20
"""Longest answer to a have-query: its states, and MOST_INLINE_BYTES in base64."""

MOST_DIGESTS = 4096
"""Digests in one have-query."""

MOST_PEERS = 64
"""Peers named in one hello or event."""

INLINE_BYTES = 64 << 10
"""Largest file that comes inside a have-answer, bytes: below it a request of its own costs more than its bytes."""

MOST_INLINE_BYTES = 4 << 20
"""Most bytes of files inside one have-answer."""

_AGENT_ID = re.compile(r"[0-9a-f]{32}\Z")
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]{1,64}\Z")
"""Shown to users, so nothing that moves a cursor or turns the direction of text."""

_VERSION = re.compile(r"[0-9A-Za-z.+\-]{1,32}\Z")
_ROOT = re.compile(r"(?:[0-9a-f]{64})?\Z")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<v4>[0-9.]{7,15})):(?P<port>[0-9]{1,5})\Z")
_ASKER = re.compile(r"(?P<id>[0-9a-f]{32}):(?P<port>[0-9]{1,5})\Z")
_LATEST_S = 1e11
"""A clock beyond this (year 5138) is no clock."""

_SMALLEST_PIECE_BYTES = 16 << 10
_T = TypeVar("_T")


class Hello(msgspec.Struct, frozen=True):
    """Who an agent is. `swarm_port` 0: no swarm; `time`: its clock, unix seconds; `peers`: LAN ports it knows."""

    protocol: int
    oldest: int
    id: str
    name: str
    version: str
    lan_port: int
    swarm_port: int = 0
    time: float = 0.0
    peers: list[str] = []

    def is_understood(self) -> bool:
        """Whether there is a protocol that both it and we speak."""
        return self.oldest <= PROTOCOL and self.protocol >= OLDEST


class BlobState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a peer has of a blob. `root`: of its piece tree, hex, "" unknown; `data`: all its bytes, when asked."""

    size: int
    complete: bool = True
    root: str = ""
    data: bytes | None = None


class LanEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a peer's event stream; exactly one of its fields says something."""

    hello: Hello | None = None
    beat: int | None = None
    changed: bool = False
    peers: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """The agent that sends a request, by its own word: a hint, never a proof."""

    id: str
    lan_port: int

    def __str__(self) -> str:
        return f"{self.id}:{self.lan_port}"


class _HaveQuery(msgspec.Struct):
    digests: list[str]
    inline: bool = False


class _HaveAnswer(msgspec.Struct):
    blobs: dict[str, BlobState]


class _Rotten(msgspec.Struct):
    digest: str
    piece: int


class _Ref(msgspec.Struct):
    commit: str


class _Refusal(msgspec.Struct):
    error: str
    oldest: int = OLDEST
    protocol: int = PROTOCOL


def speaks(header: str | None) -> bool:
    """Whether we speak the protocol a request or an answer names; None (a person with curl): yes."""
    if header is None:
        return True
    return header.isascii() and header.isdigit() and len(header) < 6 and OLDEST <= int(header) <= PROTOCOL


def encode_refusal() -> bytes:
    """The body for who speaks another protocol."""
    return msgspec.json.encode(_Refusal(f"this agent speaks protocols {OLDEST} to {PROTOCOL}"))


def parse_refusal(data: bytes) -> str:
    """What a refusal says, in our words; BadInput when it is none."""
    refusal = _decode(data, _Refusal, MOST_HELLO_BYTES)
    _check(0 <= refusal.oldest <= refusal.protocol <= 99999, "the range of protocols")
    return f"speaks protocols {refusal.oldest} to {refusal.protocol}, this agent {OLDEST} to {PROTOCOL}"


def encode_hello(hello: Hello) -> bytes:
    """A hello as JSON."""
    return msgspec.json.encode(hello)


def parse_hello(data: bytes) -> Hello:
    """A hello, every field checked; of a protocol we may not speak (`is_understood`)."""
    return _checked_hello(_decode(data, Hello, MOST_HELLO_BYTES))


def encode_event(event: LanEvent) -> bytes:
    """One line of the event stream, with its end."""
    return msgspec.json.encode(event) + b"\n"


def parse_event(line: bytes) -> LanEvent:
    """One line of a peer's event stream; one that says nothing we know is an empty event."""
    event = _decode(line, LanEvent, MOST_HELLO_BYTES)
    if event.hello is not None:
        _checked_hello(event.hello)
    _check(event.beat is None or 0 <= event.beat < 1 << 53, "a beat")
    _check_peers(event.peers or [])
    return event


def encode_have_query(digests: Iterable[Digest], *, inline: bool) -> bytes:
    """Ask what a peer has of `digests` (MOST_DIGESTS at most), small files included when `inline`."""
    return msgspec.json.encode(_HaveQuery([digest.hex for digest in digests], inline))


def parse_have_query(data: bytes) -> tuple[tuple[Digest, ...], bool]:
    """What is asked for, each once, and whether small files may come inline."""
    query = _decode(data, _HaveQuery, MOST_QUERY_BYTES)
    _check(len(query.digests) <= MOST_DIGESTS, "the number of digests")
    return tuple(Digest.parse(text) for text in dict.fromkeys(query.digests)), query.inline


def encode_have_answer(blobs: Mapping[Digest, BlobState]) -> bytes:
    """What we have of what was asked."""
    return msgspec.json.encode(_HaveAnswer({digest.hex: state for digest, state in blobs.items()}))


def parse_have_answer(data: bytes) -> dict[Digest, BlobState]:
    """What a peer claims to have. A small file's bytes have the claimed size; their digest is for the reader."""
    answer = _decode(data, _HaveAnswer, MOST_ANSWER_BYTES)
    _check(len(answer.blobs) <= MOST_DIGESTS, "the number of blobs")
    for state in answer.blobs.values():
        _check(0 <= state.size <= MAX_FILE_BYTES, "the size of a blob")
        _check(_ROOT.match(state.root) is not None, "the root of a blob")
        _check(state.data is None or len(state.data) == state.size <= INLINE_BYTES, "the length of a small file")
    return {Digest.parse(text): state for text, state in answer.blobs.items()}


def encode_rotten(digest: Digest, piece: int) -> bytes:
    """Tell a holder that a piece of its copy is wrong."""
    return msgspec.json.encode(_Rotten(digest.hex, piece))


def parse_rotten(data: bytes) -> tuple[Digest, int]:
    """The blob and the piece that are said to be wrong."""
    rotten = _decode(data, _Rotten, MOST_HELLO_BYTES)
    _check(0 <= rotten.piece <= MAX_FILE_BYTES // _SMALLEST_PIECE_BYTES, "the number of a piece")
    return Digest.parse(rotten.digest), rotten.piece


def encode_ref(commit: CommitId) -> bytes:
    """The commit a revision stands for here."""
    return msgspec.json.encode(_Ref(commit.hex))


def parse_ref(data: bytes) -> CommitId:
    """The commit a peer claims a revision stands for."""
    return CommitId(_decode(data, _Ref, MOST_HELLO_BYTES).commit)


def parse_asker(header: str | None) -> Asker | None:
    """Who a request says it is from; None when it does not say, or not so that it can be read."""
    match = _ASKER.match(header or "")
    if match is None or not 0 < int(match["port"]) <= 65535:
        return None
    return Asker(match["id"], int(match["port"]))


def parse_address(text: str) -> tuple[str, int]:
    """A numeric address and a port: `10.0.0.1:8378`, `[fd00::1]:8378`. Raises BadInput else."""
    match = _ADDRESS.match(text)
    if match is None or not 0 < int(match["port"]) <= 65535:
        raise BadInput(f"{text[:80]!r} is not an address and a port")
    try:
        return str(ip_address(match["v6"] or match["v4"])), int(match["port"])
    except ValueError as error:
        raise BadInput(f"{text[:80]!r} is not an address and a port") from error


def format_address(host: str, port: int) -> str:
    """The text `parse_address` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _checked_hello(hello: Hello) -> Hello:
    _check(0 <= hello.oldest <= hello.protocol <= 99999, "the range of protocols")
    _check(_AGENT_ID.match(hello.id) is not None, "the id of an agent")
    _check(_NAME.match(hello.name) is not None and hello.name == hello.name.strip(), "the name of an agent")
    _check(_VERSION.match(hello.version) is not None, "a version")
    _check(0 < hello.lan_port <= 65535, "the LAN port")
    _check(0 <= hello.swarm_port <= 65535, "the swarm port")
    _check(0 <= hello.time < _LATEST_S, "a clock")
    _check_peers(hello.peers)
    return hello


def _check_peers(peers: list[str]) -> None:
    _check(len(peers) <= MOST_PEERS, "the number of peers")
    for peer in peers:
        parse_address(peer)


def _decode(data: bytes, kind: type[_T], most_bytes: int) -> _T:
    if len(data) > most_bytes:
        raise BadInput(f"a message of {len(data)} bytes is too long")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"it is no message of a peer ({str(error)[:120]})") from error


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise BadInput(f"{what} is not possible")
