"""The LAN protocol's messages: they come back as they were sent, and nothing else gets through."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import BadInput
from edgecdn.lan_wire import (
    MOST_ANSWER_BYTES,
    MOST_DIGESTS,
    MOST_HELLO_BYTES,
    MOST_PEERS,
    MOST_QUERY_BYTES,
    Asker,
    BlobState,
    Hello,
    LanEvent,
    encode_event,
    encode_have_answer,
    encode_have_query,
    encode_hello,
    encode_ref,
    encode_refusal,
    encode_rotten,
    format_address,
    parse_address,
    parse_asker,
    parse_event,
    parse_have_answer,
    parse_have_query,
    parse_hello,
    parse_ref,
    parse_refusal,
    parse_rotten,
    speaks,
)
from edgecdn.names import CommitId

DIGEST = Digest.of(DigestKind.SHA256, b"a")
HELLO = Hello(1, 1, "a" * 32, "Büro 3 <x>", "0.1.0", 8378, 8379, 1.7e9, ["10.0.0.1:8378", "[fd00::1]:8378"])
PARSERS: list[Callable[[bytes], Any]] = [
    parse_hello, parse_event, parse_have_query, parse_have_answer, parse_rotten, parse_ref, parse_refusal,
]  # fmt: skip


def test_messages_come_back_as_they_were() -> None:
    assert parse_hello(encode_hello(HELLO)) == HELLO
    for event in (LanEvent(hello=HELLO), LanEvent(beat=3), LanEvent(changed=True), LanEvent(peers=[]), LanEvent()):
        assert parse_event(encode_event(event)) == event
    assert parse_have_query(encode_have_query([DIGEST, DIGEST], inline=True)) == ((DIGEST,), True)
    blobs = {DIGEST: BlobState(1, data=b"a"), Digest.of(DigestKind.GIT_SHA1, b""): BlobState(0, complete=False)}
    assert parse_have_answer(encode_have_answer(blobs)) == blobs
    assert parse_rotten(encode_rotten(DIGEST, 7)) == (DIGEST, 7)
    assert parse_ref(encode_ref(CommitId("b" * 40))) == CommitId("b" * 40)
    assert parse_refusal(encode_refusal()) == "speaks protocols 1 to 1, this agent 1 to 1"


def test_the_largest_messages_are_within_their_limits() -> None:
    digests = [Digest.of(DigestKind.SHA256, str(n).encode()) for n in range(MOST_DIGESTS)]
    assert len(encode_have_query(digests, inline=True)) <= MOST_QUERY_BYTES
    states = {d: BlobState(1 << 44, complete=False, root="f" * 64) for d in digests}
    states |= {d: BlobState(1 << 16, root="f" * 64, data=bytes(1 << 16)) for d in digests[:64]}
    assert len(encode_have_answer(states)) <= MOST_ANSWER_BYTES
    peers = [f"[{'ffff:' * 7}ffff]:65535"] * MOST_PEERS
    hello = Hello(1, 1, "a" * 32, "\U0001f40b" * 64, "9" * 32, 65535, 65535, 1e10, peers)
    assert len(encode_hello(hello)) <= MOST_HELLO_BYTES
    assert parse_hello(encode_hello(hello)) == hello


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "bomb",
    [b"", b"[" * 10_000, b'{"x":' * 3000, b'{"x":' + b"[" * 9000, b" " * (9 << 20), b"\xff", b"nul", b"[]", b"1e400"],
)
def test_bombs_are_refused(parse: Callable[[bytes], Any], bomb: bytes) -> None:
    """FAULTS 8."""
    with pytest.raises(BadInput):
        parse(bomb)


@given(st.binary(max_size=200))
def test_noise_is_refused_or_understood(noise: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(noise)
        except BadInput:
            continue


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("protocol", -1), ("protocol", "1"), ("protocol", 10**30), ("oldest", 2), ("id", "A" * 32), ("id", "a" * 31),
        ("id", "../" * 11), ("name", ""), ("name", "a" * 65), ("name", "a\n"), ("name", "\x1b[2J"), ("name", "a\u202eb"),
        ("name", " a"), ("version", ""), ("version", "1 2"), ("lan_port", 0), ("lan_port", 65536), ("swarm_port", -1),
        ("time", -1), ("time", 1e300), ("time", None), ("peers", ["10.0.0.1"]), ("peers", ["evil.com:80"]),
        ("peers", ["10.0.0.1:0"]), ("peers", ["fe80::1%eth0:1"]), ("peers", ["1.2.3.4:1"] * 65), ("peers", "x"),
    ],
)  # fmt: skip
def test_each_field_of_a_hello_is_checked(field: str, bad: object) -> None:
    said = json.loads(encode_hello(HELLO)) | {field: bad}
    with pytest.raises(BadInput):
        parse_hello(json.dumps(said).encode())
    with pytest.raises(BadInput):
        parse_event(json.dumps({"hello": said}).encode())


@pytest.mark.parametrize(
    "state",
    [
        {}, {"size": -1}, {"size": (1 << 44) + 1}, {"size": 1, "root": "xy"}, {"size": 1, "root": "F" * 64},
        {"size": 1, "data": "YWI="}, {"size": 1, "data": "%%"}, {"size": 1, "complete": "yes"},
    ],
)  # fmt: skip
def test_each_field_of_a_state_is_checked(state: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        parse_have_answer(json.dumps({"blobs": {DIGEST.hex: state}}).encode())


def test_what_is_new_is_ignored_and_other_protocols_are_seen() -> None:
    said = json.loads(encode_hello(HELLO)) | {"later": {"a": [1]}, "protocol": 7, "oldest": 1}
    assert parse_hello(json.dumps(said).encode()).is_understood()
    assert not parse_hello(json.dumps(said | {"oldest": 2}).encode()).is_understood()
    assert parse_event(b'{"later":1}') == LanEvent()
    assert speaks(None)
    assert speaks("1")
    assert not any(speaks(text) for text in ("0", "2", "", "x", "\u0661", "1" * 9))


def test_addresses_and_askers() -> None:
    for host, port in (("10.0.0.1", 1), ("fd00::1", 65535)):
        assert parse_address(format_address(host, port)) == (host, port)
    for bad in (
        "",
        "10.0.0.1",
        "10.0.0.256:1",
        "010.0.0.1:1",
        "[10.0.0.1:1",
        "::1:80",
        "[::g]:1",
        "a.b:1",
        "1.2.3.4:65536",
    ):
        with pytest.raises(BadInput):
            parse_address(bad)
    assert parse_asker(str(Asker("a" * 32, 80))) == Asker("a" * 32, 80)
    assert [parse_asker(bad) for bad in (None, "", "a:1", "A" * 32 + ":1", "a" * 32 + ":0")] == [None] * 5
