"""Resolving when hubs are silent, gone or offline: what was seen here, what peers claim, and which of them counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from edgecdn import resolve
from edgecdn.cache.provisional import Provisional
from edgecdn.cache.store import open_repo
from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import RepoMissing, Unreachable
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, ModelRef, RepoId, RepoType, Revision
from edgecdn.repopath import RepoPath
from edgecdn.resolve import Claim, Resolver
from edgecdn.settings import load_settings
from edgecdn.sources.hub_api import HubApi
from tests.hub import HubRepo, TestHub, make_repo
from tests.hub.faults import delay_first_byte

REPO = RepoId(RepoType.MODEL, "org/name")
NAME = ModelRef.parse("org/name")
CLAIMED = CommitId("c" * 40)
MAIN = Revision("main")


def listing(commit: CommitId, text: bytes = b"{}") -> Manifest:
    digest = Digest.of(DigestKind.GIT_SHA1, text)
    return Manifest(REPO, commit, (FileEntry(RepoPath.parse("config.json"), len(text), digest, digest),))


@dataclass
class Lab:
    """What peers say, in memory."""

    said: Sequence[Claim] = ()
    listings: dict[CommitId, Manifest] = field(default_factory=dict)
    asked: int = 0

    async def claims(self, repo: RepoId, revision: Revision) -> Sequence[Claim]:
        assert repo == REPO
        self.asked += 1
        return [c for c in self.said if revision.commit in (None, c.commit)]

    async def manifest(self, repo: RepoId, commit: CommitId) -> Manifest | None:
        assert repo == REPO
        return self.listings.get(commit)


LAB_HAS_IT = (Claim(CLAIMED, ("desk-1", "desk-2")),)


@dataclass
class Desk:
    """A machine, its resolver, and a hub that tests take away."""

    base: Path
    hub: TestHub
    repo: HubRepo

    def resolver(self, lab: Lab | None = None, *, accept: bool = False, offline: bool = False) -> Resolver:
        environ = {"EDGECDN_HOME": str(self.base / "home"), "HF_HUB_CACHE": str(self.base / "cache")}
        environ |= {"EDGECDN_HUB_ENDPOINTS": self.hub.url, "HF_HUB_OFFLINE": "1" if offline else ""}
        settings = load_settings(environ)

        async def no_sleep(_seconds: float) -> None:
            await asyncio.sleep(0)

        return Resolver(settings, [HubApi(self.hub.url, None)], lab, accept, sleep=no_sleep)

    def keep(self, manifest: Manifest, *, ref: bool = False, claimed: bool = False) -> None:
        """As an earlier fetch left it."""
        if claimed:
            Provisional(self.base / "home").add(REPO, manifest.commit)
        (self.base / "cache").mkdir(exist_ok=True)
        with open_repo(self.base / "cache", REPO, create=True) as store:
            store.write_tree(manifest)
            if ref:
                store.write_ref(MAIN, manifest.commit)

    @property
    def true(self) -> CommitId:
        return CommitId(self.repo.main)


@pytest_asyncio.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    repo = make_repo("org/name", {"config.json": b"{}"})
    async with TestHub([repo]) as hub:
        yield Desk(tmp_path, hub, repo)


async def test_a_hub_that_answers_is_believed_and_the_lab_not_asked(desk: Desk) -> None:
    lab = Lab(LAB_HAS_IT, {CLAIMED: listing(CLAIMED)})
    found = await desk.resolver(lab, accept=True).resolve(NAME)
    assert (found.manifest.commit, found.ref, found.provisional) == (desk.true, MAIN, False)
    assert lab.asked == 0


async def test_without_the_users_word_a_claim_is_only_told(desk: Desk) -> None:
    await desk.hub.go_down("hub")
    with pytest.raises(Unreachable, match=r"desk-1, desk-2 of the lab have org/name at cccccccccccc") as caught:
        await desk.resolver(Lab(LAB_HAS_IT, {CLAIMED: listing(CLAIMED)})).resolve(NAME)
    assert "--accept-lan-manifest" in caught.value.remedy
    with pytest.raises(Unreachable) as caught:
        await desk.resolver(Lab()).resolve(NAME)
    assert "--accept-lan-manifest" not in caught.value.remedy


async def test_with_it_the_claim_of_most_is_taken_for_provisional(desk: Desk) -> None:
    await desk.hub.go_down("hub")
    other = CommitId("d" * 40)
    lab = Lab((Claim(other, ("liar",)), *LAB_HAS_IT), {CLAIMED: listing(CLAIMED), other: listing(other)})
    resolver = desk.resolver(lab, accept=True)
    found = await resolver.resolve(NAME)
    assert (found.manifest, found.ref, found.provisional) == (listing(CLAIMED), MAIN, True)
    assert any("Peers differ on main; most say cccccccccccc" in note for note in resolver.notes)
    assert any("the word of desk-1, desk-2 is taken" in note for note in resolver.notes)
    pinned = await desk.resolver(lab, accept=True).resolve(ModelRef.parse(f"org/name@{other}"))
    assert (pinned.manifest.commit, pinned.ref, pinned.provisional) == (other, None, True)


async def test_a_claim_without_a_listing_is_none(desk: Desk) -> None:
    await desk.hub.go_down("hub")
    with pytest.raises(Unreachable) as caught:
        await desk.resolver(Lab(LAB_HAS_IT), accept=True).resolve(NAME)
    assert "of the lab" not in caught.value.message


@pytest.mark.parametrize("claimed", [False, True])
async def test_what_was_seen_here_comes_before_what_peers_say(desk: Desk, claimed: bool) -> None:
    seen = CommitId("e" * 40)
    desk.keep(listing(seen), ref=True, claimed=claimed)
    await desk.hub.go_down("hub")
    lab = Lab(LAB_HAS_IT, {CLAIMED: listing(CLAIMED)})
    for typed in ("org/name", f"org/name@{seen}"):
        found = await desk.resolver(lab, accept=True).resolve(ModelRef.parse(typed))
        assert found.manifest.commit == seen
        assert found.provisional == claimed, "a claim stays one until a hub has confirmed it"
    assert lab.asked == 0


async def test_the_hubs_listing_of_a_claimed_commit_counts(desk: Desk) -> None:
    desk.keep(listing(desk.true, b"false"), ref=True, claimed=True)
    for typed in ("org/name", f"org/name@{desk.true}"):
        resolver = desk.resolver()
        found = await resolver.resolve(ModelRef.parse(typed))
        assert found.manifest.files[0].size == 2
        assert not found.provisional
        assert any("does not confirm the listing" in note for note in resolver.notes)
        assert (REPO, desk.true) in Provisional(desk.base / "home"), "until the hub's listing is written"


async def test_a_branch_that_peers_moved_does_not_make_a_mirror_late(desk: Desk) -> None:
    """The first hub is gone, a second one answers: the commit that only peers know must not win over it."""
    desk.keep(listing(CLAIMED), ref=True, claimed=True)
    resolver = desk.resolver()
    resolver.hubs = [HubApi("http://127.0.0.1:9", None), *resolver.hubs]
    found = await resolver.resolve(NAME)
    assert (found.manifest.commit, found.ref) == (desk.true, MAIN)


async def test_the_disk_is_never_read_on_the_loop(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the agent resolves, everything else waits for the loop."""
    desk.keep(listing(desk.true), ref=True)
    readers: dict[str, set[threading.Thread]] = {}

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            readers.setdefault(name, set()).add(threading.current_thread())
            return real(*args, **named)

        return call

    for name in ("open_repo", "cached_repos", "find_repo", "Provisional"):
        monkeypatch.setattr(resolve, name, noted(name, getattr(resolve, name)))
    for typed in ("org/name", "name", f"org/name@{desk.true}"):
        await desk.resolver().resolve(ModelRef.parse(typed))
    with pytest.raises(RepoMissing):
        await desk.resolver().resolve(ModelRef.parse("org/other"))
    assert set(readers) == {"open_repo", "cached_repos", "find_repo", "Provisional"}
    assert threading.current_thread() not in set().union(*readers.values())


async def test_offline_no_hub_is_asked(desk: Desk) -> None:
    with pytest.raises(Unreachable, match=r"is not asked \(HF_HUB_OFFLINE is set\)") as caught:
        await desk.resolver(Lab(), offline=True).resolve(NAME)
    assert "Unset HF_HUB_OFFLINE" in caught.value.remedy
    found = await desk.resolver(Lab(LAB_HAS_IT, {CLAIMED: listing(CLAIMED)}), accept=True, offline=True).resolve(NAME)
    assert found.manifest.commit == CLAIMED
    assert list(desk.hub.stats.requests) == []


async def test_a_silent_hub_is_waited_for_only_where_there_is_no_other_way(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "_HURRY_S", 0.2)
    desk.hub.inject(delay_first_byte(0.6))
    lab = Lab(LAB_HAS_IT, {CLAIMED: listing(CLAIMED)})
    assert (await desk.resolver(lab, accept=True).resolve(NAME)).provisional
    with pytest.raises(Unreachable, match="does not answer for 0 s; desk-1"):
        await desk.resolver(lab).resolve(NAME)
    for nobody in (Lab(), None):
        found = await desk.resolver(nobody).resolve(NAME)
        assert found.manifest.commit == desk.true, "a slow hub is better than none"
    desk.keep(listing(CLAIMED), ref=True)
    resolver = desk.resolver()
    assert (await resolver.resolve(NAME)).manifest.commit == CLAIMED
    assert any("No hub answers; using the commit of main" in note for note in resolver.notes)
