"""What a fetch tells, where; and where it keeps its state."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from edgecdn import pipeline as pipeline_module
from edgecdn.cache import local_dir
from edgecdn.cache.catalog import Catalog
from edgecdn.cache.inventory import take_inventory
from edgecdn.cache.publish import publish_snapshot
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import RepoStore, open_repo
from edgecdn.events import Event, Note
from edgecdn.fileset import FileSet
from edgecdn.manifest import Manifest
from edgecdn.names import ModelRef, Revision
from edgecdn.pipeline import Fetched, Pipeline, partials_dir, partials_name
from edgecdn.resolve import Resolved, Resolver
from edgecdn.settings import load_settings
from tests.unit.made import COMMIT, REPO, lfs_file, manifest_of

DATA = b"weights" * 100
ENTRY = lfs_file("model.safetensors", DATA)
MANIFEST = manifest_of(ENTRY)


class Listened:
    """Events, and the threads they came on."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.threads: set[int] = set()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())

    @property
    def notes(self) -> str:
        return " ".join(event.text for event in self.events if isinstance(event, Note))


class Known(Resolver):
    """Knows one commit."""

    def __init__(self) -> None:
        self.notes = []

    async def resolve(self, ref: ModelRef) -> Resolved:
        return Resolved(MANIFEST, ref.revision or Revision("main"), Revision("main"), "")


def _published(base: Path, data: bytes = DATA, manifest: Manifest = MANIFEST) -> Path:
    with open_repo(base / "cache", REPO, create=True) as store, SafeDir.at(base) as aside:
        store.blobs(create=True).close()
        path = store.path / "blobs" / ENTRY.digest.hex
        path.write_bytes(data)
        publish_snapshot(store, manifest, manifest.files, Revision("main"), aside)
    return path


async def _fetch(base: Path, listened: Listened, target: Path | None = None) -> Fetched:
    settings = load_settings({"EDGECDN_HOME": str(base / "home"), "HF_HUB_CACHE": str(base / "cache")})
    catalog = Catalog(settings.home)
    try:
        made = Pipeline(settings, Known(), list, catalog, listened)
        return await made.fetch(ModelRef.parse(REPO.name), FileSet(), target)
    finally:
        catalog.close()


async def test_the_listener_is_called_on_the_loop_and_in_order(tmp_path: Path) -> None:
    _published(tmp_path)
    listened = Listened()
    fetched = await _fetch(tmp_path, listened)
    assert fetched.commit == COMMIT.hex
    assert listened.threads == {threading.get_ident()}
    assert [type(event).__name__ for event in listened.events] == ["FetchPlanned"]


async def test_a_rotten_blob_is_set_aside_under_the_lock_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _published(tmp_path, b"wrong" * 140)
    listened, real = Listened(), take_inventory
    seen: list[bool] = []

    def watch(*given: object, set_aside_rotten: bool) -> object:
        seen.append(set_aside_rotten)
        found = real(*given, set_aside_rotten=set_aside_rotten)  # type: ignore[arg-type]
        assert path.exists() != set_aside_rotten
        return found

    async def bring(_self: Pipeline, _resolved: Resolved, _store: RepoStore, _state: SafeDir, _missing: object) -> None:
        path.write_bytes(DATA)

    monkeypatch.setattr(pipeline_module, "take_inventory", watch)
    monkeypatch.setattr(Pipeline, "_transfer", bring)
    await _fetch(tmp_path, listened)
    assert seen == [False, True]
    assert f"set aside in {tmp_path / 'home' / 'quarantine'}" in listened.notes
    assert listened.threads == {threading.get_ident()}


async def test_a_rotten_blob_that_could_not_be_moved_is_not_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _published(tmp_path, b"wrong" * 140)

    async def bring(_self: Pipeline, *_: object) -> None:
        path.write_bytes(DATA)

    monkeypatch.setattr("edgecdn.cache.inventory.set_aside", lambda *_: None)
    monkeypatch.setattr(Pipeline, "_transfer", bring)
    listened = Listened()
    await _fetch(tmp_path, listened)
    assert "was damaged; it is fetched again" in listened.notes
    assert "set aside" not in listened.notes


async def test_the_disk_is_not_touched_on_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    real_open, real_state = open_repo, partials_dir

    def opened(*given: object, **named: object) -> RepoStore:
        threads.append(threading.get_ident())
        return real_open(*given, **named)  # type: ignore[arg-type]

    def state(*given: object) -> SafeDir:
        threads.append(threading.get_ident())
        return real_state(*given)  # type: ignore[arg-type]

    async def bring(_self: Pipeline, _resolved: Resolved, store: RepoStore, *_: object) -> None:
        await asyncio.to_thread(_published, tmp_path)

    monkeypatch.setattr(pipeline_module, "open_repo", opened)
    monkeypatch.setattr(pipeline_module, "partials_dir", state)
    monkeypatch.setattr(Pipeline, "_transfer", bring)
    await _fetch(tmp_path, Listened())
    assert len(threads) >= 3
    assert threading.get_ident() not in threads


async def test_a_repo_that_was_removed_while_waiting_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is of the place, not of the folder: it must be free again before the next try."""
    answers = iter([False])
    monkeypatch.setattr(RepoStore, "is_current", lambda _self: next(answers, True))

    async def bring(_self: Pipeline, *_: object) -> None:
        await asyncio.to_thread(_published, tmp_path)

    monkeypatch.setattr(Pipeline, "_transfer", bring)
    async with asyncio.timeout(20):
        await _fetch(tmp_path, Listened())
    assert next(answers, None) is None


async def test_local_dir_is_hashed_in_a_way_that_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _published(tmp_path)
    stops: list[object] = []
    real_plan, real_place = local_dir.plan_placing, local_dir.place

    def plan(target: Path, entries: object, stop: object) -> object:
        stops.append(stop)
        return real_plan(target, entries, stop)  # type: ignore[arg-type]

    def place(*given: object) -> Path:
        stops.append(given[-1])
        return real_place(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline_module, "plan_placing", plan)
    monkeypatch.setattr(pipeline_module, "place", place)
    fetched = await _fetch(tmp_path, Listened(), tmp_path / "mine")
    assert (Path(fetched.path) / str(ENTRY.path)).read_bytes() == DATA
    assert len(stops) == 2
    assert stops[0] is stops[1]
    assert isinstance(stops[0], threading.Event)


def test_the_state_of_a_repo_is_named_by_its_place(tmp_path: Path) -> None:
    with open_repo(tmp_path / "cache", REPO, create=True) as store:
        name = partials_name(store)
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    with open_repo(tmp_path / "link", REPO) as store:
        assert partials_name(store) == name
    (tmp_path / "cache").rename(tmp_path / "old")
    with open_repo(tmp_path / "cache", REPO, create=True) as store:  # other numbers, as after a mount
        assert partials_name(store) == name
    assert len(name) == 16
    with open_repo(tmp_path / "other", REPO, create=True) as store:
        assert partials_name(store) != name
