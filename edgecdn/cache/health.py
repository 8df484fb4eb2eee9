"""What is odd in a cache, for `edgecdn ls` and `edgecdn doctor`: reading only, whatever lies around."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgecdn.cache.scan import RepoOnDisk, cached_repos, scan_repo
from edgecdn.cache.store import open_repo
from edgecdn.errors import BadInput, EdgecdnError
from edgecdn.names import RepoId, Revision

__all__ = ["Oddity", "Unreadable", "oddities", "survey"]

_BELONGS = frozenset({".locks", "CACHEDIR.TAG", ".DS_Store"})
_SHARED_MARK = ".huggingface-shared-blobs"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A repo folder that could not be looked through, and why."""

    repo: RepoId
    reason: str


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something to look at.

    `kind`: foreign, linked-repo, unreadable, broken-link, lost-ref, no-tree, partial or leftover.
    """

    kind: str
    where: str
    size: int = 0


def survey(cache_dir: Path) -> list[RepoOnDisk | Unreadable]:
    """Every repo of a cache; one that is broken takes no other with it."""
    return [_look(cache_dir, repo) for repo in cached_repos(cache_dir)]


def oddities(cache_dir: Path) -> Iterator[Oddity]:
    """All that is odd, repo by repo."""
    yield from _foreign(cache_dir)
    for found in survey(cache_dir):
        if isinstance(found, Unreadable):
            linked = (cache_dir / found.repo.folder).is_symlink()
            yield Oddity("linked-repo" if linked else "unreadable", f"{found.repo}: {found.reason}")
        else:
            yield from _in_repo(cache_dir, found)


def _look(cache_dir: Path, repo: RepoId) -> RepoOnDisk | Unreadable:
    try:
        return scan_repo(cache_dir, repo)
    except EdgecdnError as error:
        return Unreadable(repo, error.message)
    except OSError as error:
        return Unreadable(repo, error.strerror or str(error))


def _foreign(cache_dir: Path) -> Iterator[Oddity]:
    try:
        entries = sorted(cache_dir.iterdir())
    except OSError:
        return
    for path in entries:
        shared = path.name == "blobs" and (path / _SHARED_MARK).is_file()
        if path.name not in _BELONGS and not shared and not _is_repo(path.name):
            yield Oddity("foreign", str(path))


def _is_repo(name: str) -> bool:
    try:
        RepoId.from_folder(name)
    except BadInput:
        return False
    return True


def _in_repo(cache_dir: Path, found: RepoOnDisk) -> Iterator[Oddity]:
    base = cache_dir / found.repo.folder
    for commit in found.commits:
        at = base / "snapshots" / commit.commit.hex
        broken = [path for path in commit.files if not (at / path).exists()]
        yield from (Oddity("broken-link", f"{found.repo}@{commit.commit.hex[:12]}/{path}") for path in broken)
        if commit.files and commit.complete is None:
            yield Oddity("no-tree", f"{found.repo}@{commit.commit.hex[:12]}")
    commits = {commit.commit for commit in found.commits}
    with open_repo(cache_dir, found.repo) as store:
        for name in _ref_names(base / "refs"):
            if name not in store.refs() or store.read_ref(Revision(name)) not in commits:
                yield Oddity("lost-ref", f"{found.repo}@{name}")
    if found.partial_bytes:
        yield Oddity("partial", str(found.repo), found.partial_bytes)
    if found.leftover_bytes:
        yield Oddity("leftover", str(found.repo), found.leftover_bytes)


def _ref_names(base: Path) -> list[str]:
    return [p.relative_to(base).as_posix() for p in sorted(base.rglob("*")) if stat.S_ISREG(p.lstat().st_mode)]
