"""`trees/<commit>.json`: a commit's whole listing, as huggingface_hub keeps it (format 1).

It lets clients know offline whether a snapshot is complete. `xet_hash` is left out on purpose: a
client that finds one goes to the Xet storage and around us (docs/protocol.md).
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import BadInput
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, RepoId
from edgecdn.repopath import RepoPath

__all__ = ["decode_tree", "encode_tree"]

_FORMAT = 1


class _File(msgspec.Struct):
    size: int
    blob_id: str
    lfs_sha256: str | None = None
    lfs_size: int | None = None


class _Tree(msgspec.Struct):
    format_version: int
    files: dict[str, _File]


def encode_tree(manifest: Manifest) -> bytes:
    """The file's content for a manifest."""
    files: dict[str, dict[str, Any]] = {}
    for entry in manifest.files:
        item: dict[str, Any] = {"size": entry.size, "blob_id": entry.git_oid.hex}
        if entry.digest.kind is DigestKind.SHA256:
            item |= {"lfs_sha256": entry.digest.hex, "lfs_size": entry.size}
        files[str(entry.path)] = item
    return msgspec.json.format(msgspec.json.encode({"format_version": _FORMAT, "files": files}), indent=1)


def decode_tree(data: bytes, repo: RepoId, commit: CommitId) -> Manifest:
    """The manifest a file holds, whoever wrote it; raises BadInput when it is not one."""
    try:
        tree = msgspec.json.decode(data, type=_Tree)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadInput(f"the tree of {commit.hex[:12]} is not readable: {error}") from error
    if tree.format_version != _FORMAT:
        raise BadInput(f"the tree of {commit.hex[:12]} has the unknown format {tree.format_version}")
    return Manifest.of(repo, commit, (_entry(path, file) for path, file in tree.files.items()))


def _entry(path: str, file: _File) -> FileEntry:
    oid = Digest(DigestKind.GIT_SHA1, file.blob_id)
    if file.lfs_sha256 is None:
        return FileEntry(RepoPath.parse(path), file.size, oid, oid)
    size = file.size if file.lfs_size is None else file.lfs_size
    return FileEntry(RepoPath.parse(path), size, Digest(DigestKind.SHA256, file.lfs_sha256), oid)
