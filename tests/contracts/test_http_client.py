"""What the environment and hostile addresses may not do to a client of bytes, and to the hub's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from aiohttp import web
from yarl import URL

from edgecdn.names import CommitId, RepoId, RepoType
from edgecdn.sources.faults import Broken, Misbehaved, SourceFault
from edgecdn.sources.http import ByteClient, Credentials
from edgecdn.sources.hub_api import HubApi
from edgecdn.sources.hub_client import next_page
from tests.hub import TestHub, make_repo, status

LONG = f"http://{'a' * 70}.example.com/"


class _Server:
    """Remembers what it was asked; redirects when told to."""

    def __init__(self) -> None:
        self.url = ""
        self.location = ""
        self.seen: list[tuple[str, str, str]] = []

    async def answer(self, request: web.BaseRequest) -> web.Response:
        headers = request.headers
        self.seen.append((str(request.url), headers.get("Authorization", ""), headers.get("Proxy-Authorization", "")))
        if self.location:
            return web.Response(status=302, headers={"Location": self.location})
        return web.json_response({})


@pytest.fixture
async def server() -> AsyncIterator[_Server]:
    made = _Server()
    runner = web.ServerRunner(web.Server(made.answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = "http://{}:{}".format(*runner.addresses[0][:2])
    yield made
    await runner.cleanup()


@pytest.mark.parametrize("token", ["", "hf_x"])
async def test_netrc_is_sent_nowhere(
    server: _Server, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    client = ByteClient([Credentials(server.url, token)] if token else [])
    await client.get_json(URL(server.url))
    await client.close()
    assert [sent for _, sent, _ in server.seen] == [f"Bearer {token}" if token else ""]


async def test_the_proxy_of_the_environment_is_used(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url.replace("://", "://me:secret@"))
    client = ByteClient()
    await client.get_json(URL("http://hub.invalid/x"))
    assert server.seen == [("http://hub.invalid/x", "", "Basic bWU6c2VjcmV0")]
    monkeypatch.setenv("no_proxy", "hub.invalid")
    with pytest.raises(Broken):
        await client.get_json(URL("http://hub.invalid/x"))
    await client.close()


@pytest.mark.parametrize("location", [LONG, "http://h:99999/", "http://[::1/", "http://a..b/", "http://%zz/"])
async def test_a_redirect_to_an_impossible_host_is_a_fault(server: _Server, location: str) -> None:
    server.location = location
    client = ByteClient()
    with pytest.raises(SourceFault):
        await client.get_json(URL(server.url))
    await client.close()


async def test_an_impossible_host_is_a_fault() -> None:
    client = ByteClient()
    with pytest.raises(SourceFault):
        await client.get_json(URL(LONG))
    await client.close()


@pytest.mark.parametrize("there", ["http://hub", "https://other", "https://hub:8443", "//other"])
def test_a_listing_may_not_continue_elsewhere(there: str) -> None:
    request = httpx2.Request("GET", "https://hub/api/x")
    for target in ("/api/x?cursor=1", "https://hub:443/api/x?cursor=1"):
        next_page(httpx2.Response(200, headers={"Link": f'<{target}>; rel="next"'}, request=request))
    response = httpx2.Response(200, headers={"Link": f'<{there}/api/x>; rel="next"'}, request=request)
    with pytest.raises(Misbehaved, match="another host"):
        next_page(response)


async def test_a_listing_of_our_own_process_or_not_never_continues_elsewhere() -> None:
    repo = make_repo("org/name", {"a": b"a"})
    async with TestHub([repo], tokens=["hf_secret"]) as hub, TestHub([repo], tokens=["hf_secret"]) as other:
        headers = {"Link": f'<{other.url}/api/models/org/name/tree/{repo.main}>; rel="next"'}
        hub.inject(status(200, headers, text="[]", path="*/tree/*"))
        api = HubApi(hub.url, Credentials(hub.url, "hf_secret"))
        with pytest.raises(Misbehaved, match="another host"):
            await api.manifest(RepoId(RepoType.MODEL, "org/name"), CommitId(repo.main))
        assert not other.stats.requests
