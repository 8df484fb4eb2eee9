"""`--local-dir`: plain files in the user's folder, and the user's own files left alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub._local_folder import read_download_metadata

from edgecdn.cache import local_dir as local_dir_module
from edgecdn.cache.local_dir import place, placing_problems
from edgecdn.errors import BadInput, CacheRefused, NoSpace
from edgecdn.manifest import Manifest
from tests.unit.made import COMMIT, git_file, lfs_file, manifest_of

V1 = {"config.json": b"{}", "sub/model.safetensors": b"weights" * 1000}
V2 = {"config.json": b'{"v": 2}', "sub/model.safetensors": b"weights" * 1000}


def _manifest(files: dict[str, bytes]) -> Manifest:
    made = [lfs_file(p, d) if p.endswith(".safetensors") else git_file(p, d) for p, d in files.items()]
    return manifest_of(*made)


def _place(tmp_path: Path, files: dict[str, bytes]) -> Path:
    snapshot = tmp_path / "snapshot"
    for name, data in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(data)
    manifest = _manifest(files)
    return place(snapshot, tmp_path / "mine", manifest, manifest.files)


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
    assert "config.json" in placing_problems(target, _manifest(V2).files)
    with pytest.raises(BadInput, match=r"config\.json"):
        _place(tmp_path, V2)
    assert _files(target) == {**V1, "config.json": b"edited by hand"}


def test_all_that_is_in_the_way_is_named_but_not_endlessly(tmp_path: Path) -> None:
    files = {f"f{n}.json": b"{}" for n in range(9)}
    target = tmp_path / "mine"
    target.mkdir()
    for name in files:
        (target / name).write_bytes(b"mine")
    said = placing_problems(target, _manifest(files).files)
    assert "f4.json and 4 more" in said
    assert placing_problems(tmp_path / "absent", _manifest(files).files) == ""


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
    assert _files(tmp_path / "mine") == {}
