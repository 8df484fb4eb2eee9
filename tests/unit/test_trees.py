"""`trees/<commit>.json`: what we write the hub client reads, and what it writes we read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub._tree_cache import read_tree_cache

from edgecdn.cache.store import open_repo
from edgecdn.cache.trees import decode_tree, encode_tree
from edgecdn.errors import BadInput
from edgecdn.names import CommitId
from tests.unit.made import COMMIT, REPO, git_file, lfs_file, manifest_of

MANIFEST = manifest_of(
    lfs_file("sub/model.safetensors", b"weights"), git_file("config.json", b"{}"), git_file("ü", b"")
)


def test_the_hub_clients_own_reader_reads_it(tmp_path: Path) -> None:
    with open_repo(tmp_path, REPO, create=True) as store:
        store.write_tree(MANIFEST)
        assert store.read_tree(COMMIT) == MANIFEST
        found = read_tree_cache(str(store.path), COMMIT.hex)
    assert found is not None
    assert set(found) == {"config.json", "sub/model.safetensors", "ü"}
    for entry in MANIFEST.files:
        seen = found[str(entry.path)]
        assert (seen.size, seen.blob_id, seen.xet_hash) == (entry.size, entry.git_oid.hex, None)
        large = entry.digest != entry.git_oid
        assert (seen.lfs_sha256, seen.lfs_size) == ((entry.digest.hex, entry.size) if large else (None, None))


def test_the_xet_hash_is_left_out() -> None:
    entry = replace(lfs_file("m", b"x"), xet_hash="a" * 64)
    assert b"xet" not in encode_tree(manifest_of(entry))


def test_a_tree_the_hub_client_wrote() -> None:
    sha, oid = "a" * 64, "b" * 40
    files = {
        "m.safetensors": {"size": 134, "blob_id": oid, "lfs_sha256": sha, "lfs_size": 9, "xet_hash": "c" * 64},
        "x/y": {"size": 3, "blob_id": oid},
    }
    manifest = decode_tree(json.dumps({"format_version": 1, "files": files}).encode(), REPO, COMMIT)
    large, small = manifest.files
    assert (large.size, large.digest.hex, large.git_oid.hex, large.xet_hash) == (9, sha, oid, None)
    assert (small.size, small.digest.hex) == (3, oid)


def _tree(**changes: Any) -> bytes:
    file = {"size": 3, "blob_id": "b" * 40, **changes}
    return json.dumps({"format_version": 1, "files": {changes.pop("path", "a"): file}}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", b"null", b"[]", b"{}", b'{"format_version": 1}', b'{"files": {}}', b"[" * 100_000,
        b'{"format_version": 2, "files": {}}',
        _tree()[:-5], _tree(size=-1), _tree(size=True), _tree(size="3"), _tree(size=1 << 60), _tree(blob_id="B" * 40),
        _tree(blob_id="a" * 64), _tree(lfs_sha256="a" * 40), _tree(lfs_sha256="a" * 64, lfs_size=-1),
        _tree(path="../a"), _tree(path="/a"), _tree(path=""), _tree(path="a/../b"), _tree(path="a\0b"),
        b'{"format_version": 1, "files": {"a": {"size": 1, "blob_id": "%s"}, "a/b": {"size": 1, "blob_id": "%s"}}}'
        % (b"b" * 40, b"b" * 40),
    ],
)  # fmt: skip
def test_a_tree_that_is_none_is_refused(data: bytes, tmp_path: Path) -> None:
    """FAULTS 8 and 37: bombs, torn and empty files."""
    with pytest.raises(BadInput):
        decode_tree(data, REPO, COMMIT)
    with open_repo(tmp_path, REPO, create=True) as store:
        (store.path / "trees").mkdir()
        (store.path / "trees" / f"{COMMIT}.json").write_bytes(data)
        assert store.read_tree(COMMIT) is None
        assert store.read_tree(CommitId("d" * 40)) is None
