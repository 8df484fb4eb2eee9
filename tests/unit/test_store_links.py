"""Links of a snapshot, made while other clients do the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import RepoStore, open_repo
from tests.unit.made import COMMIT, REPO, lfs_file

ENTRY = lfs_file("sub/model.bin", b"data")
TARGET = f"../../../blobs/{ENTRY.digest}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RepoStore]:
    with open_repo(tmp_path / "cache", REPO, create=True) as opened:
        yield opened


@pytest.fixture
def place(store: RepoStore) -> Path:
    path = store.snapshot_path(COMMIT) / "sub" / "model.bin"
    path.parent.mkdir(parents=True)
    return path


def test_a_stale_link_is_replaced_without_a_moment_without_one(
    store: RepoStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.symlink_to("../../../blobs/stale")
    real = SafeDir.symlink

    def watched(self: SafeDir, target: str, name: str) -> None:
        assert place.is_symlink()
        real(self, target, name)

    monkeypatch.setattr(SafeDir, "symlink", watched)
    monkeypatch.setattr(SafeDir, "unlink", lambda _self, name: pytest.fail(f"{name} was removed"))
    assert store.link(COMMIT, ENTRY) is None
    assert str(place.readlink()) == TARGET
    assert store.folder.names() == ["snapshots"]


@pytest.mark.parametrize("theirs", [TARGET, "../../../blobs/other"])
def test_a_link_that_another_client_made_first_is_taken_or_replaced(
    store: RepoStore, place: Path, monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    real = os.symlink
    raced: list[int] = []

    def race(target: str, name: str, **named: int) -> None:
        if not raced:
            raced.append(1)
            place.symlink_to(theirs)
        real(target, name, **named)  # type: ignore[arg-type]

    def symlink(self: SafeDir, target: str, name: str) -> None:
        race(target, name, dir_fd=self.fd)

    monkeypatch.setattr(SafeDir, "symlink", symlink)
    assert store.link(COMMIT, ENTRY) is None
    assert str(place.readlink()) == TARGET


def test_a_file_of_the_users_with_a_long_name_is_moved_aside(store: RepoStore, tmp_path: Path) -> None:
    entry = lfs_file("\u6a21" * 85, b"data")
    path = store.snapshot_path(COMMIT) / str(entry.path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with SafeDir.at(tmp_path / "aside", create=True) as aside:
        kept = store.link(COMMIT, entry, aside)
    assert kept is not None
    assert kept.read_bytes() == b"mine"
    assert path.is_symlink()


def test_a_file_with_a_long_name_is_written_whole(store: RepoStore) -> None:
    store.folder.write_whole("\u6a21" * 85, b"data")
    assert (store.path / ("\u6a21" * 85)).read_bytes() == b"data"
