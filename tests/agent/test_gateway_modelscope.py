"""The ModelScope gateway, asked as its SDK asks: names passed on, bytes from the cache first, nobody let in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from edgecdn.names import RepoId, RepoType
from edgecdn_agent.gateway.modelscope import listings
from tests.agent.agents import Agent, lab
from tests.agent.modelscope_gateway import Gateway, gateway
from tests.faults.machine import Machine, contents
from tests.hub import Generated, HubFile, HubRepo, Quirks, TestHub, make_repo, status
from tests.hub.content import Content

TOKEN = "ms-OnlyForTheseTests-0123456789abcdef"
NO_HUB = "http://127.0.0.1:9"
NAME = "org/name"
WEIGHTS = Generated(1, 3 << 20)
FILES = "/api/v1/models/org/name/repo/files?Revision=master&Recursive=True"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    made = Machine(tmp_path)
    yield made
    made.check()
    for path in made.home.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


def repo(*, private: bool = False, gated: bool = False) -> HubRepo:
    files: dict[str, Content | HubFile | None] = {
        "config.json": b'{"a": 1}',
        "sub/tokenizer.json": b"{}",
        "m.safetensors": WEIGHTS,
        "empty.txt": b"",
    }
    return make_repo(NAME, files, private=private, gated=gated)


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[TestHub]:
    async with TestHub(modelscope=[repo()], tokens=[TOKEN]) as made:
        yield made


@pytest_asyncio.fixture
async def gate(machine: Machine, hub: TestHub) -> AsyncIterator[Gateway]:
    async with gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as made:
        yield made


def file_requests(hub: TestHub) -> list[str]:
    return [seen.path for seen in hub.stats.requests if "FilePath=" in seen.path and seen.range != "bytes=0-0"]


async def test_listing_and_files_are_modelscopes_own(gate: Gateway, hub: TestHub) -> None:
    listed = {item["Path"]: item for item in (await gate.data(FILES))["Files"] if item["Type"] == "blob"}
    assert listed.keys() == contents(repo()).keys()
    for path, data in contents(repo()).items():
        assert listed[path]["Sha256"] == hashlib.sha256(data).hexdigest()
        assert (await gate.file(NAME, path))[:2] == (200, data)
    asked = len(hub.stats.requests)
    assert (await gate.data(FILES))["Files"]
    assert (await gate.file(NAME, "m.safetensors"))[1] == contents(repo())["m.safetensors"]
    assert len(hub.stats.requests) == asked  # all of it is remembered, or held
    assert hub.stats.total <= sum(item["Size"] for item in listed.values()) + listed["config.json"]["Size"]  # the probe
    assert not [seen for seen in hub.stats.requests if seen.authorization]


async def test_what_is_held_under_another_name_is_not_fetched(machine: Machine, hub: TestHub) -> None:
    other = make_repo("somebody/same-weights", {"model.safetensors": WEIGHTS})
    async with TestHub([other]) as huggingface:
        await machine.fetch("somebody/same-weights", huggingface)
    async with gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate:
        assert (await gate.file(NAME, "m.safetensors"))[1] == contents(repo())["m.safetensors"]
        assert gate.files.brought == []
    assert file_requests(hub) == []


@pytest.mark.parametrize(
    ("range_", "start"), [("bytes=0-{last}", 0), ("bytes=0-", 0), ("bytes=1000-{last}", 1000), ("bytes=70000-", 70000)]
)
async def test_all_that_is_left_is_no_piece(gate: Gateway, range_: str, start: int) -> None:
    wanted = contents(repo())["m.safetensors"]
    status_, body, headers = await gate.file(NAME, "m.safetensors", Range=range_.format(last=len(wanted) - 1))
    assert body == wanted[start:]
    assert status_ == (206 if start else status_)
    assert gate.files.ranges == [f"bytes={start}-"]
    assert gate.files.relayed == []
    assert headers["Content-Range"].startswith(f"bytes {start}-") if start else True


async def test_a_piece_is_relayed(gate: Gateway) -> None:
    wanted = contents(repo())["m.safetensors"]
    status_, body, _ = await gate.file(NAME, "m.safetensors", Range="bytes=1000-1999")
    assert (status_, body) == (206, wanted[1000:2000])
    assert gate.files.brought == []
    assert len(gate.files.relayed) == 1


@pytest.mark.parametrize(
    "quirks", [Quirks(), Quirks(redirect_lfs=True), Quirks(range_status_200=False), Quirks(empty_committer_id=True)]
)
async def test_oddities_of_modelscope(machine: Machine, quirks: Quirks) -> None:
    async with (
        TestHub(modelscope=[repo()], quirks=quirks) as hub,
        gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate,
    ):
        for path, data in contents(repo()).items():
            assert (await gate.file(NAME, path))[:2] == (200, data)
        assert (await gate.file(NAME, "m.safetensors"))[2].get("Location") is None


async def test_files_without_a_hash_are_passed_on(machine: Machine) -> None:
    async with (
        TestHub(modelscope=[repo()], quirks=Quirks(listing_sha256=False)) as hub,
        gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate,
    ):
        for path, data in contents(repo()).items():
            assert (await gate.file(NAME, path))[:2] == (200, data)
        assert gate.files.brought == []
        assert (await gate.file(NAME, "no-such-file"))[0] == 404


async def test_a_listing_that_is_cut_is_not_taken_for_the_whole(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "LISTING_LIMIT", 3)
    async with (
        TestHub(modelscope=[repo()], quirks=Quirks(listing_limit=3)) as hub,
        gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate,
    ):
        for path, data in contents(repo()).items():
            assert (await gate.file(NAME, path))[:2] == (200, data), path
        assert gate.files.brought == []


async def test_other_branches_and_tags(machine: Machine) -> None:
    versions = repo()
    versions.add_commit({"config.json": b"branch", "only-here.safetensors": Generated(9, 70000)}, branch="v2")
    async with (
        TestHub(modelscope=[versions]) as hub,
        gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate,
    ):
        for path, data in contents(versions, "v2").items():
            assert (await gate.file(NAME, path, revision="v2"))[:2] == (200, data)
        assert (await gate.file(NAME, "only-here.safetensors"))[0] == 404
        assert (await gate.file(NAME, "config.json", revision="no-such"))[0] == 404
        commit = versions.branches["v2"]
        assert (await gate.file(NAME, "config.json", revision=commit))[1] == b"branch"


async def test_a_new_commit_is_seen_when_the_minute_is_over(machine: Machine, hub: TestHub) -> None:
    async with gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate:
        assert (await gate.file(NAME, "config.json"))[1] == b'{"a": 1}'
        hub._scope_state.repos["model", NAME].add_commit({"config.json": b"new"})
        assert (await gate.file(NAME, "config.json"))[1] == b'{"a": 1}'  # believed for a minute
    async with gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate:
        assert (await gate.file(NAME, "config.json"))[1] == b"new"


# Data sets


async def test_data_sets_by_name_and_by_number(machine: Machine) -> None:
    data = make_repo("org/data", {f"part-{n:03d}.txt": b"%d" % n for n in range(250)}, repo_type="dataset")
    async with (
        TestHub(modelscope=[data]) as hub,
        gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate,
    ):
        number = (await gate.data("/api/v1/datasets/org/data"))["Id"]
        for named in (number, "org/data"):
            tree = f"/api/v1/datasets/{named}/repo/tree?Revision=master&Root=%2F&Recursive=True&PageSize=200"
            pages = [(await gate.data(f"{tree}&PageNumber={page}"))["Files"] for page in (1, 2)]
            assert [len(page) for page in pages] == [200, 50]
        for path in ("part-000.txt", "part-249.txt"):
            status_, body, _ = await gate.file("org/data", path, kind="datasets", View="False")
            assert (status_, body) == (200, contents(data)[path])
        assert len(gate.files.brought) == 2


# ModelScope is silent


async def test_what_was_there_stays_there_when_modelscope_is_silent(machine: Machine, hub: TestHub) -> None:
    async with gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate:
        before = await gate.data(FILES)
        for path in contents(repo()):
            await gate.file(NAME, path)
        revisions = await gate.data("/api/v1/models/org/name/revisions")
    await hub.go_down("modelscope")
    async with gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate:  # another start of the agent
        assert await gate.data(FILES) == before
        assert await gate.data(FILES, token=TOKEN) == before
        assert await gate.data("/api/v1/models/org/name/revisions") == revisions
        for path, data in contents(repo()).items():
            assert (await gate.file(NAME, path))[:2] == (200, data)
        status_, body, _ = await gate.ask("/api/v1/models/org/unknown/repo/files?Revision=master&Recursive=True")
        assert (status_, json.loads(body)["Success"]) == (503, False)


async def test_a_repo_of_a_hub_serves_where_modelscope_is_silent(machine: Machine) -> None:
    async with TestHub([repo()]) as huggingface:
        await machine.fetch(NAME, huggingface)
        async with gateway(machine, huggingface, modelscope=NO_HUB) as gate:
            assert (await gate.ask(FILES))[0] == 503  # nobody knows whether it is for everybody
            gate.public.add(RepoId(RepoType.MODEL, NAME))
            listed = {item["Path"]: item for item in (await gate.data(FILES))["Files"] if item["Type"] == "blob"}
            assert listed.keys() == contents(repo()).keys()
            branches = (await gate.data("/api/v1/models/org/name/revisions"))["RevisionMap"]["Branches"]
            assert branches == [{"Revision": "master", "CreatedAt": 0}]
            for path, data in contents(repo()).items():
                assert listed[path]["Sha256"] == hashlib.sha256(data).hexdigest()
                assert (await gate.file(NAME, path))[:2] == (200, data)
            top = (await gate.data(FILES.replace("True", "False")))["Files"]
            assert {item["Path"]: item["Type"] for item in top}["sub"] == "tree"


async def test_offline_it_is_not_asked(machine: Machine, hub: TestHub) -> None:
    async with gateway(machine, NO_HUB, modelscope=hub.modelscope_url, offline="1") as gate:
        status_, body, _ = await gate.ask(FILES)
        assert status_ == 503
        assert "HF_HUB_OFFLINE" in json.loads(body)["Message"]
    assert not hub.stats.requests


async def test_a_failing_or_foreign_answer_is_none(machine: Machine, hub: TestHub) -> None:
    async with gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate:
        hub.inject(status(500, route="modelscope"))
        assert (await gate.ask(FILES))[0] == 503
        hub.clear()
        gate.silent_again()
        assert (await gate.ask(FILES))[0] == 200


# Who may have it


async def test_private_repos_are_for_their_owner_and_kept_nowhere(machine: Machine) -> None:
    wanted = contents(repo())
    async with (
        TestHub(modelscope=[repo(private=True)], tokens=[TOKEN]) as hub,
        gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate,
    ):
        assert (await gate.ask(FILES))[0] == 404
        assert (await gate.file(NAME, "config.json"))[0] == 404
        assert (await gate.data(FILES, token=TOKEN))["Files"]
        for path, data in wanted.items():
            assert (await gate.file(NAME, path, token=TOKEN))[:2] == (200, data)
            assert (await gate.file(NAME, path))[0] == 404
        resumed = await gate.file(NAME, "m.safetensors", token=TOKEN, Range="bytes=5000-")
        assert resumed[:2] == (206, wanted["m.safetensors"][5000:])
        assert gate.files.brought == []
        assert machine.blobs() == []
        await hub.go_down("modelscope")
        assert (await gate.file(NAME, "config.json", token="another-" + TOKEN))[0] == 503
        assert (await gate.ask(FILES))[0] == 503
    async with gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate:
        assert (await gate.ask(FILES, token=TOKEN))[0] == 503


async def test_gated_bytes_are_refused_though_the_listing_is_open(machine: Machine) -> None:
    async with TestHub([repo()]) as huggingface:
        await machine.fetch(NAME, huggingface)  # held, and still not for everybody
    async with (
        TestHub(modelscope=[repo(gated=True)], tokens=[TOKEN]) as hub,
        gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate,
    ):
        assert (await gate.ask(FILES))[0] == 200
        assert (await gate.file(NAME, "m.safetensors"))[0] == 403
        assert (await gate.file(NAME, "m.safetensors", token="wrong-" + TOKEN))[0] == 403
        assert (await gate.file(NAME, "m.safetensors", token=TOKEN))[1] == contents(repo())["m.safetensors"]
        assert file_requests(hub) == []  # asked whether, and given from here
        assert (await gate.file(NAME, "m.safetensors"))[0] == 403
        assert gate.files.brought == []


async def test_a_repo_for_everybody_needs_nobodys_token(gate: Gateway, hub: TestHub) -> None:
    assert (await gate.data(FILES, token=TOKEN))["Files"]
    assert (await gate.file(NAME, "config.json", token=TOKEN))[0] == 200
    assert not [seen for seen in hub.stats.requests if seen.authorization or "Cookie" in seen.headers]


async def test_a_token_stays_with_modelscope(machine: Machine) -> None:
    quirks = Quirks(redirect_lfs=True)
    async with (
        TestHub(modelscope=[repo(private=True)], tokens=[TOKEN], quirks=quirks) as hub,
        gateway(machine, NO_HUB, modelscope=hub.modelscope_url) as gate,
    ):
        assert (await gate.file(NAME, "m.safetensors", token=TOKEN))[1] == contents(repo())["m.safetensors"]
        at_cdn = [seen for seen in hub.stats.requests if seen.listener == "cdn"]
        assert at_cdn
        assert not [seen for seen in at_cdn if seen.authorization or "Cookie" in seen.headers]


# What is refused


async def test_it_only_reads(gate: Gateway, hub: TestHub) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        status_, body, _ = await gate.ask("/api/v1/models/org/name/repo?FilePath=a", method=method, data=b"x")
        assert (status_, json.loads(body)["Success"], json.loads(body)["Code"]) == (405, False, 405)
    counted = await gate.ask("/api/v1/datasets/org/name/download/increase", method="POST")
    assert counted[0] == 200
    assert not hub.stats.requests


async def test_a_login_is_passed_on(gate: Gateway, hub: TestHub) -> None:
    status_, body, headers = await gate.ask("/api/v1/login", method="POST", json={"AccessToken": TOKEN})
    assert (status_, json.loads(body)["Success"]) == (200, True)
    cookie = headers["Set-Cookie"]
    assert cookie.startswith(f"m_session_id={TOKEN};")
    assert "Domain" not in cookie
    assert "Secure" not in cookie
    assert (await gate.ask("/api/v1/login", method="POST", json={"AccessToken": "wrong"}))[0] == 400


async def test_off_is_said_clearly(machine: Machine) -> None:
    async with gateway(machine, NO_HUB, modelscope="") as gate:
        status_, body, _ = await gate.ask(FILES)
        assert status_ == 400
        assert "hub.modelscope" in json.loads(body)["Message"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/../edgecdn/v1/status",
        "/api/v1/models/%2e%2e/x/repo?FilePath=a",
        "/api/v1/models/org/name/repo?FilePath=..%2F..%2Fetc",
        "/api/v1//evil.example/x",
    ],
)
async def test_odd_addresses_lead_nowhere(gate: Gateway, hub: TestHub, path: str) -> None:
    async with gate.session.get(URL(gate.url + path, encoded=True)) as answer:
        assert answer.status in (400, 404)
    assert all(seen.path.startswith("/api/v1/models/org/name/repo") for seen in hub.stats.requests)


async def test_what_is_not_known_here_is_passed_on(gate: Gateway, hub: TestHub) -> None:
    status_, body, _ = await gate.ask("/api/v1/models/org/name/something/else?x=1")
    assert (status_, json.loads(body)["Success"]) == (404, False)
    assert [seen.path for seen in hub.stats.requests] == ["/api/v1/models/org/name/something/else?x=1"]
    region = await gate.data("/api/v1/repos/internalAccelerationInfo")
    assert region["InternalRegionQueryAddress"] == ""
    assert len(hub.stats.requests) == 1


# Real agents


async def test_a_lab_takes_from_peers_what_modelscope_lists(tmp_path: Path) -> None:
    same = make_repo("somebody/same-weights", {"model.safetensors": WEIGHTS})
    sha256 = same.commits[same.main].files["model.safetensors"].sha256
    async with (
        TestHub([same], modelscope=[repo()]) as hub,
        lab(tmp_path, hub, hub_modelscope=hub.modelscope_url) as made,
    ):
        one = await made.agent("one")
        await one.fetch_here("somebody/same-weights")
        await one.gives(sha256)
        two = await made.agent("two")
        await two.knows(1)
        hub.stats.reset()
        async with aiohttp.ClientSession() as session:
            for path, data in contents(repo()).items():
                assert await _file(session, two, path) == data
        assert hub.stats.sent["org/name", "m.safetensors"] <= 1  # but for the question whether it may be had
        await hub.go_down("modelscope")
        await two.stop_agent()
        await made.start(two)
        async with aiohttp.ClientSession() as session:
            for path, data in contents(repo()).items():
                assert await _file(session, two, path) == data


async def test_an_agent_keeps_nothing_of_a_private_repo(tmp_path: Path) -> None:
    async with (  # public elsewhere
        TestHub([repo()], modelscope=[repo(private=True)], tokens=[TOKEN]) as hub,
        lab(tmp_path, hub, hub_modelscope=hub.modelscope_url) as made,
    ):
        one = await made.agent("one")
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
            for path, data in contents(repo()).items():
                assert await _file(session, one, path) == data
        async with aiohttp.ClientSession() as session, session.get(_url(one, "config.json")) as answer:
            assert answer.status == 404
        assert not list(one.cache.glob("models--*"))
        assert TOKEN not in one.log


def _url(agent: Agent, path: str) -> str:
    return f"http://{agent.listener('local')}/api/v1/models/{NAME}/repo?Revision=master&FilePath={path}"


async def _file(session: aiohttp.ClientSession, agent: Agent, path: str) -> bytes:
    async with session.get(_url(agent, path)) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()
