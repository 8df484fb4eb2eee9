"""`--local-dir`: plain files in the user's folder, and the user's own files left alone."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub._local_folder import read_download_metadata

from edgecdn.cache import local_dir as local_dir_module
from edgecdn.cache.local_dir import place, plan_placing
from edgecdn.digest import Digest
from edgecdn.errors import BadInput, CacheRefused, Interrupted, NoSpace
from edgecdn.manifest import Manifest
from edgecdn.verify import hash_fd
from tests.unit.made import COMMIT, git_file, lfs_file, manifest_of

V1 = {"config.json": b"{}", "sub/model.safetensors": b"weights" * 1000}
V2 = {"config.json": b'{"v": 2}', "sub/model.safetensors": b"weights" * 1000}


def _manifest(files: dict[str, bytes]) -> Manifest:
    made = [lfs_file(p, d) if p.endswith(".safetensors") else git_file(p, d) for p, d in files.items()]
    return manifest_of(*made)


def _snapshot(tmp_path: Path, files: dict[str, bytes]) -> Path:
    snapshot = tmp_path / "snapshot"
    for name, data in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(data)
    return snapshot


def _place(tmp_path: Path, files: dict[str, bytes]) -> Path:
    manifest = _manifest(files)
    plan = plan_placing(tmp_path / "mine", manifest.files)
    return place(plan, _snapshot(tmp_path, files), manifest)


def _files(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".cache/")}


def test_placed_as_copies_that_the_cache_does_not_share(tmp_path: Path) -> None:
    target = _place(tmp_path, V1)
    assert target == (tmp_path / "mine").absolute()
    assert _files(target) == V1
    for name in V1:
        seen = (target / name).lstat()
        assert seen.st_nlink == 1
        assert not (target / name).is_symlink()
        assert seen.st_ino != (tmp_path / "snapshot" / name).stat().st_ino


def test_the_hub_client_takes_the_folder_for_its_own(tmp_path: Path) -> None:
    target = _place(tmp_path, V1)
    for entry in _manifest(V1).files:
        found = read_download_metadata(target, str(entry.path))
        assert found is not None
        assert (found.commit_hash, found.etag) == (COMMIT.hex, entry.digest.hex)


def test_the_same_bytes_are_not_written_again(tmp_path: Path) -> None:
    target = _place(tmp_path, V1)
    before = {name: (target / name).stat() for name in V1}
    _place(tmp_path, V1)
    assert {name: (target / name).stat().st_ino for name in V1} == {n: s.st_ino for n, s in before.items()}


def test_what_was_placed_and_not_touched_is_updated(tmp_path: Path) -> None:
    _place(tmp_path, V1)
    assert _files(_place(tmp_path, V2)) == V2


@pytest.mark.parametrize("metadata", ["kept", "gone", "garbage"])
def test_what_the_user_changed_is_not_touched(tmp_path: Path, metadata: str) -> None:
    target = _place(tmp_path, V1)
    (target / "config.json").write_bytes(b"edited by hand")
    kept = target / ".cache/huggingface/download/config.json.metadata"
    if metadata == "gone":
        kept.unlink()
    elif metadata == "garbage":
        kept.write_bytes(b"\xff\xfe")
    assert "config.json" in plan_placing(target, _manifest(V2).files).problem
    with pytest.raises(BadInput, match=r"config\.json"):
        _place(tmp_path, V2)
    assert _files(target) == {**V1, "config.json": b"edited by hand"}


def test_all_that_is_in_the_way_is_named_but_not_endlessly(tmp_path: Path) -> None:
    files = {f"f{n}.json": b"{}" for n in range(9)}
    target = tmp_path / "mine"
    target.mkdir()
    for name in files:
        (target / name).write_bytes(b"mine")
    said = plan_placing(target, _manifest(files).files).problem
    assert "f4.json and 4 more" in said
    assert plan_placing(tmp_path / "absent", _manifest(files).files).problem == ""


def test_a_file_of_the_user_with_the_right_bytes_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_bytes(b"{}")
    assert _files(_place(tmp_path, V1)) == V1


def test_a_link_of_the_user_is_not_replaced_nor_followed(tmp_path: Path) -> None:
    """FAULTS 3."""
    target, outside = tmp_path / "mine", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (outside / "precious").write_bytes(b"mine")
    (target / "config.json").symlink_to(outside / "precious")
    with pytest.raises(BadInput):
        _place(tmp_path, V1)
    (target / "config.json").unlink()
    (target / "sub").symlink_to(outside)
    with pytest.raises(CacheRefused):
        _place(tmp_path, V1)
    assert _files(outside) == {"precious": b"mine"}


def test_without_space_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 23. Where a copy does not fit, only a file system that shares blocks could take it."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100))
    monkeypatch.setattr(local_dir_module, "_clone", lambda _source, _target: False)
    with pytest.raises(NoSpace):
        _place(tmp_path, V1)
    assert not (tmp_path / "mine").exists()


def test_space_is_looked_at_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_dir_module, "_clone", lambda _source, _target: False)
    files = _manifest(V1).files
    plan = plan_placing(tmp_path / "a" / "b", files)
    assert plan.needed == sum(len(data) for data in V1.values())
    assert plan.needed_on(tmp_path.stat().st_dev) == plan.needed
    assert plan.needed_on(tmp_path.stat().st_dev + 1) == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100))
    with pytest.raises(NoSpace):
        plan_placing(tmp_path / "a" / "b", files)
    monkeypatch.setattr(local_dir_module, "_clone", lambda _source, _target: True)
    assert plan_placing(tmp_path / "a" / "b", files).problem == ""
    assert plan.needed_on(tmp_path.stat().st_dev) == 0
    assert list(tmp_path.iterdir()) == []


def test_each_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _place(tmp_path, V1)
    hashed: list[Digest] = []
    real = hash_fd

    def count(fd: int, digest: Digest, size: int, stop: threading.Event | None = None) -> bool:
        hashed.append(digest)
        return real(fd, digest, size, stop)

    monkeypatch.setattr(local_dir_module, "hash_fd", count)
    _place(tmp_path, V1)
    assert sorted(d.hex for d in hashed) == sorted(e.digest.hex for e in _manifest(V1).files)


@pytest.mark.parametrize("before", ["absent", "same", "placed"])
def test_what_the_user_writes_while_the_fetch_runs_is_not_touched(tmp_path: Path, before: str) -> None:
    target = tmp_path / "mine"
    if before != "absent":
        _place(tmp_path, V1)
    files = V2 if before == "placed" else V1
    manifest = _manifest(files)
    plan = plan_placing(target, manifest.files)
    assert plan.problem == ""
    target.mkdir(exist_ok=True)
    (target / "config.json").write_bytes(b"edited by hand")
    with pytest.raises(BadInput, match=r"config\.json"):
        place(plan, _snapshot(tmp_path, files), manifest)
    assert (target / "config.json").read_bytes() == b"edited by hand"


def test_it_stops_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_dir_module, "_clone", lambda _source, _target: False)
    stop = threading.Event()
    manifest = _manifest(V1)
    plan = plan_placing(tmp_path / "mine", manifest.files, stop)
    stop.set()
    with pytest.raises(Interrupted):
        place(plan, _snapshot(tmp_path, V1), manifest, stop)
    assert _files(tmp_path / "mine") == {}
    _place(tmp_path, V1)
    with pytest.raises(Interrupted):
        plan_placing(tmp_path / "mine", manifest.files, stop)


def test_names_as_long_as_a_file_system_takes(tmp_path: Path) -> None:
    """85 Chinese characters are 255 bytes."""
    names = ["\u6a21" * 85, "\u6a21" * 84 + "\u578b", "a" + "\u6a21" * 84]
    old = {name: b"old" + os.fsencode(name) for name in names}
    new = {name: b"new" + os.fsencode(name) for name in names}
    assert _files(_place(tmp_path, old)) == old
    assert _files(_place(tmp_path, new)) == new  # each has its own metadata
