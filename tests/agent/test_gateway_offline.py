"""The hub is down, before or between: what was known last is told, and marked; the lab's word if the user takes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from edgecdn.cache.provisional import Provisional
from edgecdn.errors import (
    AgentNotRunning,
    EdgecdnError,
    IntegrityFailure,
    Interrupted,
    SystemFailed,
    Unreachable,
)
from edgecdn.manifest import Manifest
from edgecdn.names import CommitId, RepoId, Revision
from edgecdn.repopath import RepoPath
from edgecdn.resolve import Claim
from edgecdn_agent.gateway.failures import refusal
from edgecdn_agent.gateway.finder import NoAnswer
from tests.agent.gateway_lab import Gateway, gateway, manifest_of, put_in_cache, repo_id
from tests.hub import Fault, Kind, TestHub, make_repo, status

NAME = "org/name"
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 100_000, "sub/a.txt": b"a", "code.py": b"1"}


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[TestHub]:
    async with TestHub([make_repo(NAME, FILES, xet=True)]) as made:
        yield made


@pytest_asyncio.fixture
async def gate(hub: TestHub, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path, hub) as made:
        yield made


async def fill(gate: Gateway, hub: TestHub, *branches: str) -> str:
    """As after a fetch, and long enough ago; the repo is known as public."""
    commit = hub.state.repos["model", NAME].main
    put_in_cache(gate.settings, await manifest_of(gate, NAME, commit), *branches)
    assert await gate.rule.refresh(repo_id(NAME))
    return commit


async def test_the_last_answer_is_told_and_marked(gate: Gateway, hub: TestHub) -> None:
    targets = (
        f"/api/models/{NAME}",
        f"/api/models/{NAME}/refs",
        f"/api/models/{NAME}/tree/main",
        "/api/models?search=n",
    )
    fresh = [await gate.ask("GET", target) for target in targets]
    assert (await gate.ask("HEAD", f"/{NAME}/resolve/main/config.json")).status == 200
    assert not [answer for answer in fresh if "Warning" in answer.headers]
    await hub.go_down("hub")
    gate.clock.now += 100
    for target, before in zip(targets, fresh, strict=True):
        answer = await gate.ask("GET", target)
        assert (answer.status, answer.json) == (200, before.json)
        assert answer.headers["Warning"] == '110 - "Response is Stale"'
        assert int(answer.headers["X-Edgecdn-Stale"]) == 100
    assert (await gate.ask("HEAD", f"/{NAME}/resolve/main/config.json")).status == 200
    await hub.come_back("hub")
    assert "Warning" not in (await gate.ask("GET", targets[0])).headers


@pytest.mark.parametrize("how", ["down", "503", "portal"])
async def test_the_cache_knows_what_the_gateway_never_asked(hub: TestHub, tmp_path: Path, how: str) -> None:
    async with gateway(tmp_path, hub) as before:
        commit = await fill(before, hub, "main", "refs/pr/1")
    if how == "down":
        await hub.go_down("hub")
    else:
        hub.inject(status(503) if how == "503" else Fault(Kind.CAPTIVE_PORTAL))
    async with gateway(tmp_path, hub) as gate:
        api = gate.client()
        info = await gate.call(api.model_info, NAME, files_metadata=True)
        assert info.sha == commit
        assert {s.rfilename: s.size for s in info.siblings} == {name: len(data) for name, data in FILES.items()}
        assert (await gate.call(api.model_info, NAME, revision=commit)).sha == commit
        files = await gate.call(api.list_repo_tree, NAME, recursive=True)
        assert {item.path for item in files} == {*FILES, "sub"}
        assert {item.path for item in await gate.call(api.list_repo_tree, NAME, "sub", revision=commit)} == {
            "sub/a.txt"
        }
        with pytest.raises(EntryNotFoundError):
            await gate.call(api.list_repo_tree, NAME, "none")
        assert {item.path for item in await gate.call(api.get_paths_info, NAME, ["sub", "config.json", "x"])} == {
            "sub",
            "config.json",
        }
        refs = await gate.call(api.list_repo_refs, NAME, include_pull_requests=True)
        assert [(ref.name, ref.target_commit) for ref in refs.branches] == [("main", commit)]
        assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
        assert (await gate.ask("GET", f"/api/models/{NAME}")).headers["Warning"].startswith("110")
        head = await gate.ask("HEAD", f"/{NAME}/resolve/main/model.safetensors")
        assert (head.status, head.headers["X-Repo-Commit"]) == (200, commit)
        assert await gate.call(api.file_exists, NAME, "none") is False
        with pytest.raises(HfHubHTTPError) as error:
            await gate.call(api.model_info, "org/other")
        assert error.value.response is not None
        assert error.value.response.status_code == 503


async def test_a_commit_that_is_here_needs_no_hub(hub: TestHub, tmp_path: Path) -> None:
    async with gateway(tmp_path, hub) as before:
        commit = await fill(before, hub)
    hub.stats.reset()
    async with gateway(tmp_path, hub) as gate:
        assert (await gate.ask("GET", f"/api/models/{NAME}/tree/{commit}?recursive=true")).status == 200
        assert (await gate.ask("HEAD", f"/{NAME}/resolve/{commit}/config.json")).status == 200
        assert (await gate.ask("HEAD", f"/{NAME}/resolve/{commit}/none")).status == 404
    assert not hub.stats.requests


NEW, OLD = "unknown/None; hf_hub/2.4.0; python/3.11", "unknown/None; hf_hub/0.36.2; python/3.11"


@pytest.mark.parametrize(
    ("error", "agent", "status_"),
    [
        (AgentNotRunning(), NEW, 429),
        (Interrupted(), NEW, 429),
        (AgentNotRunning(), OLD, 503),
        (Interrupted(), "curl/8", 503),
        (Unreachable("nobody"), NEW, 503),
        (SystemFailed("hangs"), NEW, 503),
        (IntegrityFailure("x", path="x"), NEW, 502),
    ],
)
async def test_what_a_get_without_a_file_is_told(
    gate: Gateway, monkeypatch: pytest.MonkeyPatch, error: EdgecdnError, agent: str, status_: int
) -> None:
    async def fail(_request: object, _wanted: object) -> web.Response:
        return refusal(error)

    monkeypatch.setattr(gate.blobs, "get", fail)
    monkeypatch.setattr(gate.blobs, "head", fail)
    target = f"/{NAME}/resolve/main/config.json"
    got = await gate.ask("GET", target, User_Agent=agent)
    assert (got.status, got.headers.get("Retry-After")) == (status_, None if status_ == 502 else "3")
    head = await gate.ask("HEAD", target, User_Agent=agent)
    assert head.status == refusal(error).status
    assert "Retry-After" not in head.headers


async def test_a_get_is_asked_again_for_a_listing_and_not_for_a_hub_that_is_down(
    gate: Gateway, hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecdn_agent.gateway.routes._PATIENT_S", 0.05)
    hub.inject(Fault(Kind.DELAY_FIRST_BYTE, path="*/tree/*", seconds=30))
    target = f"/{NAME}/resolve/main/config.json"
    for agent, status_ in ((NEW, 429), (OLD, 503), ("curl/8", 503)):
        got = await gate.ask("GET", target, User_Agent=agent)
        assert got.status == status_
        assert got.headers["Retry-After"]
    hub.clear()
    await hub.go_down("hub")
    got = await gate.ask("GET", "/org/other/resolve/main/config.json", User_Agent=NEW)
    assert (got.status, got.headers["Retry-After"]) == (503, "3")
    head = await gate.ask("HEAD", "/org/other/resolve/main/config.json", User_Agent=NEW)
    assert (head.status, head.headers.get("Retry-After")) == (503, None)


async def test_the_client_falls_back_to_its_own_cache(gate: Gateway, hub: TestHub, tmp_path: Path) -> None:
    own = tmp_path / "own"
    folder = await gate.call(snapshot_download, NAME, endpoint=gate.url, cache_dir=own, token=False)
    await hub.go_down("hub")
    await hub.go_down("cdn")
    gate.clock.now += 1000
    again = await gate.call(snapshot_download, NAME, endpoint=gate.url, cache_dir=own, token=False)
    assert again == folder


async def test_offline_asks_nobody(hub: TestHub, tmp_path: Path) -> None:
    async with gateway(tmp_path, hub) as before:
        commit = await fill(before, hub, "main")
    hub.stats.reset()
    async with gateway(tmp_path, hub, HF_HUB_OFFLINE="1") as gate:
        assert (await gate.ask("GET", f"/api/models/{NAME}")).json["sha"] == commit
        assert (await gate.ask("HEAD", f"/{NAME}/resolve/main/config.json")).status == 200
        assert (await gate.ask("GET", "/api/whoami-v2")).status == 503
        assert (await gate.ask("HEAD", "/org/other/resolve/main/a")).status == 503
        wanted = await gate.gate.finder.find(repo_id(NAME), Revision("main"), RepoPath.parse("config.json"), None)
        assert wanted.manifest.commit.hex == commit
    assert not hub.stats.requests


async def test_the_next_hub_is_asked(hub: TestHub, tmp_path: Path) -> None:
    async with TestHub([make_repo(NAME, FILES)]) as mirror, gateway(tmp_path, hub, mirror) as gate:
        await hub.go_down("hub")
        answer = await gate.ask("GET", f"/{NAME}/resolve/main/model.safetensors")
        assert answer.body == FILES["model.safetensors"]
        assert (await gate.call(gate.client().model_info, NAME)).id == NAME


async def test_a_mirror_that_is_behind_turns_no_branch_back(hub: TestHub, tmp_path: Path) -> None:
    """FAULTS 54, and a mirror that is ahead is believed."""
    behind = make_repo(NAME, FILES)
    hub.state.repos["model", NAME].add_commit({"new.txt": b"1"})
    async with TestHub([behind]) as mirror, gateway(tmp_path, hub, mirror) as gate:
        commit = await fill(gate, hub, "main")
        await hub.go_down("hub")
        for _ in range(3):
            head = await gate.ask("HEAD", f"/{NAME}/resolve/main/new.txt")
            assert (head.status, head.headers["X-Repo-Commit"]) == (200, commit)
        assert len(mirror.stats.asked(contains="/commits/")) == 1
        behind.add_commit({"new.txt": b"1"})
        assert behind.main == commit
        ahead = behind.add_commit({"newer.txt": b"2"})
        gate.clock.now += 61
        assert (await gate.ask("HEAD", f"/{NAME}/resolve/main/newer.txt")).headers["X-Repo-Commit"] == ahead


async def test_a_hub_that_hangs_is_not_waited_for_where_there_is_another_way(
    gate: Gateway, hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecdn_agent.gateway.hubs._HURRY_S", 0.2)
    commit = await fill(gate, hub, "main")
    hub.inject(Fault(Kind.DELAY_FIRST_BYTE, seconds=60))
    hub.stats.reset()
    for _ in range(5):
        assert (await gate.ask("HEAD", f"/{NAME}/resolve/main/config.json")).headers["X-Repo-Commit"] == commit
    assert len(hub.stats.requests) == 1


class Lab:
    """Peers that claim."""

    def __init__(self, manifest: Manifest) -> None:
        self.told = manifest

    async def claims(self, repo: RepoId, revision: Revision) -> Sequence[Claim]:
        return [Claim(self.told.commit, ("desk-2",))] if repo == self.told.repo else []

    async def manifest(self, repo: RepoId, commit: CommitId) -> Manifest | None:
        return self.told if (repo, commit) == (self.told.repo, self.told.commit) else None


async def test_the_labs_word_is_taken_if_the_user_takes_it(hub: TestHub, tmp_path: Path) -> None:
    commit = CommitId(hub.state.repos["model", NAME].main)
    async with gateway(tmp_path / "other", hub) as other:
        lab = Lab(await manifest_of(other, NAME, commit.hex))
    await hub.go_down("hub")
    async with gateway(tmp_path / "no", hub, lab=lab) as gate:
        assert (await gate.ask("HEAD", f"/{NAME}/resolve/main/config.json")).status == 503
        assert (await gate.ask("GET", f"/api/models/{NAME}")).status == 503
    async with gateway(tmp_path / "yes", hub, lab=lab, accept_lab=True) as gate:
        assert (await gate.ask("GET", f"/api/models/{NAME}")).json["sha"] == commit.hex
        assert len((await gate.ask("GET", f"/api/models/{NAME}/tree/{commit}?recursive=true")).json) == 5
        assert (await gate.ask("HEAD", f"/{NAME}/resolve/main/config.json")).headers["X-Repo-Commit"] == commit.hex
        wanted = await gate.gate.finder.find(repo_id(NAME), Revision("main"), RepoPath.parse("config.json"), None)
        assert wanted.page == ""
        with pytest.raises(NoAnswer, match="code"):
            await gate.gate.finder.find(repo_id(NAME), Revision("main"), RepoPath.parse("code.py"), None)
        assert Provisional(gate.settings.home).all() == [(repo_id(NAME), commit)]
        await hub.come_back("hub")
        sure = await gate.gate.finder.find(repo_id(NAME), Revision("main"), RepoPath.parse("code.py"), None)
        assert sure.page == f"{hub.url}/{NAME}"


async def test_the_labs_word_opens_nothing_that_a_hub_gave(hub: TestHub, tmp_path: Path) -> None:
    """What is here of a repo that was never known as public stays closed, whatever peers claim of it."""
    commit = hub.state.repos["model", NAME].main
    async with gateway(tmp_path / "other", hub) as other:
        manifest = await manifest_of(other, NAME, commit)
    await hub.go_down("hub")
    async with gateway(tmp_path / "yes", hub, lab=Lab(manifest), accept_lab=True) as gate:
        put_in_cache(gate.settings, manifest, "main")
        (gate.settings.cache_dir / repo_id(NAME).folder / "snapshots" / commit).mkdir(parents=True)
        assert (await gate.ask("HEAD", f"/{NAME}/resolve/main/config.json")).status == 503
        assert (await gate.ask("GET", f"/api/models/{NAME}")).status == 503
