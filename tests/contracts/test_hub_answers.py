"""Every odd answer of a hub or its storage is the right fault, and never data."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from edgecdn.events import Kind as SourceKind
from edgecdn.names import RepoId, RepoType
from edgecdn.sources import http as http_module
from edgecdn.sources.faults import Broken, Busy, Misbehaved, Missing, NoRanges, SourceFault
from edgecdn.sources.http import ByteClient
from edgecdn.sources.modelscope import ModelScopeSource
from edgecdn.spans import Span
from tests.contracts.hub_client import DATA, ENTRY, PART, SMALL, Client, hub_client, read
from tests.contracts.test_sources import manifest_of
from tests.hub import Fault, Kind, TestHub, close_early, make_repo, reset, stall, status, wrong_bytes


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setenv("NO_PROXY", "*")
    async with hub_client() as made:
        yield made


BODY_FAULTS: list[tuple[Fault, type[SourceFault]]] = [
    (reset(100_000), Broken),
    (reset(), Broken),
    (close_early(100_000), Broken),
    (Fault(Kind.LONG_BODY), Misbehaved),
    (Fault(Kind.GZIP), Misbehaved),
    (Fault(Kind.IGNORE_RANGE), NoRanges),
    (Fault(Kind.WRONG_CONTENT_RANGE), Misbehaved),
    (Fault(Kind.WRONG_LENGTH), SourceFault),
    (Fault(Kind.CAPTIVE_PORTAL), Misbehaved),
    (status(404), SourceFault),
    (status(429, {"Retry-After": "7"}), Busy),
    (status(503), Busy),
    (status(500), Broken),
    (status(502), Broken),
    (status(416), SourceFault),
    (status(204), SourceFault),
]


@pytest.mark.parametrize("route", ["resolve", "cdn"])
@pytest.mark.parametrize(("fault", "expected"), BODY_FAULTS, ids=lambda v: getattr(v, "kind", ""))
async def test_wrong_answers_are_the_right_fault(
    client: Client, fault: Fault, expected: type[SourceFault], route: str
) -> None:
    """FAULTS 9, 15, 20, 21 and 51, at the hub and at its storage."""
    client.hub.state.cdn = route == "cdn"
    client.hub.inject(Fault(**{**fault.to_json(), "kind": fault.kind, "route": route}))
    source, offer = await client.offer()
    got = bytearray()
    with pytest.raises(expected) as caught:
        async for piece in source.read(offer, PART):
            got += piece
    assert DATA[PART.start : PART.stop].startswith(got), "a wrong byte was given as data"
    assert len(got) < len(PART)
    assert not isinstance(caught.value, Busy) or caught.value.retry_after_s in (7.0, None)
    client.hub.clear()
    if expected is NoRanges:  # what it gives only whole, it gives whole
        assert await read(source, offer, Span(0, len(DATA))) == DATA
    else:
        assert await read(source, offer, PART) == DATA[PART.start : PART.stop]


async def test_a_body_without_a_length_is_counted(client: Client) -> None:
    client.hub.inject(Fault(Kind.NO_CONTENT_LENGTH))
    assert await client.read() == DATA[PART.start : PART.stop]
    client.hub.inject(Fault(Kind.LONG_BODY))
    with pytest.raises(Misbehaved):
        await client.read()


async def test_a_stalled_body_is_broken(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 16: the limit itself is the session's, here shortened."""
    monkeypatch.setattr(http_module, "STALL_S", 0.2)
    client.hub.inject(stall(50_000))
    with pytest.raises(Broken, match="gave no byte"):
        await client.read()


async def test_a_hub_that_is_down_is_broken(client: Client) -> None:
    await client.hub.go_down("hub")
    with pytest.raises(Broken, match="cannot be connected to"):
        await client.read()


async def test_a_name_that_does_not_resolve_is_broken(client: Client) -> None:
    """FAULTS 20."""
    with pytest.raises(Broken):
        await client.read(endpoint="http://no-such-host.invalid")


async def test_another_digest_or_commit_is_missing(client: Client) -> None:
    """FAULTS 50 and 55."""
    client.hub.inject(Fault(Kind.WRONG_ETAG, route="resolve", times=1))
    with pytest.raises(Missing, match="has other bytes"):
        await client.read()
    client.hub.inject(status(200, {"X-Repo-Commit": "d" * 40}, route="resolve", times=1))
    with pytest.raises(Missing, match="answers for commit"):
        await client.read()


async def test_wrong_bytes_are_the_verifiers_business(client: Client) -> None:
    """A source gives what it is given; the digest decides."""
    client.hub.inject(wrong_bytes(offset=PART.start))
    assert await client.read() == bytes([DATA[PART.start] ^ 0xFF]) + DATA[PART.start + 1 : PART.stop]


async def test_modelscope_offers_by_digest_whatever_the_path() -> None:
    moved = make_repo("org/name", {"elsewhere/weights.bin": DATA, "config.json": b'{"a": 2}\n'})
    async with TestHub([moved], modelscope=True) as hub:
        client = ByteClient()
        source = ModelScopeSource(hub.modelscope_url, SourceKind.MIRROR, client, connections=2)
        offers = await source.offer(manifest_of("org/name", [ENTRY, SMALL]), [ENTRY, SMALL])
        assert set(offers) == {ENTRY.digest}
        pieces = [piece async for piece in source.read(offers[ENTRY.digest], PART)]
        assert b"".join(pieces) == DATA[PART.start : PART.stop]
        with pytest.raises(Missing):
            await source.offer(manifest_of("org/unknown", [ENTRY]), [ENTRY])
        space = manifest_of("org/name", [ENTRY])
        assert (
            await source.offer(type(space)(RepoId(RepoType.SPACE, "org/name"), space.commit, space.files), [ENTRY])
            == {}
        )
        await client.close()
