"""The hub's API through the gateway: the real client gets what it gets from the hub itself."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from edgecdn.digest import Digest, DigestKind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId
from edgecdn.repopath import RepoPath
from edgecdn_agent.gateway.answers import to_response
from edgecdn_agent.gateway.hubs import HubAnswer
from edgecdn_agent.gateway.listings import Listings
from edgecdn_agent.gateway.made import made_tree
from tests.agent.gateway_lab import Gateway, gateway, manifest_of, repo_id
from tests.hub import Fault, Kind, TestHub, make_repo, many_files, status

NAME = "org/name"
FILES = {
    "config.json": b'{"a": 1}', "model.safetensors": b"s" * 300_000, "sub/deep/er.txt": b"x", "sub/a b.txt": b"yy",
    "README.md": b"# hi",
}  # fmt: skip


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[TestHub]:
    repo = make_repo(NAME, FILES, xet=True)
    repo.tags["v1"] = repo.main
    repo.pull_requests["refs/pr/1"] = repo.main
    repo.add_commit({"new.txt": b"new"}, title="second")
    repos = [
        repo, make_repo("old", {"a": b"1"}), make_repo("org/data", {"data/train.csv": b"1,2"}, repo_type="dataset"),
        make_repo("org/space", {"app.py": b"1"}, repo_type="space"),
        make_repo("org/many", many_files(2500), repo_type="dataset"),
    ]  # fmt: skip
    async with TestHub(repos, aliases={"org/before": NAME}) as made:
        yield made


@pytest_asyncio.fixture
async def gate(hub: TestHub, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path, hub) as made:
        yield made


def shown(value: Any) -> Any:
    """What a call gave, to be compared; folders' ids are the test hub's own, not git's; no Xet with us."""
    if isinstance(value, list):
        return [shown(one) for one in value]
    if not hasattr(value, "__dict__"):
        return value
    return {k: shown(v) for k, v in vars(value).items() if k not in ("tree_id", "xet_hash", "xet_file_data")}


CALLS: list[tuple[str, Callable[[HfApi], Any]]] = [
    ("info", lambda api: api.model_info(NAME)),
    ("info with files", lambda api: api.model_info(NAME, files_metadata=True)),
    ("info of a tag", lambda api: api.model_info(NAME, revision="v1")),
    ("info of a pull request", lambda api: api.model_info(NAME, revision="refs/pr/1")),
    ("a repo without owner", lambda api: api.model_info("old")),
    ("a data set", lambda api: api.dataset_info("org/data")),
    ("a space", lambda api: api.space_info("org/space")),
    ("tree", lambda api: list(api.list_repo_tree(NAME))),
    ("whole tree", lambda api: list(api.list_repo_tree(NAME, recursive=True))),
    ("folder", lambda api: list(api.list_repo_tree(NAME, path_in_repo="sub/deep"))),
    ("details", lambda api: list(api.list_repo_tree(NAME, expand=True))),
    ("pages", lambda api: list(api.list_repo_tree("org/many", recursive=True, repo_type="dataset"))),
    ("files", lambda api: api.list_repo_files(NAME, revision="refs/pr/1")),
    ("refs", lambda api: api.list_repo_refs(NAME, include_pull_requests=True)),
    ("commits", lambda api: api.list_repo_commits(NAME)),
    ("paths", lambda api: api.get_paths_info(NAME, ["config.json", "sub", "model.safetensors", "none"])),
    ("search", lambda api: list(api.list_models(search="na"))),
    ("exists", lambda api: (api.repo_exists(NAME), api.repo_exists("org/none"), api.revision_exists(NAME, "v1"))),
    ("no revision", lambda api: api.revision_exists(NAME, "none")),
    ("file exists", lambda api: (api.file_exists(NAME, "sub/a b.txt"), api.file_exists(NAME, "nope"))),
    ("renamed", lambda api: api.model_info("org/before").sha),
    ("renamed file", lambda api: api.file_exists("org/before", "config.json")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
async def test_the_real_client_gets_what_the_hub_says(
    gate: Gateway, hub: TestHub, name: str, call: Callable[[HfApi], Any]
) -> None:
    direct = await gate.call(call, HfApi(endpoint=hub.url, token=False))
    through = await gate.call(call, gate.client())
    again = await gate.call(call, gate.client())
    assert shown(through) == shown(again) == shown(direct)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "sub/a b.txt"])
async def test_file_metadata(gate: Gateway, hub: TestHub, file: str) -> None:
    def ask(endpoint: str) -> Any:
        return get_hf_file_metadata(hf_hub_url(NAME, file, endpoint=endpoint), token=False)

    direct, through = await gate.call(ask, hub.url), await gate.call(ask, gate.url)
    assert (through.commit_hash, through.etag, through.size) == (direct.commit_hash, direct.etag, direct.size)
    assert through.xet_file_data is None
    assert through.location == hf_hub_url(NAME, file, endpoint=gate.url)


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda api: api.model_info("org/none"), RepositoryNotFoundError),
        (lambda api: api.model_info(NAME, revision="none"), RevisionNotFoundError),
        (lambda api: list(api.list_repo_tree(NAME, path_in_repo="none")), EntryNotFoundError),
        (lambda api: api.hf_hub_download(NAME, "none", cache_dir="/nonexistent"), EntryNotFoundError),
        (lambda api: api.hf_hub_download(NAME, "a", revision="none", cache_dir="/nonexistent"), RevisionNotFoundError),
        (lambda api: api.hf_hub_download("org/none", "a", cache_dir="/nonexistent"), RepositoryNotFoundError),
    ],
)
async def test_errors_are_the_hubs(gate: Gateway, ask: Callable[[HfApi], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await gate.call(ask, gate.client())


async def test_a_snapshot_of_a_xet_repo_comes_over_plain_http(gate: Gateway, hub: TestHub, tmp_path: Path) -> None:
    folder = await gate.call(snapshot_download, NAME, endpoint=gate.url, cache_dir=tmp_path / "own", token=False)
    assert {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()} == {
        **FILES, "new.txt": b"new",
    }  # fmt: skip
    assert not hub.stats.asked(contains="xet")
    assert len(hub.stats.asked(contains="/tree/")) == 1  # the client's own is ours too
    assert len(hub.stats.asked(contains="/revision/")) == 1


async def test_no_answer_names_xet(gate: Gateway, hub: TestHub) -> None:
    sha = hub.state.repos["model", NAME].main
    for target in (f"/api/models/{NAME}/tree/main?recursive=true", f"/api/models/{NAME}?blobs=true"):
        answer = await gate.ask("GET", target)
        assert answer.status == 200
        assert b"xet" not in answer.body.lower()
    head = await gate.ask("HEAD", f"/{NAME}/resolve/main/model.safetensors")
    assert (head.status, head.headers["X-Repo-Commit"]) == (200, sha)
    assert not [name for name in head.headers if "xet" in name.lower() or name == "Link"]
    grant = await gate.ask("GET", f"/api/models/{NAME}/xet-read-token/{sha}")
    assert grant.json["accessToken"] == grant.headers["X-Xet-Access-Token"] == "xet-token"


async def test_pages_lead_to_us(gate: Gateway, hub: TestHub) -> None:
    answer = await gate.ask("GET", "/api/datasets/org/many/tree/main?recursive=true")
    assert answer.headers["Link"].startswith(f"<{gate.url}/api/datasets/org/many/tree/main?")
    assert answer.headers["Link"].endswith('; rel="next"')
    assert hub.url not in answer.headers["Link"]


async def test_a_branch_is_asked_again_after_a_minute_a_commit_never(gate: Gateway, hub: TestHub) -> None:
    repo = hub.state.repos["model", NAME]
    first = repo.main
    target = f"/api/models/{NAME}/revision/main"
    for _ in range(3):
        assert (await gate.ask("GET", target)).json["sha"] == first
        assert (await gate.ask("HEAD", f"/{NAME}/resolve/main/config.json")).headers["X-Repo-Commit"] == first
        assert (await gate.ask("HEAD", f"/{NAME}/resolve/{first}/none")).status == 404
        assert (await gate.ask("GET", f"/api/models/{NAME}/tree/{first}?recursive=true")).status == 200
    assert len(hub.stats.asked(contains="/revision/main")) == 1
    assert len(hub.stats.asked(contains="/tree/")) == 1
    second = repo.add_commit({"third.txt": b"3"})
    assert (await gate.ask("GET", target)).json["sha"] == first
    gate.clock.now += 61
    assert (await gate.ask("HEAD", f"/{NAME}/resolve/main/third.txt")).headers["X-Repo-Commit"] == second
    assert (await gate.ask("GET", target)).json["sha"] == second
    assert len(hub.stats.asked(contains="/revision/main")) == 2
    hub.stats.reset()
    gate.clock.now += 10_000
    assert (await gate.ask("GET", f"/api/models/{NAME}/tree/{first}?recursive=true")).status == 200
    assert (await gate.ask("HEAD", f"/{NAME}/resolve/{first}/config.json")).status == 200
    assert (await gate.ask("HEAD", f"/{NAME}/resolve/{first}/none")).headers["X-Error-Code"] == "EntryNotFound"
    assert not hub.stats.requests


async def test_a_missing_file_names_the_commit(gate: Gateway, hub: TestHub) -> None:
    answer = await gate.ask("HEAD", f"/{NAME}/resolve/main/none")
    assert (answer.status, answer.headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert answer.headers["X-Repo-Commit"] == hub.state.repos["model", NAME].main
    assert answer.headers["X-Error-Message"]


async def test_many_at_once_ask_once(gate: Gateway, hub: TestHub) -> None:
    await gate.ask("HEAD", f"/{NAME}/resolve/main/config.json")  # known public from here on
    gate.clock.now += 61
    hub.stats.reset()
    paths = [f"/{NAME}/resolve/main/{file}" for file in ("config.json", "README.md", "none")] * 20
    answers = await asyncio.gather(*(gate.ask("HEAD", path) for path in paths))
    assert {answer.status for answer in answers} == {200, 404}
    assert len(hub.stats.requests) == 1


async def test_a_large_commit_does_not_keep_a_head_waiting(
    gate: Gateway, hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecdn_agent.gateway.routes.LISTING_S", 0.05)
    hub.inject(Fault(Kind.DELAY_FIRST_BYTE, path="*/tree/*", seconds=30))
    try:
        head = await gate.ask("HEAD", f"/{NAME}/resolve/main/model.safetensors")
        digest = Digest.of(DigestKind.SHA256, FILES["model.safetensors"]).hex
        assert (head.status, head.headers["ETag"], head.headers["Content-Length"]) == (200, f'"{digest}"', "300000")
        assert head.headers["X-Linked-Size"] == "300000"
        none = await gate.ask("HEAD", f"/{NAME}/resolve/main/none")
        assert (none.status, none.headers["X-Error-Code"]) == (404, "EntryNotFound")
        assert not gate.blobs.wanted
    finally:
        hub.clear()
    body = await gate.ask("GET", f"/{NAME}/resolve/main/model.safetensors")  # the listing went on
    assert body.body == FILES["model.safetensors"]
    assert len(hub.stats.asked(contains="/tree/")) == 1


async def test_the_listing_is_the_hubs(gate: Gateway, hub: TestHub) -> None:
    commit = hub.state.repos["dataset", "org/many"].main
    manifest = await manifest_of(gate, "org/many", commit, "dataset")
    assert len(manifest.files) == 2500
    assert len(hub.stats.asked(contains="/tree/")) == 3
    lfs = (await manifest_of(gate, NAME, hub.state.repos["model", NAME].main)).by_path["model.safetensors"]
    assert lfs.xet_hash
    assert lfs.digest == Digest.of(DigestKind.SHA256, FILES["model.safetensors"])


async def test_folders_made_here_have_git_ids() -> None:
    empty = Digest.of(DigestKind.GIT_SHA1, b"")
    files = [FileEntry(RepoPath.parse(path), 0, empty, empty) for path in ("d/e", "d.x/e", "d-x")]
    items = made_tree(Manifest.of(repo_id(NAME), CommitId("0" * 40), files), None, recursive=False)
    assert items is not None
    # as `git write-tree` says for one empty file named e
    assert [i["oid"] for i in items if i["type"] == "directory"] == ["aa09f3cb5dbbb431d96a0055dc96a6861f3ce7de"] * 2


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/api/repos/create"), ("POST", f"/api/models/{NAME}/commit/main"), ("DELETE", "/api/repos/delete"),
        ("PUT", f"/{NAME}/resolve/main/a"), ("OPTIONS", f"/{NAME}/resolve/main/a"), ("POST", f"/api/models/{NAME}"),
        ("POST", "/api/validate-yaml"), ("PATCH", "/"),
    ],
)  # fmt: skip
async def test_nothing_is_ever_written(gate: Gateway, hub: TestHub, method: str, target: str) -> None:
    answer = await gate.ask(method, target, data=b"{}")
    assert answer.status == 405
    assert answer.json["error"].startswith("edgecdn only reads")
    assert answer.headers["X-Error-Message"] == answer.json["error"]
    assert not hub.stats.requests


@pytest.mark.parametrize(
    "target",
    [f"/{NAME}/resolve/main/%2e%2e/a", f"/{NAME}/resolve/main/a%00", "//evil.com/x", f"/{NAME}/resolve/main/a%5Cb",
     f"/{NAME}/resolve/main/a;b", "/x?" + "a" * 7900 + "%zz%00;"[:4] + "\\"],
)  # fmt: skip
async def test_what_is_not_safe_is_refused(gate: Gateway, hub: TestHub, target: str) -> None:
    answer = await gate.ask("GET", target)
    if "?" not in target:
        assert answer.status == 400
        assert answer.headers["X-Error-Message"]
        assert not hub.stats.requests
    assert answer.status in (400, 404)


async def test_an_absolute_address_is_no_path(gate: Gateway, hub: TestHub) -> None:
    """A proxy's request: only configured hubs are ever asked."""
    host, _, port = gate.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET http://evil.com/api/models HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))
    assert not hub.stats.requests


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.com"}, {"Host": "0.0.0.0"}, {"Host": "0.0.0.0:8377"}, {"Origin": "https://evil.com"},
     {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}],
)  # fmt: skip
async def test_web_pages_are_refused(gate: Gateway, hub: TestHub, headers: dict[str, str]) -> None:
    """FAULTS 61."""
    for method, target in (
        ("GET", f"/api/models/{NAME}"),
        ("HEAD", f"/{NAME}/resolve/main/config.json"),
        ("POST", "/x"),
    ):
        answer = await gate.ask(method, target, **headers)
        assert answer.status == 403
        assert answer.headers["X-Error-Message"]
    assert not hub.stats.requests


@pytest.mark.parametrize("target", ["/edgecdn/v1/status", "/edgecdn/none", "/edgecdn", "/edgecdn/v1/none"])
async def test_the_agents_own_paths_want_the_token(gate: Gateway, hub: TestHub, target: str) -> None:
    """FAULTS 62, as far as the gateway could open a way around it."""
    assert (await gate.ask("GET", target)).status == 401
    assert (await gate.ask("POST", target)).status == 401
    assert (await gate.ask("GET", target, token="the-token")).status in (200, 404)
    assert not hub.stats.requests


async def test_another_spelling_of_the_agents_paths_leads_nowhere(gate: Gateway) -> None:
    for target in ("/%65dgecdn/v1/status", "/edgecdn%2Fv1%2Fstatus", "/EDGECDN/v1/status"):
        assert (await gate.ask("GET", target)).status in (400, 401, 404)


async def test_what_nobody_needs_is_quiet(gate: Gateway, hub: TestHub) -> None:
    assert (await gate.ask("GET", "/api/agent-harnesses")).status == 404
    assert (await gate.ask("HEAD", "/api/telemetry/transformers")).status == 404
    assert not hub.stats.requests
    assert (await gate.ask("GET", "/api/whoami-v2")).status == 401
    assert (await gate.ask("GET", "/api/nothing-like-it")).status == 404


async def test_a_login_page_is_no_answer(gate: Gateway, hub: TestHub) -> None:
    hub.inject(Fault(Kind.CAPTIVE_PORTAL))
    for target in (f"/api/models/{NAME}", f"/api/models/{NAME}/tree/main", f"/{NAME}/resolve/main/config.json"):
        answer = await gate.ask("GET", target)
        assert answer.status == 503
        assert b"<html" not in answer.body


async def test_other_kinds_of_repos_are_passed_through(gate: Gateway, hub: TestHub) -> None:
    """A file of a kernel is the hub's own answer; its redirect to storage is the client's to follow."""
    hub.inject(Fault(Kind.REDIRECT_TO, path="/kernels/*", url=f"{hub.cdn_url}/kernel", headers={
        "X-Repo-Commit": "0" * 40, "X-Linked-Size": "5", "X-Linked-Etag": '"x"', "X-Xet-Hash": "no",
    }))  # fmt: skip
    head = await gate.ask("HEAD", "/kernels/org/k/resolve/main/build/x.so")
    assert (head.status, head.headers["Location"], head.headers["X-Linked-Size"]) == (302, f"{hub.cdn_url}/kernel", "5")
    assert not [name for name in head.headers if "xet" in name.lower()]
    assert not [seen for seen in hub.stats.requests if seen.listener == "cdn"]


async def test_a_busy_hub_is_left_alone_as_it_asks(gate: Gateway, hub: TestHub) -> None:
    hub.inject(status(429, {"Retry-After": "30"}, times=1))
    first = await gate.ask("GET", f"/api/models/{NAME}")
    assert (first.status, first.headers["Retry-After"]) == (503, "30")
    second = await gate.ask("GET", f"/api/models/{NAME}")
    assert second.status == 503
    assert len(hub.stats.requests) == 1
    gate.clock.now += 31
    assert (await gate.ask("GET", f"/api/models/{NAME}")).status == 200


async def test_redirects_are_not_followed_elsewhere(gate: Gateway, hub: TestHub) -> None:
    hub.inject(Fault(Kind.REDIRECT_TO, url=f"{hub.cdn_url}/elsewhere"))
    assert (await gate.ask("GET", f"/api/models/{NAME}")).status == 503
    assert (await gate.ask("GET", "/some/page")).status == 502
    assert not [seen for seen in hub.stats.requests if seen.listener == "cdn"]


async def test_a_renamed_repo_is_told_as_a_path(gate: Gateway, hub: TestHub) -> None:
    info = await gate.ask("GET", "/api/models/org/before")
    assert (info.status, info.headers["Location"]) == (307, f"/api/models/{NAME}")
    head = await gate.ask("HEAD", "/org/before/resolve/main/sub/a%20b.txt")
    assert (head.status, head.headers["Location"]) == (307, f"/{NAME}/resolve/main/sub/a%20b.txt")


def test_listings_are_kept_as_far_as_they_fit_and_a_large_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecdn_agent.gateway.listings._MOST_FILES", 5)
    listings = Listings(None, None, None)  # type: ignore[arg-type]
    digest = Digest.of(DigestKind.GIT_SHA1, b"")
    for commit, count, kept in (("a", 3, "a"), ("b", 2, "ab"), ("c", 1, "bc"), ("d", 9, "d"), ("e", 1, "e")):
        files = [FileEntry(RepoPath.parse(f"{n}"), 0, digest, digest) for n in range(count)]
        listings._remember(Manifest.of(repo_id(NAME), CommitId(commit * 40), files))
        assert "".join(commit.hex[0] for _, commit in listings._known) == kept


def test_a_hub_sends_no_client_to_this_machine() -> None:
    for location, status_ in (("https://cdn.example/x", 302), ("https://127.0.0.1:8377/x", 502), ("https://[/x", 502)):
        answer = HubAnswer("https://hub.example", 302, {"x-repo-commit": "c" * 40, "location": location}, b"")
        told = to_response(answer, "http://127.0.0.1:1")
        assert (told.status, told.headers.get("Location", location)) == (status_, location)


async def test_a_body_without_end_is_refused(gate: Gateway, hub: TestHub) -> None:
    answer = await gate.ask("POST", f"/api/models/{NAME}/paths-info/main", data=io.BytesIO(b"a" * (2 << 20)))
    assert answer.status == 413
    assert answer.headers["X-Error-Message"]
    assert not hub.stats.requests


async def test_entries_of_the_real_client_are_whole(gate: Gateway) -> None:
    items = await gate.call(gate.client().list_repo_tree, NAME, recursive=True)
    files = {item.path: item for item in items if isinstance(item, RepoFile)}
    assert files["model.safetensors"].lfs is not None
    assert files["model.safetensors"].lfs.size == 300_000
