"""Who may see what: the hub's word for every caller, and a token that goes to its own hub alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from edgecdn.errors import Unreachable
from edgecdn.names import CommitId, Revision
from edgecdn.repopath import RepoPath
from edgecdn.sources.faults import Denied, SourceFault
from edgecdn.spans import Span
from edgecdn_agent.gateway.finder import HubRefusal, NoAnswer
from tests.agent.bytes_lab import bytes_lab
from tests.agent.gateway_lab import Gateway, gateway, put_in_cache, repo_id
from tests.hub import Fault, Kind, TestHub, make_repo, status

GOOD, OTHER, BAD = "hf_GoodToken0123456789", "hf_OtherToken0123456789", "hf_NoSuchToken0123456789"
OPEN, GATED, PRIVATE = "org/open", "org/gated", "org/private"
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 100_000}
MAIN = Revision("main")


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[TestHub]:
    shown = {"README.md": b"# Ask first", ".gitattributes": b"*.safetensors filter=lfs"}
    repos = [
        make_repo(OPEN, FILES),
        make_repo(GATED, FILES | shown, gated="auto"),
        make_repo(PRIVATE, FILES, private=True),
    ]
    async with TestHub(repos, tokens={GOOD: {GATED, PRIVATE}, OTHER: set()}) as made:
        yield made


@pytest_asyncio.fixture
async def gate(hub: TestHub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Gateway]:
    caplog.set_level(logging.DEBUG, "edgecdn_agent")
    async with gateway(tmp_path, hub) as made:
        yield made
    assert not [record for record in caplog.records if "Token" in record.getMessage()]
    for file in (tmp_path / "home").rglob("*"):
        assert not file.is_file() or b"Token0123" not in file.read_bytes()


def path(text: str) -> RepoPath:
    return RepoPath.parse(text)


def download(gate: Gateway, tmp_path: Path, name: str, file: str) -> Any:
    def run(api: HfApi) -> bytes:
        return Path(api.hf_hub_download(name, file, cache_dir=tmp_path / f"own-{api.token}")).read_bytes()

    return lambda token: gate.call(run, HfApi(endpoint=gate.url, token=token or False))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("name", [GATED, PRIVATE])
async def test_only_who_may_gets_it(gate: Gateway, hub: TestHub, tmp_path: Path, name: str, file: str) -> None:
    get = download(gate, tmp_path, name, file)
    error = GatedRepoError if name == GATED else RepositoryNotFoundError
    assert await get(GOOD) == FILES[file]
    for token in (None, OTHER):
        with pytest.raises(error):  # what the hub just told another caller counts for nothing
            await get(token)
    assert await get(GOOD) == FILES[file]
    storage = [seen for seen in hub.stats.requests if seen.listener == "cdn"]
    assert not [seen for seen in storage if seen.authorization]  # FAULTS 53


@pytest.mark.parametrize("token", [None, GOOD, OTHER, BAD])
@pytest.mark.parametrize("name", [OPEN, GATED, PRIVATE, "org/none"])
async def test_every_caller_hears_what_the_hub_would_say(
    gate: Gateway, hub: TestHub, tmp_path: Path, name: str, token: str | None
) -> None:
    async with gateway(tmp_path / "direct", hub) as other:
        other.url = hub.url
        for method, target in (
            ("GET", f"/api/models/{name}"), ("GET", f"/api/models/{name}/tree/main?recursive=true"),
            ("GET", f"/api/models/{name}/auth-check"), ("GET", f"/api/models/{name}/refs"),
            ("HEAD", f"/{name}/resolve/main/config.json"), ("HEAD", f"/{name}/resolve/main/none"),
        ):  # fmt: skip
            said, meant = await gate.ask(method, target, token=token), await other.ask(method, target, token=token)
            assert said.status == meant.status, target
            code = meant.headers.get("X-Error-Code", "")
            if said.status == 401 and not code and token != BAD:
                code = "RepoNotFound"  # clients guess it for https, and for us cannot
            assert said.headers.get("X-Error-Code", "") == code, target
            assert said.headers.get("X-Error-Message") == meant.headers.get("X-Error-Message")


async def test_real_errors_of_the_real_client(gate: Gateway) -> None:
    with pytest.raises(RepositoryNotFoundError):
        await gate.call(gate.client().model_info, PRIVATE)
    with pytest.raises(GatedRepoError):
        await gate.call(gate.client().auth_check, GATED)
    await gate.call(gate.client(GOOD).auth_check, GATED)
    assert (await gate.call(gate.client(GOOD).model_info, PRIVATE)).private
    assert (await gate.call(gate.client(GOOD).whoami))["name"] == "tester"


@pytest.mark.parametrize("file", ["README.md", ".gitattributes"])
@pytest.mark.parametrize("token", [None, OTHER])
async def test_what_hubs_show_of_a_gated_repo_opens_no_other_file(
    gate: Gateway, hub: TestHub, token: str | None, file: str
) -> None:
    for _ in range(2):
        assert (await gate.ask("HEAD", f"/{GATED}/resolve/main/{file}", token=token)).status == 200
        for target in (f"/{GATED}/resolve/main/model.safetensors", f"/{GATED}/resolve/main/config.json"):
            answer = await gate.ask("GET", target, token=token)
            assert (answer.status, answer.headers["X-Error-Code"]) == (403, "GatedRepo")


async def test_a_yes_holds_a_minute_for_that_caller(gate: Gateway, hub: TestHub) -> None:
    target = f"/{PRIVATE}/resolve/{hub.state.repos['model', PRIVATE].main}/config.json"
    assert (await gate.ask("HEAD", target, token=GOOD)).status == 200
    hub.stats.reset()
    assert (await gate.ask("HEAD", target, token=GOOD)).status == 200
    assert not hub.stats.requests
    assert (await gate.ask("HEAD", target, token=OTHER)).status == 404
    hub.state.tokens[GOOD].discard(PRIVATE)  # type: ignore[index,union-attr]
    gate.clock.now += 61
    answer = await gate.ask("HEAD", target, token=GOOD)
    assert (answer.status, answer.headers["X-Error-Code"]) == (404, "RepoNotFound")


@pytest.mark.parametrize("name", [GATED, PRIVATE])
async def test_a_silent_hub_opens_nothing(gate: Gateway, hub: TestHub, name: str) -> None:
    commit = hub.state.repos["model", name].main
    targets = (
        f"/{name}/resolve/{commit}/config.json", f"/api/models/{name}/tree/{commit}?recursive=true",
        f"/api/models/{name}", f"/api/models/{name}/revision/{commit}", f"/api/models/{name}/refs",
    )  # fmt: skip
    for target in targets:
        assert (await gate.ask("GET", target, token=GOOD)).status == 200
    put_in_cache(gate.settings, await gate.gate.listings.manifest(repo_id(name), CommitId(commit), GOOD, 5), "main")
    await hub.go_down("hub")
    gate.clock.now += 61
    for token in (GOOD, None, OTHER):
        for target in targets:
            answer = await gate.ask("GET", target, token=token)
            assert answer.status == 503, target
            assert answer.headers["X-Error-Message"]


async def test_public_files_are_found_without_a_token(gate: Gateway) -> None:
    wanted = await gate.gate.finder.find(repo_id(OPEN), MAIN, path("config.json"), GOOD)
    assert wanted.token is None
    own = await gate.gate.finder.find(repo_id(PRIVATE), MAIN, path("config.json"), GOOD)
    assert own.token == GOOD
    assert GOOD not in repr(own)
    with pytest.raises(HubRefusal) as refused:
        await gate.gate.finder.find(repo_id(PRIVATE), MAIN, path("config.json"), None)
    assert (refused.value.status, refused.value.code) == (401, "RepoNotFound")


async def test_a_repo_that_becomes_gated(gate: Gateway, hub: TestHub) -> None:
    repo = hub.state.repos["model", OPEN]
    target = f"/{OPEN}/resolve/{repo.main}/config.json"
    assert (await gate.ask("HEAD", target)).status == 200
    repo.gated = "auto"
    gate.clock.now += 61
    assert (await gate.ask("GET", f"/api/models/{OPEN}")).json["gated"] == "auto"
    answer = await gate.ask("HEAD", target)
    assert (answer.status, answer.headers["X-Error-Code"]) == (403, "GatedRepo")
    assert not gate.rule.allows(repo_id(OPEN))
    repo.gated = False
    gate.clock.now += 61
    assert (await gate.ask("GET", f"/api/models/{OPEN}")).json["gated"] is False
    assert (await gate.ask("HEAD", target)).status == 200
    assert gate.rule.allows(repo_id(OPEN))


async def test_what_the_user_shares_opens_nothing(hub: TestHub, tmp_path: Path) -> None:
    async with gateway(tmp_path, hub, EDGECDN_SHARE_ALLOW="org/*") as gate:
        assert (await gate.ask("HEAD", f"/{PRIVATE}/resolve/main/config.json")).status == 401
    async with gateway(tmp_path / "2", hub, EDGECDN_SHARE_DENY="*") as gate:
        assert (await gate.ask("HEAD", f"/{OPEN}/resolve/main/config.json")).status == 200


async def test_a_token_goes_to_its_own_hub_alone(hub: TestHub, tmp_path: Path) -> None:
    """The mirror is first, and has only what everybody may see."""
    async with (
        TestHub([make_repo(OPEN, FILES)]) as mirror,
        gateway(tmp_path, mirror, hub, EDGECDN_HUB_TOKEN_FOR=hub.url) as gate,
    ):
        assert (await gate.ask("GET", f"/{PRIVATE}/resolve/main/model.safetensors", token=GOOD)).status == 200
        assert (await gate.ask("GET", f"/{OPEN}/resolve/main/model.safetensors", token=GOOD)).status == 200
        assert (await gate.ask("GET", f"/api/models/{PRIVATE}", token=GOOD)).json["id"] == PRIVATE
        assert (await gate.ask("GET", f"/api/models/{PRIVATE}/tree/main", token=GOOD)).status == 200
        assert (await gate.ask("HEAD", f"/{PRIVATE}/resolve/main/config.json", token=OTHER)).status == 404
        await hub.go_down("hub")
        gate.clock.now += 61
        assert (await gate.ask("HEAD", f"/{PRIVATE}/resolve/main/config.json", token=GOOD)).status == 503
        assert (await gate.ask("GET", f"/api/models/{PRIVATE}", token=GOOD)).status == 503
        assert mirror.stats.requests
        assert not [seen for seen in mirror.stats.requests if seen.authorization or "Token0123" in str(seen.headers)]
        assert [seen for seen in hub.stats.requests if seen.authorization]


async def test_relayed_ranges_are_the_callers_own(gate: Gateway, hub: TestHub) -> None:
    wanted = await gate.gate.finder.find(repo_id(PRIVATE), MAIN, path("model.safetensors"), GOOD)
    hub.stats.reset()
    for span in (Span(0, 10), Span(99_990, 100_000), Span(5, 50_005)):
        async with gate.gate.relay.open(wanted, span) as pieces:
            assert b"".join([piece async for piece in pieces]) == FILES["model.safetensors"][span.start : span.stop]
    assert len(hub.stats.asked(contains="/resolve/")) == 1  # then straight at the storage
    assert {seen.range for seen in hub.stats.requests} == {"bytes=0-9", "bytes=99990-99999", "bytes=5-50004"}
    assert not [seen for seen in hub.stats.requests if seen.listener == "cdn" and seen.authorization]
    hub.inject(status(403, route="cdn", times=1))  # the address expired
    async with gate.gate.relay.open(wanted, Span(1, 3)) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"ww"


async def test_relayed_bytes_of_a_stranger_are_refused(gate: Gateway, hub: TestHub) -> None:
    wanted = await gate.gate.finder.find(repo_id(GATED), MAIN, path("model.safetensors"), GOOD)
    with pytest.raises(Denied):
        async with gate.gate.relay.open(dataclasses.replace(wanted, token=OTHER), None):
            pass
    await hub.go_down("hub")
    with pytest.raises(SourceFault):
        async with gate.gate.relay.open(dataclasses.replace(wanted, token=OTHER), Span(0, 5)):
            pass


async def test_a_login_page_lets_nobody_in(gate: Gateway, hub: TestHub) -> None:
    commit = hub.state.repos["model", PRIVATE].main
    assert (await gate.ask("HEAD", f"/{PRIVATE}/resolve/{commit}/config.json", token=GOOD)).status == 200
    hub.inject(Fault(Kind.CAPTIVE_PORTAL))
    assert (await gate.ask("HEAD", f"/{PRIVATE}/resolve/{commit}/config.json", token=OTHER)).status == 503
    with pytest.raises(NoAnswer):
        await gate.gate.access.check(repo_id(PRIVATE), OTHER)


async def test_what_only_the_lab_vouches_for_opens_no_other_repo(tmp_path: Path) -> None:
    """A listing that a peer made up may name the digest of a file of somebody's private repo."""
    async with bytes_lab(tmp_path) as lab:
        wanted = await lab.held(b"secret" * 1000)
        assert (await lab.ask(wanted))[0] == 200
        lab.deliveries.refuses = Unreachable("nobody has it")
        other = dataclasses.replace(wanted.manifest, repo=repo_id("org/made-up"))
        for manifest, page, answered in ((wanted.manifest, "", 200), (other, "https://hub", 200), (other, "", 503)):
            lab.files[wanted.entry.digest.hex] = dataclasses.replace(wanted, manifest=manifest, page=page)
            assert (await lab.ask(wanted))[0] == answered
