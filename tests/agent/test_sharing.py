"""Which repos may be given to peers, as a real hub answers a stranger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from edgecdn.cache.catalog import Catalog
from edgecdn.names import RepoId, RepoType
from edgecdn.settings import load_settings
from edgecdn_agent.holdings.sharing import SharingRule
from tests.hub import Fault, Kind, TestHub, make_repo, status

DAY_S = 86400.0
TOKEN = "hf_ThisMustNeverBeSent0123456789"
OPEN = RepoId(RepoType.MODEL, "org/open")
DATASET = RepoId(RepoType.DATASET, "org/open-data")
SPACE = RepoId(RepoType.SPACE, "org/open-space")
PRIVATE = RepoId(RepoType.MODEL, "org/private")
GATED = RepoId(RepoType.MODEL, "org/gated")
MANUAL = RepoId(RepoType.DATASET, "org/gated-manual")
UNKNOWN = RepoId(RepoType.MODEL, "org/not-on-any-hub")
NOT_SHARED = (PRIVATE, GATED, MANUAL, UNKNOWN)


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[TestHub]:
    repos = [
        make_repo(OPEN.name, {"a": b"1"}),
        make_repo(DATASET.name, {"a": b"1"}, repo_type="dataset"),
        make_repo(SPACE.name, {"a": b"1"}, repo_type="space"),
        make_repo(PRIVATE.name, {"a": b"1"}, private=True),
        make_repo(GATED.name, {"a": b"1"}, gated="auto"),
        make_repo(MANUAL.name, {"a": b"1"}, repo_type="dataset", gated="manual"),
    ]
    async with TestHub(repos, tokens=[TOKEN]) as made:
        yield made
        assert [seen.authorization for seen in made.stats.requests if seen.authorization] == []
        assert not any("cookie" in name.lower() for seen in made.stats.requests for name in seen.headers)
        assert all(TOKEN not in str(seen) for seen in made.stats.requests)


class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.now = 1.8e9

    def __call__(self) -> float:
        return self.now


class Asker:
    """A rule of one machine with a token in its environment, and how to start it again."""

    def __init__(self, base: Path) -> None:
        self.home = base
        self.clock = Clock()
        self.catalog = Catalog(base)

    def rule(self, *hubs: TestHub | str, **settings: str) -> SharingRule:
        urls = ",".join(hub if isinstance(hub, str) else hub.url for hub in hubs)
        offline = {"HF_HUB_OFFLINE": settings.pop("offline", "")}
        named = {f"EDGECDN_{name.upper()}": value for name, value in settings.items()}
        environ = {"EDGECDN_HOME": str(self.home), "EDGECDN_HUB_ENDPOINTS": urls, "HF_TOKEN": TOKEN, **named, **offline}
        return SharingRule(load_settings(environ), self.catalog, self.clock)


@pytest.fixture
def asker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asker:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1\nlogin user\npassword {TOKEN}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    return Asker(tmp_path)


@asynccontextmanager
async def running(rule: SharingRule, repos: Callable[[], Iterable[RepoId]]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(rule.run(repos))
        yield
        task.cancel()


async def until(rule: SharingRule, condition: Callable[[], bool], limit_s: float = 20.0) -> float:
    changed = asyncio.Event()
    leave = rule.subscribe(changed.set)
    started = time.monotonic()
    async with asyncio.timeout(limit_s):
        while not condition():
            changed.clear()
            await changed.wait()
    leave()
    return time.monotonic() - started


async def test_shared_is_what_a_hub_shows_to_everybody(hub: TestHub, asker: Asker) -> None:
    rule = asker.rule(hub)
    for repo in (OPEN, DATASET, SPACE):
        assert not rule.allows(repo)  # nobody knows yet
        assert await rule.refresh(repo)
        assert rule.allows(repo)
    for repo in NOT_SHARED:
        assert await rule.refresh(repo)
        assert not rule.allows(repo)
    assert not rule.allows(RepoId(RepoType.MODEL, DATASET.name))
    assert hub.stats.asked("GET", "/api/datasets/org/open-data")


async def test_a_repo_that_became_private_or_gated_is_no_longer_shared(hub: TestHub, asker: Asker) -> None:
    rule = asker.rule(hub)
    told: list[int] = []
    rule.subscribe(lambda: told.append(1))
    await rule.refresh(OPEN)
    for change in ({"private": True}, {"private": False, "gated": "auto"}):
        for name, value in change.items():
            setattr(hub.state.repos["model", OPEN.name], name, value)
        await rule.refresh(OPEN)
        assert not rule.allows(OPEN)
    hub.state.repos["model", OPEN.name].gated = False
    await rule.refresh(OPEN)
    assert rule.allows(OPEN)
    assert len(told) == 3


async def test_answers_are_remembered_for_a_week(hub: TestHub, asker: Asker) -> None:
    rule = asker.rule(hub)
    await rule.refresh(OPEN)
    await rule.refresh(PRIVATE)
    await rule.refresh(DATASET)
    await hub.go_down("hub")
    for age_s, good in ((0.0, True), (6.9 * DAY_S, True), (7.1 * DAY_S, False), (-7.1 * DAY_S, False)):
        asker.clock.now += age_s
        again = asker.rule(hub)
        await again.load()
        assert not await again.refresh(OPEN)
        for asked in (rule, again):
            assert asked.allows(OPEN) is good
            assert asked.allows(DATASET) is good
            assert not asked.allows(PRIVATE)
        asker.clock.now -= age_s
    await hub.come_back("hub")


@pytest.mark.parametrize("fault", [status(503), status(429), status(500), Fault(Kind.CAPTIVE_PORTAL)])
async def test_a_hub_that_fails_takes_nothing_back_and_the_next_is_asked(
    hub: TestHub, asker: Asker, fault: Fault
) -> None:
    rule = asker.rule(hub)
    await rule.refresh(OPEN)
    hub.inject(fault)
    assert not await rule.refresh(OPEN)
    assert rule.allows(OPEN)
    assert not await rule.refresh(DATASET)
    assert not rule.allows(DATASET)
    async with TestHub([make_repo(GATED.name, {"a": b"1"})]) as mirror:
        both = asker.rule(hub, mirror)
        assert await both.refresh(GATED)
        assert both.allows(GATED)
        hub.clear()
        assert await both.refresh(GATED)  # the first that answers is believed
        assert not both.allows(GATED)


@pytest.mark.parametrize("code", [401, 403, 404])
async def test_refused_means_not_shared(hub: TestHub, asker: Asker, code: int) -> None:
    rule = asker.rule(hub)
    await rule.refresh(OPEN)
    hub.inject(status(code))
    assert await rule.refresh(OPEN)
    assert not rule.allows(OPEN)


@pytest.mark.parametrize(
    ("body", "shared"),
    [
        ('{"private": false, "gated": false}', True),
        ('{"private": false, "gated": false, "disabled": true}', False),
        ('{"private": false, "gated": "manual"}', False),
        ('{"private": null, "gated": false}', False),
        ('{"private": 0, "gated": 0}', False),
        ('{"gated": false}', None),
        ('{"private": false}', None),
        ("[]", None),
        ("null", None),
        ("{", None),
        ("[" * 100_000, None),
    ],
)
async def test_only_a_repos_page_that_says_so(hub: TestHub, asker: Asker, body: str, shared: bool | None) -> None:
    rule = asker.rule(hub)
    hub.inject(Fault(Kind.STATUS, status=200, text=body))
    assert await rule.refresh(OPEN) is (shared is not None)
    assert rule.allows(OPEN) is bool(shared)


async def test_what_the_user_says_stands_above_what_hubs_say(hub: TestHub, asker: Asker) -> None:
    rule = asker.rule(hub, share_allow="org/gated,mine/*,datasets/org/gated-*", share_deny="ORG/Open*,mine/secret")
    for repo in (OPEN, DATASET, SPACE):
        await rule.refresh(repo)
        assert not rule.allows(repo)  # in any case, data sets of that name too
    assert rule.allows(GATED)
    assert rule.allows(MANUAL)
    assert rule.allows(RepoId(RepoType.MODEL, "mine/anything"))
    assert not rule.allows(RepoId(RepoType.MODEL, "mine/secret"))
    assert not rule.allows(RepoId(RepoType.MODEL, "Mine/anything"))  # allowed exactly as written
    assert not rule.allows(RepoId(RepoType.DATASET, "mine/anything"))
    assert not rule.allows(PRIVATE)
    nothing = asker.rule(hub, share_allow="*", share_deny="*")
    assert not any(nothing.allows(repo) for repo in (OPEN, DATASET, GATED))
    models = asker.rule(hub, share_allow="*")
    assert models.allows(PRIVATE)
    assert not models.allows(MANUAL)


async def test_offline_nothing_is_asked(hub: TestHub, asker: Asker) -> None:
    await asker.rule(hub).refresh(OPEN)
    asked = len(hub.stats.requests)
    rule = asker.rule(hub, offline="1")
    async with running(rule, lambda: [OPEN, DATASET]):
        await until(rule, lambda: rule.allows(OPEN))
        assert not await rule.refresh(DATASET)
        rule.learn(DATASET)
        await asyncio.sleep(0)
    assert not rule.allows(DATASET)
    assert len(hub.stats.requests) == asked


async def test_a_new_repo_is_asked_for_at_once(hub: TestHub, asker: Asker) -> None:
    rule = asker.rule(hub)
    async with running(rule, list):
        await asyncio.to_thread(asker.catalog.sharing)  # it is loaded, and waits
        rule.learn(OPEN)
        assert await until(rule, lambda: rule.allows(OPEN)) < 1.0
        rule.learn(OPEN)
        rule.learn(DATASET)
        await until(rule, lambda: rule.allows(DATASET))
    assert len(hub.stats.asked("GET", OPEN.name)) == 1 + len(hub.stats.asked("GET", DATASET.name))


async def test_what_is_held_is_kept_fresh_one_request_a_second(hub: TestHub, asker: Asker) -> None:
    rule = asker.rule(hub)
    repos = [OPEN, DATASET, SPACE]
    started = time.monotonic()
    async with running(rule, lambda: repos):
        await until(rule, lambda: all(map(rule.allows, repos)))
        assert time.monotonic() - started >= 1.9
        assert len(hub.stats.requests) == 3
        hub.state.repos["model", OPEN.name].private = True
        asker.clock.now += DAY_S
        rule.learn(GATED)  # wakes it
        await until(rule, lambda: not rule.allows(OPEN))
    remembered = await asyncio.to_thread(asker.catalog.sharing)
    assert remembered[OPEN.name] == (False, asker.clock.now)


async def test_a_day_has_not_passed(hub: TestHub, asker: Asker) -> None:
    rule = asker.rule(hub)
    await rule.refresh(OPEN)
    asker.clock.now += 0.89 * DAY_S
    assert rule._next([OPEN]) is None
    asker.clock.now += 0.12 * DAY_S
    assert rule._next([OPEN]) == OPEN
    asker.clock.now -= 365 * DAY_S  # FAULTS 65: nobody knows how old it is
    assert rule._next([OPEN]) == OPEN
    assert not rule.allows(OPEN)


async def test_a_refusal_seen_elsewhere_has_it_asked_again(hub: TestHub, asker: Asker) -> None:
    rule = asker.rule(hub)
    await rule.refresh(OPEN)
    hub.state.repos["model", OPEN.name].private = True
    async with running(rule, list):
        rule.learn(OPEN, again=True)
        await until(rule, lambda: not rule.allows(OPEN))


async def test_when_no_hub_answers_it_is_left_alone_for_longer_and_longer(asker: Asker) -> None:
    rule = asker.rule("http://127.0.0.1:9")
    pauses = []
    for _ in range(9):
        pauses.append(rule._pause_s(answered=await rule.refresh(OPEN)))
    assert pauses[:3] == [5.0, 10.0, 20.0]
    assert pauses[-1] == 600.0
    assert rule._pause_s(answered=True) == 1.0


async def test_one_repo_no_hub_answers_for_does_not_keep_the_others_waiting(hub: TestHub, asker: Asker) -> None:
    rule = asker.rule(hub)
    hub.inject(Fault(Kind.STATUS, status=500, path=f"*{OPEN.name}"))
    repos = [OPEN, DATASET]
    tried = []
    for _ in range(4):
        repo = rule._next(repos)
        assert repo is not None
        tried.append(repo)
        rule._tried[repo] = next(rule._turn)
        await rule.refresh(repo)
    assert tried == [OPEN, DATASET, OPEN, OPEN]
