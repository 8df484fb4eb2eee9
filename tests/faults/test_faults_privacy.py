"""Rows 52 to 54: where requests may lead, who sees the token, and which hub may move a branch."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory
from yarl import URL

from edgecdn.errors import EdgecdnError
from edgecdn.sources.faults import Misbehaved
from edgecdn.sources.http import ByteClient, RememberingResolver
from edgecdn.sources.hub_client import guard_hub_client
from tests.faults.machine import TOKEN, Machine, contents, files_in
from tests.hub import Generated, TestHub, make_repo, redirect_to

REPO = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(1, 2 << 20)})


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address that anything in this process connects to."""
    seen: list[Any] = []
    plain = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        seen.append(address)
        plain(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return seen


FORBIDDEN = [
    "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1/x",
    "http://172.16.0.1/x",
    "http://192.168.1.1:8080/x",
    "http://[fe80::1]/x",
    "http://[fd00::1]/x",
    "http://[::ffff:169.254.169.254]/x",
    "http://0.0.0.0/x",
    "file:///etc/passwd",
    "ftp://127.0.0.1/x",
]


@pytest.mark.parametrize("url", FORBIDDEN)
async def test_52_redirect_to_a_forbidden_address(machine: Machine, url: str, connected: list[Any]) -> None:
    async with TestHub([REPO]) as hub:
        hub.inject(redirect_to(url, route="resolve"))
        with pytest.raises(EdgecdnError, match="redirects") as caught:
            await machine.fetch("org/name", hub, fetch_patience="4s")
    assert caught.value.exit_code == 6
    assert connected
    assert {address[0] for address in connected} == {"127.0.0.1"}


@pytest.mark.parametrize("address", ["169.254.169.254", "192.168.0.10"])
async def test_52_redirect_to_a_name_that_resolves_to_one(
    machine: Machine, address: str, connected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = RememberingResolver.resolve

    async def resolve(self: RememberingResolver, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
        if host == "cdn.example":
            return [{"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}]
        return await plain(self, host, port, family)

    monkeypatch.setattr(RememberingResolver, "resolve", resolve)
    async with TestHub([REPO]) as hub, TestHub([REPO]) as good:
        hub.inject(redirect_to("http://cdn.example/x", route="resolve"))
        fetched = await machine.fetch("org/name", hub, good)
    assert files_in(fetched.path) == contents(REPO)
    assert {address[0] for address in connected} == {"127.0.0.1"}


@pytest.fixture
def guarded() -> Iterator[None]:
    """As in a program of ours."""
    guard_hub_client()
    yield
    set_client_factory(default_client_factory)


@pytest.mark.usefixtures("guarded")
async def test_52_redirect_of_the_api_to_a_forbidden_address(machine: Machine, connected: list[Any]) -> None:
    async with TestHub([REPO]) as hub:
        hub.inject(redirect_to(FORBIDDEN[0], route="api"))
        with pytest.raises(EdgecdnError):
            await machine.fetch("org/name", hub)
    assert {address[0] for address in connected} == {"127.0.0.1"}


async def test_52_redirect_loop(machine: Machine) -> None:
    async with TestHub([REPO]) as hub:
        base = f"{hub.url}/org/name/resolve/{REPO.main}"
        hub.inject(
            redirect_to(f"{base}/two", route="resolve", path="*.safetensors"),
            redirect_to(f"{base}/three", route="resolve", path="two"),
            redirect_to(f"{base}/two", route="resolve", path="three"),
        )
        with pytest.raises(EdgecdnError, match="redirects more than 5 times"):
            await machine.fetch("org/name", hub, fetch_patience="4s")
        assert len(hub.stats.asked(contains="/resolve/")) < 40


async def test_52_redirect_to_itself(machine: Machine) -> None:
    async with TestHub([REPO]) as hub:
        hub.inject(redirect_to("", route="resolve", path="*.safetensors"))
        with pytest.raises(EdgecdnError, match="redirects"):
            await machine.fetch("org/name", hub, fetch_patience="4s")


async def test_52_from_https_to_http() -> None:
    class Answer:
        url = URL("https://hub.example/a")
        headers = {"Location": "http://hub.example/b"}

    client = ByteClient()
    try:
        with pytest.raises(Misbehaved, match="plain http"):
            await client._next_hop(URL("https://hub.example/a"), Answer(), 1)  # type: ignore[arg-type]
    finally:
        await client.close()


def _authorized(hub: TestHub) -> set[str]:
    return {seen.listener for seen in hub.stats.requests if TOKEN in repr(dict(seen.headers)) or TOKEN in seen.path}


async def test_53_the_token_goes_to_its_hub_alone(machine: Machine) -> None:
    repo = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(5, 6 << 20)}, private=True)
    public = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(5, 6 << 20)})
    async with (
        TestHub([repo], tokens=[TOKEN]) as origin,
        TestHub([public], modelscope=True) as mirror,
    ):
        elsewhere = redirect_to(f"{mirror.url}/org/name/resolve/{public.main}/config.json", route="resolve", times=1)
        origin.inject(elsewhere)
        variables = {"HF_TOKEN": TOKEN, "EDGECDN_HUB_MODELSCOPE": mirror.modelscope_url}
        ran = await machine.run("fetch", "org/name", "--verbose", hubs=(origin, mirror), variables=variables)
        assert ran.code == 0, ran.err
        assert TOKEN not in ran.err + ran.out
        assert _authorized(origin) == {"hub"}
        assert origin.stats.by_route["cdn"] or mirror.stats.by_route["cdn"]
        assert {"hub"} <= {seen.listener for seen in origin.stats.requests}
        assert _authorized(mirror) == set()
        assert {seen.listener for seen in mirror.stats.requests} >= {"hub", "modelscope"}
    assert files_in(ran.out.splitlines()[-1]) == contents(repo)


async def test_53_errors_do_not_show_the_token(machine: Machine) -> None:
    gated = make_repo("org/name", {"a": b"a"}, gated=True)
    async with TestHub([gated], tokens={TOKEN: []}) as hub:
        ran = await machine.run("fetch", "org/name", "--verbose", hubs=(hub,), variables={"HF_TOKEN": TOKEN})
        assert ran.code == 4
        await hub.go_down("hub")
        ran = await machine.run("fetch", "org/name", "--verbose", hubs=(hub,), variables={"HF_TOKEN": TOKEN})
        assert ran.code == 6


async def test_53_a_redirect_of_the_api_does_not_take_the_token_along(machine: Machine) -> None:
    async with TestHub([REPO], tokens=[TOKEN]) as origin, TestHub([REPO]) as other:
        origin.inject(redirect_to(f"{other.url}/api/models/org/name/revision/main", route="api"))
        await machine.run("fetch", "org/name", hubs=(origin,), variables={"HF_TOKEN": TOKEN})
        assert _authorized(other) == set()


async def test_54_an_older_mirror_does_not_roll_a_branch_back(machine: Machine) -> None:
    behind = make_repo("org/name", {"config.json": b"{}"})
    ahead = make_repo("org/name", {"config.json": b"{}"})
    new = ahead.add_commit({"config.json": b'{"new": 1}'})
    async with TestHub([ahead]) as origin, TestHub([behind]) as mirror:
        await machine.fetch("org/name", origin, mirror)
        assert machine.ref() == new
        await origin.go_down("hub")
        stale = await machine.fetch("org/name", origin, mirror)
        assert machine.ref() == stale.commit == new
        assert "is behind what is here" in machine.said
        newest = behind.add_commit({"config.json": b'{"new": 1}'})
        assert newest == new
        newer = behind.add_commit({"config.json": b'{"new": 2}'})
        await machine.fetch("org/name", origin, mirror)
        assert machine.ref() == newer  # its history holds ours: it is ahead
