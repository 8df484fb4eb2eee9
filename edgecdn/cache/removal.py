"""Removing what edgecdn brought: ref - links - blobs - tree, so that no crash leaves a half snapshot taken for whole.

What another tool or the user placed stays, with its links, ref and tree. The plan is made by a pure
function from what `read_links` saw; `remove` acts on it, under the repo's job lock.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.scan import BlobOnDisk
from edgecdn.cache.store import RepoStore
from edgecdn.crash import crash_point
from edgecdn.digest import Digest
from edgecdn.errors import BadInput
from edgecdn.names import CommitId

__all__ = ["Link", "Removal", "brought_blobs", "plan_removal", "read_links", "remove", "remove_blobs"]


@dataclass(frozen=True, slots=True)
class Link:
    """An entry of a snapshot. `named`: the digest its target names; `own`: whether it is a link as clients make them.

    A file that is no link has neither.
    """

    folder: str
    path: PurePosixPath
    named: Digest | None
    own: bool


@dataclass(frozen=True, slots=True)
class Removal:
    """What will be removed, and what of the asked-for is kept because others placed it."""

    commits: tuple[CommitId, ...]
    emptied: tuple[CommitId, ...]
    """Those of which nothing remains: their refs and trees go too."""
    links: tuple[Link, ...]
    blobs: tuple[BlobOnDisk, ...]
    kept: tuple[BlobOnDisk, ...]
    kept_files: int

    @property
    def size(self) -> int:
        """Bytes freed."""
        return sum(blob.size for blob in self.blobs)


def brought_blobs(catalog: Catalog, blobs: Iterable[BlobOnDisk]) -> frozenset[Digest]:
    """Which blobs edgecdn put there itself, and nobody replaced since."""
    return frozenset(blob.digest for blob in blobs if _was_brought(catalog, blob.path))


def read_links(store: RepoStore) -> list[Link]:
    """Every entry of every snapshot, folders with odd names included. Follows no link."""
    base = store.path / "snapshots"
    found: list[Link] = []
    for folder, subfolders, files in os.walk(base):
        linked = [name for name in subfolders if (Path(folder) / name).is_symlink()]
        found += [_link(Path(folder) / name, base) for name in (*files, *linked)]
    return [link for link in found if len(link.path.parts)]


def plan_removal(
    commits: Sequence[CommitId],
    links: Sequence[Link],
    blobs: Sequence[BlobOnDisk],
    brought: AbstractSet[Digest],
    listed: AbstractSet[Digest] | None = None,
) -> Removal:
    """What goes with `commits`: their links to brought blobs (or to none), then brought blobs that nothing links.

    `listed` limits those blobs to what the commits' listings name (None: all of the repo).
    """
    here = {blob.digest for blob in blobs}
    targets = {commit.hex for commit in commits}
    inside = [link for link in links if link.folder in targets]
    going: list[Link] = []
    staying: list[Link] = []
    for link in inside:
        goes = link.own and (link.named in brought or link.named not in here)
        (going if goes else staying).append(link)
    protected = {link.named for link in links if link.folder not in targets} | {link.named for link in staying}
    candidates = brought if listed is None else brought & (listed | {link.named for link in going})
    taken = tuple(b for b in blobs if b.digest in candidates and b.digest not in protected)
    gone = {b.digest for b in taken}
    asked = here if listed is None else {link.named for link in staying}
    inhabited = {link.folder for link in staying}
    return Removal(
        commits=tuple(commits),
        emptied=tuple(c for c in commits if c.hex not in inhabited),
        links=tuple(going),
        blobs=taken,
        kept=tuple(b for b in blobs if b.digest in asked and b.digest not in gone),
        kept_files=len(staying),
    )


def remove(store: RepoStore, catalog: Catalog, plan: Removal) -> None:
    """Do it; the caller holds the repo's job lock. Can be run again after a crash at any point."""
    emptied = set(plan.emptied)
    for name in [name for name, commit in store.refs().items() if commit in emptied]:
        _unlink(store.folder, PurePosixPath("refs", name))
    for link in plan.links:
        _unlink(store.folder, PurePosixPath("snapshots", link.folder) / link.path)
    _sync(store, *{"refs", *(f"snapshots/{link.folder}" for link in plan.links)})
    crash_point("rm.1")
    remove_blobs(store, catalog, plan.blobs)
    for commit in plan.emptied:
        _unlink(store.folder, PurePosixPath("trees", f"{commit.hex}.json"))
        _remove_markers(store, commit)
    _remove_empty_folders(store)


def remove_blobs(store: RepoStore, catalog: Catalog, blobs: Iterable[BlobOnDisk]) -> None:
    """Delete blobs that nothing links; each is looked at once more, and stays when it is not the one brought."""
    for blob in blobs:
        with store.blobs() as folder:
            seen = folder.lstat(blob.digest.hex)
            if seen is not None and stat.S_ISREG(seen.st_mode) and catalog.was_brought(blob.path, seen):
                folder.unlink(blob.digest.hex)
                catalog.forget(blob.path)


def _was_brought(catalog: Catalog, path: Path) -> bool:
    try:
        seen = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(seen.st_mode) and catalog.was_brought(path, seen)


def _link(path: Path, base: Path) -> Link:
    folder, *parts = path.relative_to(base).parts
    inside = PurePosixPath(*parts)
    try:
        target = path.readlink()
        digest = Digest.parse(target.name)
    except (OSError, BadInput):
        return Link(folder, inside, None, own=False)
    expected = "../" * (len(parts) + 1) + f"blobs/{digest.hex}"
    return Link(folder, inside, digest, own=str(target) == expected)


def _unlink(base: SafeDir, path: PurePosixPath) -> None:
    try:
        with base.sub(*path.parent.parts) as folder:
            folder.unlink(path.name)
    except FileNotFoundError:
        return


def _sync(store: RepoStore, *folders: str) -> None:
    for folder in folders:
        try:
            with store.folder.sub(*folder.split("/")) as opened:
                opened.sync()
        except FileNotFoundError:
            continue


def _remove_markers(store: RepoStore, commit: CommitId) -> None:
    """The empty files in which clients note what a commit does not have: pointless once it is gone."""
    base = store.path / ".no_exist" / commit.hex
    for path in sorted(base.rglob("*")) if not base.is_symlink() else ():
        seen = path.lstat()
        if stat.S_ISREG(seen.st_mode) and seen.st_size == 0:
            _unlink(store.folder, PurePosixPath(path.relative_to(store.path)))


def _remove_empty_folders(store: RepoStore) -> None:
    """`snapshots` stays as long as anything else does: clients take a repo without it for broken."""
    for name in ("refs", ".no_exist", "trees", "blobs", "snapshots"):
        _prune(store.folder, name, keep=name == "snapshots")
    if store.folder.names() == ["snapshots"]:
        store.folder.rmdir("snapshots")
    if not store.folder.names():
        with SafeDir.at(store.cache_dir) as root:
            root.rmdir(store.repo.folder)


def _prune(parent: SafeDir, name: str, *, keep: bool = False) -> None:
    seen = parent.lstat(name)
    if seen is None or not stat.S_ISDIR(seen.st_mode):
        return
    with parent.sub(name) as folder:
        for below in folder.names():
            _prune(folder, below)
    if not keep:
        parent.rmdir(name)
