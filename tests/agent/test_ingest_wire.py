"""What members of an ingest say: everything that can be meant comes through, nothing else does."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecdn.errors import BadInput
from edgecdn_agent.ingest.wire import (
    MOST_ASK_BYTES,
    MOST_LINE_BYTES,
    MOST_UNITS,
    Have,
    LeaseAnswer,
    LeaseAsk,
    LeaseBack,
    Told,
    encode_answer,
    encode_ask,
    encode_back,
    encode_told,
    merge,
    parse_answer,
    parse_ask,
    parse_back,
    parse_told,
)
from edgecdn_agent.ingest.world import UnitMap

NODE = base64.b64encode(bytes(32)).decode()

units = st.integers(0, MOST_UNITS - 1)
runs = st.tuples(units, st.integers(1, 64)).map(lambda run: (run[0], min(MOST_UNITS, run[0] + run[1])))
haves = st.builds(Have, units, st.binary(min_size=32, max_size=32), st.booleans())
tolds = st.builds(
    Told,
    size=st.none() | st.integers(1, 1 << 44),
    preparing=st.none() | st.booleans(),
    have=st.lists(haves, max_size=8),
    lost=st.lists(units, max_size=8),
    leases=st.none() | st.lists(runs, max_size=4),
    rate=st.none() | st.floats(0, 1e12),
    done=st.none() | st.booleans(),
    blobs=st.none() | st.integers(0, 1000),
    beat=st.none() | st.integers(0, 1 << 50),
)


@given(tolds)
def test_what_is_told_is_heard(told: Told) -> None:
    line = encode_told(told)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_told(line[:-1]) == told


@given(st.builds(LeaseAsk, st.integers(0, MOST_UNITS), st.floats(0, 1e12), st.integers(0, 256), st.booleans()))
def test_what_is_asked_is_heard(ask: LeaseAsk) -> None:
    assert parse_ask(encode_ask(ask)) == ask


@pytest.mark.parametrize(
    "answer",
    [
        LeaseAnswer(run=(0, MOST_UNITS)),
        LeaseAnswer(wait_s=0.0),
        LeaseAnswer(wait_s=0.25),
        LeaseAnswer(coordinator="a" * 32),
    ],
)
def test_what_is_answered_is_heard(answer: LeaseAnswer) -> None:
    assert parse_answer(encode_answer(answer)) == answer


def test_what_is_given_back_is_heard() -> None:
    assert parse_back(encode_back(LeaseBack(3, 9))) == LeaseBack(3, 9)


def test_a_change_is_a_small_line_and_a_beat_a_smaller_one() -> None:
    assert len(encode_told(Told(have=[Have(14_999, bytes(32), True)]))) < 80
    assert len(encode_told(Told(beat=3))) < 16


def test_the_longest_line_there_can_be_is_not_too_long() -> None:
    every = range(MOST_UNITS)
    told = Told(size=1 << 44, have=[Have(unit, b"\xff" * 32, False) for unit in every], lost=list(every))
    line = encode_told(told)
    assert len(line) < MOST_LINE_BYTES * 3 // 4
    assert parse_told(line) == told


@pytest.mark.parametrize("size", [1, 1 << 30, (32 << 30) + 1, (64 << 30) + 1, 1 << 44])
def test_no_blob_has_more_units_than_can_be_told(size: int) -> None:
    assert UnitMap(size).count <= MOST_UNITS


def test_what_a_newer_member_says_beyond_is_ignored() -> None:
    line = json.dumps({"have": [[1, NODE, True, "more"], [2, NODE]], "mood": {"good": [1]}}).encode()
    assert parse_told(line) == Told(have=[Have(1, bytes(32), True), Have(2, bytes(32))])
    assert parse_told(b"{}") == Told()
    assert parse_ask(b'{"mood":1}') == LeaseAsk()
    assert parse_answer(b'{"wait_s":1,"mood":1}') == LeaseAnswer(wait_s=1.0)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "null",
        "{",
        '{"have":{}}',
        "\xff\xfe",
        '{"size":0}',
        '{"size":-1}',
        '{"size":1.5}',
        '{"size":17592186044417}',
        '{"size":"1"}',
        '{"preparing":1}',
        '{"have":[[]]}',
        '{"have":[[1]]}',
        '{"have":[[1,"AAAA"]]}',
        f'{{"have":[[-1,"{NODE}"]]}}',
        f'{{"have":[[{MOST_UNITS},"{NODE}"]]}}',
        f'{{"have":[[1,"{NODE}",2]]}}',
        f'{{"have":[[1.5,"{NODE}"]]}}',
        f'{{"have":[[1,"{NODE}AAAA"]]}}',
        '{"have":[[1,"not base64 at all, not base64 at all, no!!!"]]}',
        '{"lost":[-1]}',
        '{"lost":["1"]}',
        '{"leases":[[1,1]]}',
        '{"leases":[[2,1]]}',
        '{"leases":[[-1,1]]}',
        '{"leases":[[1]]}',
        '{"leases":[[1,2,3]]}',
        f'{{"leases":[[1,{MOST_UNITS + 1}]]}}',
        '{"rate":-1}',
        '{"rate":1e400}',
        '{"rate":NaN}',
        '{"rate":Infinity}',
        '{"done":"yes"}',
        '{"blobs":-1}',
        '{"beat":-1}',
        '{"beat":99999999999999999999999}',
        '{"x":' + "[" * 100_000,
        '{"lost":[' + ",".join(["1"] * (MOST_UNITS + 1)) + "]}",
        '{"leases":[' + ",".join(["[0,1]"] * 300) + "]}",
        '{"mood":"' + "a" * MOST_LINE_BYTES + '"}',
    ],
    ids=lambda line: line[:40] or "nothing",
)
def test_nonsense_is_refused(line: str) -> None:
    with pytest.raises(BadInput):
        parse_told(line.encode("latin-1"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"backlog":-1}',
        b'{"rate":-0.5}',
        b'{"reading":1000}',
        b'{"from_holder":1}',
        b" " * (MOST_ASK_BYTES + 1),
    ],
)
def test_nonsense_is_no_question(data: bytes) -> None:
    with pytest.raises(BadInput):
        parse_ask(data)


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b'{"run":[0,1],"wait_s":1}',
        b'{"run":[1,1]}',
        b'{"run":[0,99999]}',
        b'{"run":[0]}',
        b'{"wait_s":-1}',
        b'{"wait_s":1e9}',
        b'{"coordinator":""}',
        b'{"coordinator":"../../etc"}',
        b'{"coordinator":"' + b"a" * 32 + b'\\n"}',
        b'{"coordinator":"' + b"A" * 32 + b'"}',
        b'{"run":[0,1],"mood":"' + b"a" * MOST_ASK_BYTES + b'"}',
    ],
)
def test_nonsense_is_no_answer(data: bytes) -> None:
    with pytest.raises(BadInput):
        parse_answer(data)


@pytest.mark.parametrize("data", [b"{}", b'{"start":1}', b'{"start":2,"stop":2}', b'{"start":-1,"stop":2}'])
def test_nonsense_gives_nothing_back(data: bytes) -> None:
    with pytest.raises(BadInput):
        parse_back(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_heard_or_refused(data: bytes) -> None:
    for parse in (parse_told, parse_ask, parse_answer, parse_back):
        try:
            parse(data)
        except BadInput:
            continue


def heard(told: Told, state: tuple[dict[int, Have], dict[str, object]]) -> None:
    """As one who listens takes it."""
    have, said = state
    for unit in told.lost:
        have.pop(unit, None)
    for there in told.have:
        have[there.unit] = there
    for name in ("size", "preparing", "leases", "rate", "done", "blobs", "beat"):
        if (value := getattr(told, name)) is not None:
            said[name] = value


few = st.integers(0, 3)
changes = st.builds(
    Told,
    have=st.lists(st.builds(Have, few, st.sampled_from([bytes(32), b"\1" * 32]), st.booleans()), max_size=3),
    lost=st.lists(few, max_size=2),
    done=st.none() | st.booleans(),
    rate=st.none() | st.just(5.0),
    leases=st.none() | st.lists(st.just((1, 2)), max_size=1),
)


@given(st.lists(changes, max_size=6), st.lists(changes, max_size=2))
def test_changes_merged_come_to_the_same(said: list[Told], before: list[Told]) -> None:
    one: tuple[dict[int, Have], dict[str, object]] = ({}, {})
    all_: tuple[dict[int, Have], dict[str, object]] = ({}, {})
    for told in before:
        heard(told, one)
        heard(told, all_)
    for told in said:
        heard(told, one)
    heard(merge(said), all_)
    assert one == all_
