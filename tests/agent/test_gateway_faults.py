"""Rows 9, 10, 50, 53, 61, 62 and 64 with real agents and the hub's own client: what is asked, and what is answered."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from pathlib import Path

import aiohttp
import pytest

from tests.agent.agents import Agent, eventually, lab
from tests.agent.hub_clients import Clients, _clients, curl, gateway  # noqa: F401 - a fixture
from tests.conformance.environments import ENVIRONMENTS
from tests.faults.conftest import _plain_client, mounts  # noqa: F401 - fixtures
from tests.faults.machine import TOKEN, contents
from tests.faults.mounts import Mounts, fill
from tests.hub import Generated, TestHub, dry_up, make_repo, redirect_to, wrong_bytes
from tests.hub.content import Content

pytestmark = pytest.mark.timeout(180)

MIB = 1 << 20
BIG = 12 * MIB
NAME = "m.safetensors"
FILES: dict[str, Content] = {"config.json": b"{}", NAME: Generated(7, BIG)}
OTHER_HOST = "127.0.0.2"


def url_of(agent: Agent, path: str = NAME, repo: str = "org/name") -> str:
    """Of a file, at its gateway."""
    return f"{gateway(agent)}/{repo}/resolve/main/{path}"


async def begins(path: Path) -> bool:
    """Whether something is in a file."""
    return path.exists() and path.stat().st_size > 0


async def is_given(agent: Agent) -> bool:
    """Whether the gateway begins with the file: for a moment after it failed midway it does not."""
    async with aiohttp.ClientSession() as session, session.get(url_of(agent)) as answer:
        return answer.status == 200


def sha256(data: bytes) -> str:
    """What is compared where a mismatch of megabytes must not be printed."""
    return hashlib.sha256(data).hexdigest()


async def test_10_every_size_through_the_client(tmp_path: Path, clients: Clients) -> None:
    sizes = (0, 1, (16 << 10) - 1, 16 << 10, (16 << 10) + 1, MIB - 1, MIB, MIB + 1)
    files: dict[str, Content] = {f"lfs/{size}.safetensors": Generated(size, size) for size in sizes}
    files |= {f"git/{size}.txt": bytes([size % 251]) * size for size in sizes}
    repo = make_repo("org/name", files)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        first = clients(gateway(one), "first")
        assert (await first.download()).files == contents(repo)
        hub.stats.reset()
        second = clients(gateway(one), "second")
        assert (await second.download()).files == contents(repo)
        assert not hub.stats.total  # all of it was in the agent's cache


@pytest.mark.parametrize("is_here", [False, True], ids=["absent", "here"])
async def test_9_every_form_of_range(tmp_path: Path, clients: Clients, is_here: bool) -> None:
    size = 3 * MIB + 5
    repo = make_repo("org/name", {NAME: Generated(7, size)})
    data = contents(repo)[NAME]
    parts = {
        "0-0": data[:1], "5-9": data[5:10], "-7": data[-7:], f"-{size * 9}": data, f"{size - 1}-": data[-1:],
        f"7-{10**30}": data[7:], f"{2 * MIB}-": data[2 * MIB :],
    }  # fmt: skip
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        if is_here:
            assert (await curl(url_of(one), into=tmp_path / "whole")).body == data
        for number, (asked, expected) in enumerate(parts.items()):
            got = await curl(url_of(one), "-H", f"Range: bytes={asked}", into=tmp_path / f"part-{number}")
            assert got.status == 206, asked
            assert got.body == expected, asked
        for number, asked in enumerate(("9-5", "0-1,5-6", "-", "", "a-b", "9" * 400, f"0-1,{'2-3,' * 500}4-5")):
            got = await curl(url_of(one), "-H", f"Range: bytes={asked}", into=tmp_path / f"odd-{number}")
            assert got.status == 416 or (got.status, got.body) == (200, data), asked
        for asked in (f"{size}-", f"{size + 5}-{size + 9}", f"{10**30}-"):
            got = await curl(url_of(one), "-H", f"Range: bytes={asked}", into=tmp_path / "behind")
            assert got.status in (200, 416), asked
            if got.status == 416:
                assert got.headers["content-range"] == [f"bytes */{size}"], asked


async def test_50_wrong_bytes_never_become_a_file(tmp_path: Path, clients: Clients) -> None:
    """And a client that tries again when the origin gives what it should has the right file."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        hub.inject(wrong_bytes(offset=3 * MIB, route="cdn"))
        client = clients(gateway(one))
        got = await client.download(NAME)
        assert got.error
        assert not client.blobs()
        assert not one.blobs()
        hub.clear()
        await one.stop_agent()  # within ten minutes it would not try again by itself
        await made.start(one)
        client.endpoint = gateway(one)
        assert (await client.download(NAME)).files == {NAME: contents(repo)[NAME]}


async def test_50_wrong_for_a_moment(tmp_path: Path, clients: Clients) -> None:
    """One answer of the origin is wrong: within the same run the client has the right file."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        hub.inject(wrong_bytes(offset=3 * MIB, route="cdn", times=1))
        client = clients(gateway(one))
        got = await client.download(NAME)
        assert got.files == {NAME: contents(repo)[NAME]}


@pytest.mark.parametrize("tool", ["curl", "hub036", "hub030"] if os.environ.get("CONFORMANCE") == "all" else ["curl"])
async def test_50_nobody_resumes_on_wrong_bytes_when_the_agent_was_restarted(
    tmp_path: Path, clients: Clients, tool: str
) -> None:
    """A mirror lies, the user changes it, restarts the agent, and goes on: with `curl -C -`, or a client before 1.0."""
    repo = make_repo("org/name", FILES)
    data = contents(repo)[NAME]
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        hub.inject(wrong_bytes(offset=100, route="cdn"))
        client = None if tool == "curl" else clients(gateway(one), client=ENVIRONMENTS[tool])
        if client is None:
            broken = await curl(url_of(one), into=tmp_path / "file")
            assert broken.code
            assert broken.body
        else:
            assert (await client.download(NAME)).error
            assert list(client.cache.rglob("*.incomplete"))  # it is kept, and resumed
        await one.stop_agent()
        hub.clear()
        await made.start(one)
        if client is None:
            resumed = await curl(url_of(one), "-C", "-", into=tmp_path / "file")
            assert resumed.code or resumed.body == data
        else:
            client.endpoint = gateway(one)
            got = await client.download(NAME)
            if got.path is None:  # 0.30 writes a fresh body behind the bytes it has: it is told what to do
                assert "--force-download" in got.message
                assert not client.blobs()
            else:
                assert got.files == {NAME: data}


@pytest.mark.parametrize("kind", ["private", "gated"])
async def test_53_no_token_leaves_the_hub(tmp_path: Path, clients: Clients, kind: str) -> None:
    """Redirected to the storage, and to a place that the hub never names."""
    repo = make_repo("org/name", FILES, private=kind == "private", gated=kind == "gated" and "auto")
    async with (
        TestHub([repo], tokens={TOKEN: {"org/name"}}, cdn_host=OTHER_HOST) as hub,
        TestHub([repo]) as foreign,
        lab(tmp_path / "lab", hub) as made,
    ):
        one = await made.agent("one")
        client = clients(gateway(one), token=TOKEN)
        assert (await client.download()).files == contents(repo)
        at_storage = [seen for seen in hub.stats.requests if seen.listener == "cdn"]
        assert at_storage
        assert not [seen for seen in at_storage if TOKEN in f"{seen.headers}{seen.path}"]
        assert [seen for seen in hub.stats.requests if seen.authorization]  # where it belongs

        stranger = clients(gateway(one), "stranger")
        assert (await stranger.download()).error in ("GatedRepoError", "RepositoryNotFoundError")
        assert not stranger.blobs()

        repo.add_commit({"next.safetensors": Generated(8, 3 * MIB)})
        hub.inject(redirect_to(f"{foreign.url}/org/name/resolve/main/{NAME}", route="resolve"))
        commit = f"{gateway(one)}/org/name/resolve/{repo.main}/next.safetensors"
        await curl(commit, "-H", f"Authorization: Bearer {TOKEN}", into=tmp_path / "foreign")
        assert not [seen for seen in foreign.stats.requests if TOKEN in f"{seen.headers}{seen.path}"]


_WEB = (
    ("-H", "Host: evil.com"), ("-H", "Host: 0.0.0.0"), ("-H", "Host: evil.com:8377"), ("-H", "Host: 127.0.0.1@evil.com"),
    ("-H", "Origin: https://evil.com"), ("-H", "Origin: null"), ("-H", "Origin: http://evil.com:8377"),
    ("-H", "Sec-Fetch-Site: cross-site"), ("-H", "Sec-Fetch-Site: same-site"),
)  # fmt: skip


async def test_61_a_web_page_gets_nothing(tmp_path: Path, clients: Clients) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        for number, header in enumerate(_WEB):
            for target in ("/org/name/resolve/main/config.json", "/api/models/org/name", "/edgecdn/v1/status"):
                got = await curl(gateway(one) + target, *header, into=tmp_path / f"{number}")
                assert got.status == 403, (header, target)
                assert not [name for name in got.headers if name.startswith("access-control-")]
        asked = ("-X", "OPTIONS", "-H", "Origin: https://evil.com", "-H", "Access-Control-Request-Method: GET")
        preflight = await curl(url_of(one, "config.json"), *asked, into=tmp_path / "preflight")
        assert preflight.status >= 400
        assert not [name for name in preflight.headers if name.startswith("access-control-")]
        assert not hub.stats.asked(contains="org/name")
        assert (await curl(url_of(one, "config.json"), into=tmp_path / "own")).body == b"{}"


async def test_62_writing_needs_the_token_and_this_machines_programs(tmp_path: Path, clients: Clients) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        token = (one.home / "api-token").read_text().strip()
        own = ("-H", f"Authorization: Bearer {token}")
        job = ("--json", '{"model": "org/name"}')
        for path in ("/edgecdn/v1/jobs", "/edgecdn/v1/ensure"):
            url = gateway(one) + path
            assert (await curl(url, *job, into=tmp_path / "1")).status == 401
            assert (await curl(url, *job, "-H", "Authorization: Bearer x", into=tmp_path / "2")).status == 401
            for header in _WEB:
                assert (await curl(url, *job, *own, *header, into=tmp_path / "3")).status == 403, header
        assert not await one.get("/edgecdn/v1/jobs")
        assert not hub.stats.asked(contains="org/name")
        for method in ("PUT", "POST", "DELETE", "PATCH"):  # nor is anything ever written at a hub
            refused = await curl(url_of(one, "config.json"), "-X", method, *own, into=tmp_path / "4")
            assert 400 <= refused.status < 500
            assert refused.headers["x-error-message"]
        assert not [seen for seen in hub.stats.requests if seen.method not in ("GET", "HEAD")]


_NO_LOCK = """\
import contextlib, huggingface_hub.file_download as f
f.WeakFileLock = lambda *_, **__: contextlib.nullcontext()
"""


@pytest.mark.parametrize("prelude", ["", _NO_LOCK], ids=["flock", "flock-ignored"])
@pytest.mark.parametrize("way", ["to-the-hub", "through-the-gateway"])
async def test_64_the_same_file_into_the_same_cache_at_once(
    tmp_path: Path, clients: Clients, way: str, prelude: str
) -> None:
    repo = make_repo("org/name", FILES)
    data = contents(repo)[NAME]
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        hub.inject(dry_up(512 << 10, route="cdn"))
        endpoint = hub.url if way == "to-the-hub" else gateway(one)
        client = clients(endpoint, cache=one.cache, prelude=prelude)
        running = await client.start(NAME)
        await client.has_got(256 << 10)
        asked = asyncio.create_task(curl(url_of(one), into=tmp_path / "other"))
        await eventually(lambda: begins(tmp_path / "other"), 30, "curl has bytes")
        hub.clear()
        other = await asked
        assert sha256(other.body) == sha256(data)
        got = await client.finish(running)
        assert got.files == {NAME: data}
        assert len(one.blobs()) == 1
        assert (await clients("http://127.0.0.1:9", "later", cache=one.cache).download(NAME)).files
        assert not one.partials()


async def test_64_a_lock_that_is_never_let_go(tmp_path: Path, clients: Clients) -> None:
    """Another program holds the client's lock of the file: whoever asks the gateway still gets it."""
    repo = make_repo("org/name", FILES)
    etag = repo.commits[repo.main].files[NAME].etag
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        lock: Path = one.cache / ".locks" / "models--org--name" / f"{etag}.lock"
        lock.parent.mkdir(parents=True)
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            got = await curl(url_of(one), into=tmp_path / "file")
        assert sha256(got.body) == sha256(contents(repo)[NAME])


async def test_23_the_agents_disk_is_full(tmp_path: Path, clients: Clients, mounts: Mounts) -> None:  # noqa: F811
    """It is given, and not kept. When there is room again, the same agent brings it."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = made.machine("one")
        mounts.tmpfs(one.cache, "size=160m")
        ballast = fill(one.cache, keep_bytes=8 * MIB)
        await made.start(one)
        client = clients(gateway(one))
        assert (await client.download()).files == contents(repo)
        assert not one.blobs()
        hub.inject(wrong_bytes(offset=3 * MIB, route="cdn"))
        other = clients(gateway(one), "other")
        got = await other.download(NAME)
        assert "502" in got.message
        assert not other.blobs()
        hub.clear()
        ballast.unlink()
        third = clients(gateway(one), "third")
        assert (await third.download(NAME)).files == {NAME: contents(repo)[NAME]}
        assert one.blobs()


async def test_23_the_agents_disk_gets_full_midway(tmp_path: Path, clients: Clients, mounts: Mounts) -> None:  # noqa: F811
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = made.machine("one")
        mounts.tmpfs(one.cache, "size=160m")
        await made.start(one)
        client = clients(gateway(one))
        hub.inject(dry_up(512 << 10, route="cdn"))
        running = await client.start(NAME)
        await client.has_got(256 << 10)
        ballast = fill(one.cache, keep_bytes=MIB)
        hub.clear()
        got = await client.finish(running)
        assert got.files == {NAME: contents(repo)[NAME]}
        ballast.unlink()
        await eventually(lambda: is_given(one), 20, "the file is given")
        assert (await client.download(NAME)).files == {NAME: contents(repo)[NAME]}


async def test_24_the_agents_disk_is_read_only(tmp_path: Path, clients: Clients, mounts: Mounts) -> None:  # noqa: F811
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = made.machine("one")
        mounts.tmpfs(one.cache, "size=160m")
        await made.start(one)
        mounts.remount(one.cache, "ro")
        assert (await clients(gateway(one)).download()).files == contents(repo)


async def test_what_a_peer_has_is_not_asked_of_the_hub(tmp_path: Path, clients: Clients) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        holder = await made.agent("holder")
        await holder.fetch_here("org/name")
        await holder.gives(repo.commits[repo.main].files[NAME].sha256)
        one = await made.agent("one")
        await one.knows(1)
        hub.stats.reset()
        client = clients(gateway(one))
        assert (await client.download()).files == contents(repo)
        assert not hub.stats.total
        assert sum(seen.sent for seen in hub.stats.requests) <= 100_000


async def test_a_client_that_asks_for_parts_with_eight_connections_and_one_that_takes_all(
    tmp_path: Path, clients: Clients
) -> None:
    """Both get the same bytes, of one transfer and what was relayed meanwhile."""
    repo = make_repo("org/name", FILES)
    data = contents(repo)[NAME]
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        client = clients(gateway(one))
        running = await client.start(NAME)
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:

            async def part(start: int) -> bytes:
                headers = {"Range": f"bytes={start}-{start + 3 * MIB - 1}"}
                async with session.get(url_of(one), headers=headers) as answer:
                    assert answer.status == 206
                    return await answer.read()

            parts = [group.create_task(part(start)) for start in range(0, BIG, 3 * MIB)]
        assert sha256(b"".join(task.result() for task in parts)) == sha256(data)
        assert (await client.finish(running)).files == {NAME: data}
