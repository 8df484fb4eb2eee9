"""What the members of an ingest say to each other: messages, their limits, their checks. Pure; no I/O.

Everything a member says comes through a `parse_` function here, which checks every field and raises BadInput
for what cannot be meant. Fields we do not know are ignored, so that a newer member can say more. Whether a
unit or a run lies within the blob only who knows the blob can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from edgecdn.errors import BadInput
from edgecdn.manifest import MAX_FILE_BYTES
from edgecdn.piecetree import HASH_BYTES

__all__ = [
    "MOST_ASK_BYTES",
    "MOST_LINE_BYTES",
    "MOST_UNITS",
    "Have",
    "LeaseAnswer",
    "LeaseAsk",
    "LeaseBack",
    "Told",
    "encode_answer",
    "encode_ask",
    "encode_back",
    "encode_told",
    "merge",
    "parse_answer",
    "parse_ask",
    "parse_back",
    "parse_told",
]

MOST_UNITS: Final = 32768
"""Units of a blob: beyond 32 GiB a unit is a piece, and no blob has more pieces than this."""

MOST_LINE_BYTES = 4 << 20
"""Longest line of a stream: MOST_UNITS with their nodes are 2 MiB."""

MOST_ASK_BYTES = 1 << 10
"""Longest of all other messages."""

_MOST_LEASES: Final = 256
_MOST_RATE: Final = 1e12
"""Bytes a second that no line brings."""

_MOST_WAIT_S: Final = 60.0
_MOST_BLOBS: Final = 1 << 20
_MOST_COUNT: Final = (1 << 53) - 1

_T = TypeVar("_T")
_Unit = Annotated[int, Meta(ge=0, lt=MOST_UNITS)]
_Run = tuple[_Unit, Annotated[int, Meta(gt=0, le=MOST_UNITS)]]
_Node = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
_Rate = Annotated[float, Meta(ge=0.0, le=_MOST_RATE)]
_Units = Annotated[int, Meta(ge=0, le=MOST_UNITS)]
_Blobs = Annotated[int, Meta(ge=0, le=_MOST_BLOBS)]
_AgentId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]


class Have(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A unit that is there, and what it is; `read`: the teller had it from the line."""

    unit: _Unit
    node: _Node
    read: bool = False


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a stream: what is new since the one before; the first line says all.

    `lost` counts before `have`: what is in both was lost and is there again. What is None is as it was.
    `leases`: all runs the teller reads from the line now, `(start, stop)`. `rate`: what one of its streams from
    the line brings, bytes/s, 0 unknown. `blobs`: how many it takes part in.
    """

    size: Annotated[int, Meta(gt=0, le=MAX_FILE_BYTES)] | None = None
    preparing: bool | None = None
    have: Annotated[list[Have], Meta(max_length=MOST_UNITS)] = []
    lost: Annotated[list[_Unit], Meta(max_length=MOST_UNITS)] = []
    leases: Annotated[list[_Run], Meta(max_length=_MOST_LEASES)] | None = None
    rate: _Rate | None = None
    done: bool | None = None
    blobs: _Blobs | None = None
    beat: Annotated[int, Meta(ge=0, le=_MOST_COUNT)] | None = None


class LeaseAsk(msgspec.Struct, frozen=True):
    """A member asks for a run. `reading`: leases it has now; `from_holder`: it reads from a peer that has all."""

    backlog: _Units = 0
    rate: _Rate = 0.0
    reading: Annotated[int, Meta(ge=0, le=_MOST_LEASES)] = 0
    from_holder: bool = False


class LeaseAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exactly one of: the units `(start, stop)`, how long to wait, seconds, or who is to be asked instead."""

    run: _Run | None = None
    wait_s: Annotated[float, Meta(ge=0.0, le=_MOST_WAIT_S)] | None = None
    coordinator: _AgentId | None = None


class LeaseBack(msgspec.Struct, frozen=True):
    """A run, or what is left of one, is given back: the line failed."""

    start: _Unit
    stop: Annotated[int, Meta(gt=0, le=MOST_UNITS)]


_encode = msgspec.json.Encoder().encode
_told = msgspec.json.Decoder(Told)
_ask = msgspec.json.Decoder(LeaseAsk)
_answer = msgspec.json.Decoder(LeaseAnswer)
_back = msgspec.json.Decoder(LeaseBack)


def encode_told(told: Told) -> bytes:
    """One line of a stream, with its end."""
    return _encode(told) + b"\n"


def parse_told(line: bytes) -> Told:
    """One line of a member's stream; one that says nothing we know is an empty one."""
    told = _decode(line, _told, MOST_LINE_BYTES)
    _check_runs(told.leases or ())
    return told


def encode_ask(ask: LeaseAsk) -> bytes:
    """A question for a run."""
    return _encode(ask)


def parse_ask(data: bytes) -> LeaseAsk:
    """A member's question for a run."""
    return _decode(data, _ask, MOST_ASK_BYTES)


def encode_answer(answer: LeaseAnswer) -> bytes:
    """The answer to such a question."""
    return _encode(answer)


def parse_answer(data: bytes) -> LeaseAnswer:
    """A coordinator's answer."""
    answer = _decode(data, _answer, MOST_ASK_BYTES)
    if sum(part is not None for part in (answer.run, answer.wait_s, answer.coordinator)) != 1:
        raise BadInput("a lease is given, put off or asked for elsewhere, one of these")
    _check_runs(() if answer.run is None else (answer.run,))
    return answer


def encode_back(back: LeaseBack) -> bytes:
    """A run that is given back."""
    return _encode(back)


def parse_back(data: bytes) -> LeaseBack:
    """A run that a member gives back."""
    back = _decode(data, _back, MOST_ASK_BYTES)
    _check_runs(((back.start, back.stop),))
    return back


def merge(changes: Sequence[Told]) -> Told:
    """What several changes come to, in the order they happened."""
    if len(changes) == 1:
        return changes[0]
    have: dict[int, Have] = {}
    lost: dict[int, None] = {}
    for told in changes:
        for unit in told.lost:
            have.pop(unit, None)
            lost[unit] = None
        for there in told.have:
            have[there.unit] = there
    return Told(
        size=_latest(told.size for told in changes),
        preparing=_latest(told.preparing for told in changes),
        have=list(have.values()),
        lost=list(lost),
        leases=_latest(told.leases for told in changes),
        rate=_latest(told.rate for told in changes),
        done=_latest(told.done for told in changes),
        blobs=_latest(told.blobs for told in changes),
        beat=_latest(told.beat for told in changes),
    )


def _latest(values: Iterable[_T | None]) -> _T | None:
    latest: _T | None = None
    for value in values:
        latest = latest if value is None else value
    return latest


def _decode(data: bytes, decoder: msgspec.json.Decoder[_T], most_bytes: int) -> _T:
    if len(data) > most_bytes:
        raise BadInput(f"a message of {len(data)} bytes is too long")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"it is no message of a member ({str(error)[:120]})") from error


def _check_runs(runs: Iterable[tuple[int, int]]) -> None:
    for start, stop in runs:
        if start >= stop:
            raise BadInput(f"the run {start} to {stop} is empty")
