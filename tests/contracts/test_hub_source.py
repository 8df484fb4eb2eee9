"""What only a source behind redirects can get wrong: addresses, signatures, tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from yarl import URL

from edgecdn.sources import http as http_module
from edgecdn.sources.faults import Broken, Denied, Misbehaved, Missing
from edgecdn.sources.http import ByteClient, Credentials
from edgecdn.spans import Span
from tests.contracts.hub_client import DATA, PART, PATH, TOKEN, Client, hub_client, read
from tests.contracts.test_sources import REPO
from tests.hub import TestHub, redirect_to, status


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setenv("NO_PROXY", "*")
    async with hub_client() as made:
        yield made


class TestRedirects:
    """Signed storage addresses."""

    async def test_the_address_is_asked_for_once(self, client: Client) -> None:
        source, offer = await client.offer()
        for start in range(0, 5_000_000, 1_000_000):
            assert await read(source, offer, Span(start, start + 1000)) == DATA[start : start + 1000]
        assert [seen.listener for seen in client.hub.stats.requests] == ["hub"] + ["cdn"] * 5

    async def test_an_expired_signature_is_renewed(self, client: Client) -> None:
        source, offer = await client.offer()
        await read(source, offer, PART)
        client.clock.now += 61
        with pytest.raises(Broken, match="no longer accepts"):
            await read(source, offer, PART)
        assert await read(source, offer, PART) == DATA[PART.start : PART.stop]
        assert [(s.listener, s.status) for s in client.hub.stats.requests] == [
            ("hub", 302), ("cdn", 206), ("cdn", 403), ("hub", 302), ("cdn", 206),
        ]  # fmt: skip

    async def test_a_signature_that_expires_while_bytes_flow_does_not_stop_them(self, client: Client) -> None:
        source, offer = await client.offer()
        got = bytearray()
        async for piece in source.read(offer, Span(0, len(DATA))):
            client.clock.now += 3600
            got += piece
        assert got == DATA

    async def test_storage_that_refuses_a_fresh_address_misbehaves_and_nobody_is_denied(self, client: Client) -> None:
        client.hub.inject(status(403, route="cdn"))
        with pytest.raises(Misbehaved, match="localhost, which refuses"):
            await client.read()

    @pytest.mark.parametrize(
        "url",
        ["http://169.254.169.254/latest/meta-data", "http://10.0.0.1/x", "http://192.168.0.1:8080/", "http://[fd00::1]/",
         "http://0.0.0.0:1/", "file:///etc/passwd", "ftp://localhost/x", ""],
    )  # fmt: skip
    async def test_a_redirect_to_what_is_not_the_hubs_business(self, client: Client, url: str) -> None:
        """FAULTS 52."""
        client.hub.inject(redirect_to(url, route="resolve"))
        with pytest.raises(Misbehaved, match="redirects to"):
            await client.read()

    async def test_a_public_hub_may_not_lead_to_this_machine(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """FAULTS 52, judged by where names resolve to."""
        answers = {"hub.example": "18.164.174.23", "inside.example": "127.0.0.1", "dual.example": "18.164.174.24"}

        async def resolve(_self: object, host: str, port: int = 0, family: int = 0) -> list[dict[str, str]]:
            found = [{"host": answers[host]}]
            return found if host != "dual.example" else [*found, {"host": "169.254.169.254"}]

        monkeypatch.setattr(http_module.RememberingResolver, "resolve", resolve)
        hub = URL("https://hub.example/x")
        for name in ("inside.example", "dual.example"):
            with pytest.raises(Misbehaved, match="is refused"):
                await client.byte_client.check_reach(hub, URL(f"https://{name}/"))
        answers["inside.example"] = "18.164.174.99"
        await client.byte_client.check_reach(hub, URL("https://inside.example/"))

    async def test_redirects_without_end(self, client: Client) -> None:
        client.hub.inject(redirect_to(f"{client.hub.url}/org/name/resolve/main/x?again", route="resolve"))
        with pytest.raises(Misbehaved):
            await client.read()
        assert len(client.hub.stats.requests) <= 7


class TestTokens:
    """FAULTS 53: the token goes to its hub and nowhere else."""

    async def test_not_to_the_storage_a_redirect_leads_to(self, client: Client) -> None:
        await client.read()
        sent = {(seen.listener, seen.authorization) for seen in client.hub.stats.requests}
        assert sent == {("hub", f"Bearer {TOKEN}"), ("cdn", None)}

    async def test_not_to_another_hub_nor_another_port_of_the_host(self, client: Client) -> None:
        async with TestHub([REPO], cdn=False) as mirror:
            await client.read(endpoint=mirror.url)
            client.hub.inject(redirect_to(f"{mirror.url}/org/name/resolve/{REPO.main}/{PATH}", route="resolve"))
            await client.read()
            assert len(mirror.stats.requests) == 2
            assert {seen.authorization for seen in mirror.stats.requests} == {None}
            assert all(TOKEN not in str(seen.headers) + seen.path for seen in mirror.stats.requests)

    async def test_not_shown_when_printed(self, client: Client) -> None:
        own = Credentials(client.hub.url, TOKEN)
        assert TOKEN not in f"{own!r} {own} {[own]}"
        assert own.headers_for(URL(client.hub.url).with_scheme("https")) == {}

    async def test_what_it_opens_is_closed_without_it(self, client: Client) -> None:
        bare = ByteClient()
        stranger = Client(client.hub, bare, client.clock)
        for repo in ("org/gated", "org/private"):
            assert await client.read(repo=repo) == DATA[PART.start : PART.stop]
        with pytest.raises(Denied) as caught:
            await stranger.read(repo="org/gated")
        assert caught.value.gated
        with pytest.raises(Missing):  # a private repo does not show that it exists
            await stranger.read(repo="org/private")
        await bare.close()
