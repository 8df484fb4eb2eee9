"""Hubs, agents, peers and caches that go away under the hub's own client, at every moment that matters."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import aiohttp
import pytest

from tests.agent.agents import Agent, eventually, lab
from tests.agent.gateway_lab import gateway as gateway_parts
from tests.agent.hub_clients import Clients, HubClient, _clients, curl, gateway  # noqa: F401 - a fixture
from tests.faults.conftest import _plain_client  # noqa: F401 - no token and no cache of whoever runs the tests
from tests.faults.machine import TOKEN, contents
from tests.hub import Generated, TestHub, make_repo, slow_total, status
from tests.hub.content import Content

pytestmark = pytest.mark.timeout(180)

MIB = 1 << 20
BIG = 12 * MIB
NAME = "m.safetensors"
FILES: dict[str, Content] = {"config.json": b"{}", NAME: Generated(7, BIG)}

GIVEN = 256 << 10
HELD_UP = slow_total(2 * GIVEN, route="cdn")
"""So slow a line that no download is done before the test lifts it, and so fast that none is silent."""

IMPATIENT = """
import time
pause = time.sleep
time.sleep = lambda seconds: pause(min(seconds, 0.1))
"""
"""The client's own pauses between its tries, cut short where a test is about how it ends."""


async def down(hub: TestHub) -> None:
    """All of it refuses connections."""
    await hub.go_down("hub")
    await hub.go_down("cdn")


async def up(hub: TestHub) -> None:
    await hub.come_back("cdn")
    await hub.come_back("hub")


async def is_given(agent: Agent, path: str = NAME) -> None:
    """Wait until the gateway begins with a file: for a moment after it failed it does not."""

    async def begins() -> bool:
        url = f"{gateway(agent)}/org/name/resolve/main/{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status == 200

    await eventually(begins, 20, f"{path} is given")


async def test_the_hub_is_down_from_the_start(tmp_path: Path, clients: Clients) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        await down(hub)
        client = clients(gateway(one), prelude=IMPATIENT)
        got = await client.download(NAME)
        assert got.error == "LocalEntryNotFoundError"
        assert not client.blobs()
        await up(hub)
        assert (await client.download()).files == contents(repo)
        await down(hub)
        assert (await client.download()).files == contents(repo)  # its own
        other = clients(gateway(one), "other")
        assert (await other.download()).files == contents(repo)  # the agent's: listing, ref and bytes


@pytest.mark.parametrize("role", ["hub", "cdn"])
async def test_the_hub_goes_down_between_the_metadata_and_the_bytes(
    tmp_path: Path, clients: Clients, role: str
) -> None:
    """All of it, or its storage alone."""
    repo = make_repo("org/name", FILES)
    pause = """\
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
HfApi().model_info(sys.argv[1])
get_hf_file_metadata(hf_hub_url(sys.argv[1], sys.argv[2]))
print("{}", flush=True)
sys.stdin.readline()
"""
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub, fetch_patience="1s") as made:
        one = await made.agent("one")
        client = clients(gateway(one), prelude=IMPATIENT + pause)
        running = await client.start(NAME)
        assert running.stdout is not None
        assert running.stdin is not None
        await running.stdout.readline()
        await hub.go_down(role)
        if role == "hub":
            await hub.go_down("cdn")
        running.stdin.write(b"\n")
        got = await client.finish(running)
        assert "503" in got.message
        assert "No source is reachable" in got.message
        assert not client.blobs()
        await up(hub) if role == "hub" else await hub.come_back(role)
        await is_given(one)
        again = clients(gateway(one))
        assert (await again.download(NAME)).files == {NAME: contents(repo)[NAME]}


async def test_the_hub_goes_down_amid_the_bytes_and_comes_back(tmp_path: Path, clients: Clients) -> None:
    """The client that waits never notices."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub, fetch_patience="60s") as made:
        one = await made.agent("one")
        hub.inject(HELD_UP)
        client = clients(gateway(one))
        running = await client.start(NAME)
        await client.has_got(GIVEN)
        await down(hub)
        hub.clear()
        assert (await curl(f"{gateway(one)}/healthz", into=tmp_path / "health")).status == 200
        await up(hub)
        assert (await client.finish(running)).files == {NAME: contents(repo)[NAME]}


async def test_the_hub_goes_down_amid_the_bytes_for_good(tmp_path: Path, clients: Clients) -> None:
    """The client fails; its next run has the file, and what had come does not come again."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub, fetch_patience="1s") as made:
        one = await made.agent("one")
        hub.inject(HELD_UP)
        client = clients(gateway(one))
        running = await client.start(NAME)
        await client.has_got(GIVEN)
        await down(hub)
        hub.clear()
        got = await client.finish(running)
        assert "503" in got.message  # not for ever: bytes that are here already, and cut, again and again
        assert "No source is reachable" in got.message
        assert not client.blobs()
        await up(hub)
        await is_given(one)
        assert (await client.download(NAME)).files == {NAME: contents(repo)[NAME]}


async def test_the_hub_takes_the_file_away_amid_the_bytes(tmp_path: Path, clients: Clients) -> None:
    """The client is told so; what is here of it is not given again and again."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        hub.inject(HELD_UP)
        client = clients(gateway(one))
        running = await client.start(NAME)
        await client.has_got(GIVEN)
        await hub.go_down("cdn")
        hub.clear()
        hub.inject(status(403, route="cdn"), status(404, {"X-Error-Code": "EntryNotFound"}, route="resolve", path=NAME))
        await hub.come_back("cdn")
        got = await client.finish(running)
        assert got.path is None
        assert "404" in got.message
        assert not client.blobs()


async def _is_killed_under(client: HubClient, one: Agent, hub: TestHub) -> asyncio.subprocess.Process:
    """A download in whose middle the agent is killed."""
    hub.inject(HELD_UP)
    running = await client.start(NAME)
    await client.has_got(GIVEN)
    one.kill_agent()
    hub.clear()
    return running


async def test_the_agent_is_killed_and_comes_back(tmp_path: Path, clients: Clients) -> None:
    """On the same port: the client goes on by itself where it was."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        where = one.listener("local")
        client = clients(gateway(one))
        running = await _is_killed_under(client, one, hub)
        await made.start(one, gateway_listen=where)
        assert one.listener("local") == where
        got = await client.finish(running)
        if got.path is not None:  # else it had given up before the agent was back
            assert got.files == {NAME: contents(repo)[NAME]}
        assert (await client.download(NAME)).files == {NAME: contents(repo)[NAME]}
        assert len(one.blobs()) == 1


async def test_the_agent_is_killed_and_stays_away(tmp_path: Path, clients: Clients) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        client = clients(gateway(one), prelude=IMPATIENT)
        got = await client.finish(await _is_killed_under(client, one, hub))
        assert got.path is None
        assert not client.blobs()
        await made.start(one)
        client.endpoint = gateway(one)
        hub.stats.reset()
        assert (await client.download(NAME)).files == {NAME: contents(repo)[NAME]}


async def test_the_cache_is_emptied_while_it_is_given(tmp_path: Path, clients: Clients) -> None:
    """`hf cache rm` of what is here: who reads goes on, and the next one begins a new delivery."""
    size = 32 * MIB
    repo = make_repo("org/name", {NAME: Generated(7, size)})
    data = contents(repo)[NAME]
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        own = clients(gateway(one), "own", cache=one.cache)
        await one.fetch_here("org/name")
        url = f"{gateway(one)}/org/name/resolve/main/{NAME}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            got = await answer.content.readexactly(10)
            await own.hf("cache", "rm", "model/org/name", "--yes")
            assert not one.blobs()
            got += await answer.read()
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
        hub.stats.reset()
        client = clients(gateway(one))
        assert (await client.download(NAME)).files == {NAME: data}
        assert hub.stats.total >= size
        assert len(one.blobs()) == 1


async def test_the_cache_is_emptied_while_the_file_comes(tmp_path: Path, clients: Clients) -> None:
    """`hf cache rm` amid a delivery: the client still gets the right file, and the cache is whole."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        own = clients(gateway(one), "own", cache=one.cache)
        assert (await curl(f"{gateway(one)}/org/name/resolve/main/config.json", into=tmp_path / "c")).body == b"{}"
        hub.inject(HELD_UP)
        client = clients(gateway(one))
        running = await client.start(NAME)
        await client.has_got(GIVEN)
        await own.hf("cache", "rm", "model/org/name", "--yes")
        hub.clear()
        got = await client.finish(running)
        if got.path is None:
            assert got.message
            got = await client.download(NAME)
        assert got.files == {NAME: contents(repo)[NAME]}


async def test_a_peer_is_killed_amid_the_bytes(tmp_path: Path, clients: Clients) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        holder = await made.agent("holder", limits_upload="2MB/s")
        await holder.fetch_here("org/name")
        await holder.gives(repo.commits[repo.main].files[NAME].sha256)
        one = await made.agent("one")
        await one.knows(1)
        hub.stats.reset()
        client = clients(gateway(one))
        running = await client.start(NAME)
        await client.has_got(MIB)
        assert not hub.stats.total
        holder.kill_agent()
        assert (await client.finish(running)).files == {NAME: contents(repo)[NAME]}
        assert 0 < hub.stats.total < BIG  # the rest


async def test_a_repo_that_becomes_gated(tmp_path: Path, clients: Clients) -> None:
    """After the minute for which an answer holds, callers hear what the hub says now."""
    repo = make_repo("org/name", {"config.json": b"{}"})
    async with (
        TestHub([repo], tokens={TOKEN: {"org/name"}}) as hub,
        gateway_parts(tmp_path / "agent", hub) as gate,
    ):
        stranger = clients(gate.url, "stranger")
        friend = clients(gate.url, "friend", token=TOKEN)
        assert (await stranger.download()).files == contents(repo)
        repo.gated = "auto"
        gate.clock.now += 61
        repo.add_commit({"config.json": b'{"new": true}'})
        late = clients(gate.url, "late")
        assert (await late.download()).error == "GatedRepoError"
        assert not late.blobs()
        assert (await stranger.download("config.json")).error in ("", "GatedRepoError")
        assert (await friend.download()).files == contents(repo)
