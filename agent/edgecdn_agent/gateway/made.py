"""A hub's JSON, made from what is known here: pages, listings, refs. Pure.

Folders have git's own ids: a listing has all they are made of (but whether a file is executable or a
link; then a folder's id differs from the hub's, which no client compares).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgecdn.digest import DigestKind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, RepoType
from edgecdn.repopath import RepoPath

__all__ = ["made_info", "made_paths_info", "made_refs", "made_tree"]

_Item = dict[str, Any]
_Parts = tuple[str, ...]


def made_info(manifest: Manifest, *, blobs: bool) -> _Item:
    """A repo's page."""
    repo = manifest.repo
    found: _Item = {
        "_id": manifest.commit.hex[:24],
        "id": repo.name,
        "author": repo.name.partition("/")[0] if "/" in repo.name else None,
        "sha": manifest.commit.hex,
        "private": False,
        "gated": False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [_sibling(entry, blobs=blobs) for entry in manifest.files],
    }
    return found | ({"modelId": repo.name} if repo.type is RepoType.MODEL else {})


def made_tree(manifest: Manifest, folder: RepoPath | None, *, recursive: bool) -> list[_Item] | None:
    """A listing, sorted by path; None when there is no such folder."""
    folders = _folders(manifest)
    base = folder.parts if folder is not None else ()
    if base and base not in folders:
        return None

    def is_in(parts: _Parts) -> bool:
        below = parts[: len(base)] == base and len(parts) > len(base)
        return below and (recursive or len(parts) == len(base) + 1)

    items = [_folder(parts, oid) for parts, oid in folders.items() if parts and is_in(parts)]
    items += [_file(entry) for entry in manifest.files if is_in(entry.path.parts)]
    return sorted(items, key=lambda item: str(item["path"]))


def made_paths_info(manifest: Manifest, paths: Sequence[str]) -> list[_Item]:
    """What is known of some paths; unknown ones are left out."""
    folders: Mapping[_Parts, str] | None = None
    found: list[_Item] = []
    for path in dict.fromkeys(text.strip("/") for text in paths):
        entry = manifest.by_path.get(path)
        if entry is not None:
            found.append(_file(entry))
            continue
        folders = folders if folders is not None else _folders(manifest)
        parts = tuple(path.split("/"))
        if path and parts in folders:
            found.append(_folder(parts, folders[parts]))
    return found


def made_refs(refs: Mapping[str, CommitId], *, pull_requests: bool) -> _Item:
    """Branches, and pull requests if they are asked for. A cache does not tell a tag from a branch."""
    pulls = [name for name in refs if name.startswith("refs/pr/")]
    found: _Item = {
        "branches": [_ref(name, f"refs/heads/{name}", refs[name]) for name in refs if not name.startswith("refs/")],
        "converts": [],
        "tags": [],
    }
    if pull_requests:
        found["pullRequests"] = [_ref(name.removeprefix("refs/pr/"), name, refs[name]) for name in pulls]
    return found


def _ref(name: str, ref: str, commit: CommitId) -> _Item:
    return {"name": name, "ref": ref, "targetCommit": commit.hex}


def _sibling(entry: FileEntry, *, blobs: bool) -> _Item:
    found: _Item = {"rfilename": str(entry.path)}
    if blobs:
        found |= {"size": entry.size, "blobId": entry.git_oid.hex}
        if entry.digest.kind is DigestKind.SHA256:
            found["lfs"] = {"sha256": entry.digest.hex, "size": entry.size, "pointerSize": _pointer_size(entry)}
    return found


def _file(entry: FileEntry) -> _Item:
    found: _Item = {"type": "file", "oid": entry.git_oid.hex, "size": entry.size, "path": str(entry.path)}
    if entry.digest.kind is DigestKind.SHA256:
        found["lfs"] = {"oid": entry.digest.hex, "size": entry.size, "pointerSize": _pointer_size(entry)}
    return found


def _folder(parts: _Parts, oid: str) -> _Item:
    return {"type": "directory", "oid": oid, "size": 0, "path": "/".join(parts)}


def _pointer_size(entry: FileEntry) -> int:
    """Length of the LFS pointer text (git-lfs spec v1)."""
    return len(f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.digest.hex}\nsize {entry.size}\n")


def _folders(manifest: Manifest) -> dict[_Parts, str]:
    """Every folder and its git id, the top among them."""
    inside: dict[_Parts, dict[str, tuple[bytes, bytes]]] = {(): {}}
    for entry in manifest.files:
        parts = entry.path.parts
        for depth in range(len(parts)):
            inside.setdefault(parts[:depth], {})
        inside[parts[:-1]][parts[-1]] = b"100644", bytes.fromhex(entry.git_oid.hex)
    made: dict[_Parts, str] = {}
    for parts in sorted(inside, key=len, reverse=True):
        made[parts] = _git_tree(inside[parts])
        if parts:
            inside[parts[:-1]][parts[-1]] = b"40000", bytes.fromhex(made[parts])
    return made


def _git_tree(members: Mapping[str, tuple[bytes, bytes]]) -> str:
    body = b"".join(_git_lines(members))
    return hashlib.sha1(b"tree %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


def _git_lines(members: Mapping[str, tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Git sorts a folder as if its name ended with a slash."""
    named = {
        name.encode() + (b"/" if mode == b"40000" else b""): (name, mode, oid) for name, (mode, oid) in members.items()
    }
    for key in sorted(named):
        name, mode, oid = named[key]
        yield mode + b" " + name.encode() + b"\0" + oid
