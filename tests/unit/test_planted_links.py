"""FAULTS 3: links planted in the cache lead no read and no write outside of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecdn.cache.publish import publish_snapshot
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import open_repo
from edgecdn.errors import CacheRefused
from edgecdn.names import Revision
from tests.unit.made import COMMIT, REPO, lfs_file, manifest_of

DATA = b"weights"
ENTRY = lfs_file("sub/model.safetensors", DATA)
MANIFEST = manifest_of(ENTRY)
MAIN = Revision("main")


class Cache:
    """A cache with one repo, and a folder outside of it."""

    def __init__(self, base: Path) -> None:
        self.dir = base / "cache"
        self.repo = self.dir / REPO.folder
        self.outside = base / "outside"
        for folder in (self.repo / "blobs", self.outside):
            folder.mkdir(parents=True)
        (self.outside / "precious").write_bytes(b"mine")
        (self.repo / "blobs" / ENTRY.digest.hex).write_bytes(DATA)

    def plant(self, where: str) -> None:
        """A link to the folder outside."""
        path = self.repo / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(self.outside, target_is_directory=True)

    def check(self) -> None:
        assert {p.name: p.read_bytes() for p in self.outside.iterdir()} == {"precious": b"mine"}

    def publish(self) -> None:
        with open_repo(self.dir, REPO, create=True) as store, SafeDir.at(self.dir.parent / "q", create=True) as aside:
            publish_snapshot(store, MANIFEST, MANIFEST.files, MAIN, aside)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def test_without_a_planted_link_it_works(cache: Cache) -> None:
    cache.publish()
    assert (cache.repo / "snapshots" / COMMIT.hex / str(ENTRY.path)).read_bytes() == DATA
    assert (cache.repo / "refs" / "main").read_text() == COMMIT.hex


@pytest.mark.parametrize("where", ["snapshots", f"snapshots/{COMMIT}", f"snapshots/{COMMIT}/sub", "refs", "trees"])
def test_nothing_is_published_through_a_planted_folder(cache: Cache, where: str) -> None:
    cache.plant(where)
    with pytest.raises(CacheRefused) as caught:
        cache.publish()
    assert Path(where).name in caught.value.message
    cache.check()


def test_a_planted_repo_folder_is_refused(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.repo.rename(tmp_path / "moved")
    cache.repo.symlink_to(cache.outside, target_is_directory=True)
    for create in (True, False):
        with pytest.raises(CacheRefused):
            open_repo(cache.dir, REPO, create=create)
    cache.check()


def test_a_planted_blobs_folder_is_neither_written_nor_read(cache: Cache) -> None:
    (cache.repo / "blobs").rename(cache.outside.parent / "moved")
    cache.plant("blobs")
    (cache.outside / ENTRY.digest.hex).symlink_to("precious")
    with open_repo(cache.dir, REPO) as store:
        with pytest.raises(CacheRefused):
            store.blobs(create=True)
        with pytest.raises(CacheRefused):
            store.open_blob(ENTRY.digest)
    (cache.outside / ENTRY.digest.hex).unlink()
    cache.check()


@pytest.mark.parametrize("name", [f"trees/{COMMIT}.json", "refs/main"])
def test_planted_files_are_not_read_and_not_written_through(cache: Cache, name: str) -> None:
    path = cache.repo / name
    path.parent.mkdir()
    path.symlink_to(cache.outside / "precious")
    with open_repo(cache.dir, REPO) as store:
        read: Callable[[], object] = (
            (lambda: store.read_tree(COMMIT)) if "tree" in name else lambda: store.read_ref(MAIN)
        )
        with pytest.raises(CacheRefused):
            read()
        if "tree" in name:
            store.write_tree(MANIFEST)
        else:
            store.write_ref(MAIN, COMMIT)
        assert read() in (MANIFEST, COMMIT)
    assert not path.is_symlink()
    cache.check()


def test_locks_are_not_made_through_a_link(cache: Cache) -> None:
    (cache.dir / ".locks").symlink_to(cache.outside)
    with open_repo(cache.dir, REPO) as store, pytest.raises(CacheRefused):
        store.locks()
    cache.check()


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd", "{outside}/precious", "../../../outside/precious", "other", "../../blobs/ab/{name}/x",
        "../../blobs/../{name}", "../../blobs/abc/{name}", "../blobs/ab/../../{name}", "",
    ],
)  # fmt: skip
def test_a_blob_that_leads_elsewhere_is_refused(cache: Cache, target: str) -> None:
    path = cache.repo / "blobs" / ENTRY.digest.hex
    path.unlink()
    path.symlink_to(target.format(outside=cache.outside, name=ENTRY.digest) or "x")
    with open_repo(cache.dir, REPO) as store, pytest.raises(CacheRefused):
        store.open_blob(ENTRY.digest)
    cache.check()


def _share(cache: Cache, data: bytes = DATA) -> Path:
    name = ENTRY.digest.hex
    shared = cache.dir / "blobs" / name[:2] / name
    shared.parent.mkdir(parents=True)
    shared.write_bytes(data)
    link = cache.repo / "blobs" / name
    link.unlink()
    link.symlink_to(f"../../blobs/{name[:2]}/{name}")
    return shared


def test_one_hop_into_the_caches_own_shared_store_is_followed(cache: Cache) -> None:
    _share(cache)
    with open_repo(cache.dir, REPO) as store:
        fd = store.open_blob(ENTRY.digest)
        assert fd is not None
        with os.fdopen(fd, "rb") as file:
            assert file.read() == DATA


def test_a_second_hop_is_refused(cache: Cache) -> None:
    shared = _share(cache)
    shared.unlink()
    shared.symlink_to(cache.outside / "precious")
    with open_repo(cache.dir, REPO) as store, pytest.raises(CacheRefused):
        store.open_blob(ENTRY.digest)
    shared.unlink()
    shared.parent.rmdir()
    shared.parent.symlink_to(cache.outside)
    with open_repo(cache.dir, REPO) as store, pytest.raises(CacheRefused):
        store.open_blob(ENTRY.digest)


def test_a_shared_blob_that_is_gone_is_missing(cache: Cache) -> None:
    _share(cache).unlink()
    with open_repo(cache.dir, REPO) as store:
        assert store.open_blob(ENTRY.digest) is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_blob_that_is_no_file_is_refused_at_once(cache: Cache, kind: str) -> None:
    path = cache.repo / "blobs" / ENTRY.digest.hex
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    seen: list[BaseException] = []

    def look() -> None:
        with open_repo(cache.dir, REPO) as store:
            try:
                store.open_blob(ENTRY.digest)
            except CacheRefused as error:
                seen.append(error)

    looking = threading.Thread(target=look, daemon=True)  # a pipe without a writer would be waited for
    looking.start()
    looking.join(5)
    assert not looking.is_alive()
    assert seen


def test_what_stands_where_a_link_belongs_is_kept_aside(cache: Cache) -> None:
    where = cache.repo / "snapshots" / COMMIT.hex / str(ENTRY.path)
    where.parent.mkdir(parents=True)
    where.write_bytes(b"notes of the user")
    cache.publish()
    assert where.read_bytes() == DATA
    assert [p.read_bytes() for p in (cache.dir.parent / "q").iterdir()] == [b"notes of the user"]


def test_a_stale_link_is_replaced_and_its_target_kept(cache: Cache) -> None:
    where = cache.repo / "snapshots" / COMMIT.hex / str(ENTRY.path)
    where.parent.mkdir(parents=True)
    where.symlink_to(cache.outside / "precious")
    cache.publish()
    assert where.read_bytes() == DATA
    cache.check()
