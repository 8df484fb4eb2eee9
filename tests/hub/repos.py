"""Repositories with commits, branches and tags, kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from tests.hub.content import Content, Generated, HubFile, OnDisk, chunks_of, git_sha1

RepoType = Literal["model", "dataset", "space"]
Contents = Mapping[str, Content | HubFile | None]
"""Path to content; None removes the path from the next commit."""

COMMIT_DATE = "2024-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Commit:
    """One immutable listing."""

    id: str
    files: Mapping[str, HubFile]
    title: str = "update"
    parent: str | None = None

    @cached_property
    def folders(self) -> Mapping[str, str]:
        """Every folder with an id that changes with its content."""
        members: dict[str, list[str]] = {}
        for path, file in self.files.items():
            folder = path.rpartition("/")[0]
            while folder:
                members.setdefault(folder, []).append(path + file.oid)
                folder = folder.rpartition("/")[0]
        return {name: _sha1(sorted(entries)) for name, entries in sorted(members.items())}

    @cached_property
    def sorted_paths(self) -> tuple[str, ...]:
        """All files and folders in the order the tree lists them."""
        return tuple(sorted([*self.folders, *self.files]))


@dataclass
class HubRepo:
    """A repository; `add_commit` moves a branch as a push would."""

    id: str
    type: RepoType = "model"
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)
    gated: bool | str = False
    private: bool = False
    xet: bool = False

    @property
    def main(self) -> str:
        """Commit id of the main branch."""
        return self.branches["main"]

    def add_commit(
        self,
        files: Contents,
        *,
        branch: str = "main",
        lfs: bool | None = None,
        replace: bool = False,
        title: str = "update",
    ) -> str:
        """Put files on top of the branch (or instead of its listing) and return the commit id."""
        parent = self.branches.get(branch, self.branches.get("main"))
        listing = dict(self.commits[parent].files) if parent and not replace else {}
        for path in files:
            listing.pop(path, None)
        listing.update({entry.path: entry for entry in _entries(files, lfs)})
        return self._commit(listing, branch, parent, title)

    def _commit(self, listing: Mapping[str, HubFile], branch: str, parent: str | None, title: str) -> str:
        entries = [f"{path}\0{file.oid}\0{file.size}" for path, file in listing.items()]
        commit_id = _sha1([self.type, self.id, *sorted(entries)])
        parent = None if parent == commit_id else parent
        self.commits.setdefault(commit_id, Commit(commit_id, listing, title, parent))
        self.branches[branch] = commit_id
        return commit_id

    def resolve(self, revision: str) -> Commit | None:
        """Find the commit a branch, tag, pull request, full ref or commit id names."""
        for names in (self.branches, self.tags, self.pull_requests):
            if revision in names:
                return self.commits[names[revision]]
        for prefix, names in (("refs/heads/", self.branches), ("refs/tags/", self.tags)):
            if revision.startswith(prefix) and revision[len(prefix) :] in names:
                return self.commits[names[revision[len(prefix) :]]]
        return self.commits.get(revision)

    def history(self, commit: Commit) -> list[Commit]:
        """List the commit and its ancestors, newest first."""
        found, seen = [commit], {commit.id}
        while (parent := found[-1].parent) and parent not in seen:
            seen.add(parent)
            found.append(self.commits[parent])
        return found


def _entries(files: Contents, lfs: bool | None) -> Iterable[HubFile]:
    """Describe what is to be added, hashing files on disk in parallel."""
    with ThreadPoolExecutor() as pool:
        hashing = {
            path: pool.submit(HubFile.of, path, content, lfs=lfs)
            for path, content in files.items()
            if isinstance(content, Path | OnDisk | Generated)
        }
    for path, content in files.items():
        if isinstance(content, HubFile):
            yield content if content.path == path else replace(content, path=path)
        elif path in hashing:
            yield hashing[path].result()
        elif isinstance(content, bytes):
            yield HubFile.of(path, content, lfs=lfs)


def _sha1(parts: Iterable[str]) -> str:
    return hashlib.sha1("\n".join(parts).encode(), usedforsecurity=False).hexdigest()


def make_repo(
    repo_id: str,
    files: Contents | None = None,
    *,
    repo_type: RepoType = "model",
    lfs: bool | None = None,
    gated: bool | str = False,
    private: bool = False,
    xet: bool = False,
) -> HubRepo:
    """Build a repository with one commit on main."""
    repo = HubRepo(repo_id, repo_type, gated=gated, private=private, xet=xet)
    repo.add_commit(files or {}, lfs=lfs, title="initial commit")
    return repo


def repo_from_directory(repo_id: str, directory: Path, *, repo_type: RepoType = "model") -> HubRepo:
    """Build a repository from a folder; links are followed and nothing is copied."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {path.relative_to(directory).as_posix(): path.resolve() for path in paths}
    return make_repo(repo_id, files, repo_type=repo_type)


def many_files(count: int, content: bytes = b"x", pattern: str = "data/{:07d}.txt") -> Contents:
    """Build a listing of many equal files cheaply."""
    oid, sha256 = git_sha1(content), hashlib.sha256(content).hexdigest()
    size = len(content)
    paths = map(pattern.format, range(count))
    return {path: HubFile(path, size, content, oid, sha256, False) for path in paths}


def write_generated(files: Contents, directory: Path) -> Contents:
    """Write generated content to files once, so that it is served with sendfile."""
    directory.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        written = {path: pool.submit(_written, path, content, directory) for path, content in files.items()}
    return {path: future.result() for path, future in written.items()}


def _written(path: str, content: Content | HubFile | None, directory: Path) -> Content | HubFile | None:
    if not isinstance(content, Generated):
        return content
    target = directory / f"generated-{content.seed}-{content.size}"
    if not target.exists() or target.stat().st_size != content.size:
        partial = target.with_suffix(".partial")
        with partial.open("wb") as out:
            out.writelines(chunks_of(content))
        partial.replace(target)
    return replace(HubFile.of(path, content), source=OnDisk(target, content.size))
