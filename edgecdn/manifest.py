"""Manifest: one commit's complete list of files, each with size and digest. Pure; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import BadInput
from edgecdn.names import CommitId, RepoId
from edgecdn.repopath import RepoPath

__all__ = ["MAX_FILES", "MAX_FILE_BYTES", "FileEntry", "Manifest"]

MAX_FILES = 500_000
"""Most files accepted in one commit: five times the hub's own advice, some 500 MB of memory at worst."""

MAX_FILE_BYTES = 1 << 44
"""Largest size believed, bytes (16 TiB, the largest file ext4 can hold)."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a commit: where it is, how long (bytes), what its bytes are.

    `git_oid` is the id of its git object: the digest itself for plain files, the id of the
    pointer text for LFS files. `xet_hash` is the hub's chunk-store address, when it gave one.
    """

    path: RepoPath
    size: int
    digest: Digest
    git_oid: Digest
    xet_hash: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_FILE_BYTES:
            raise BadInput(f"{self.path} has the impossible size {self.size}")
        if self.git_oid.kind is not DigestKind.GIT_SHA1:
            raise BadInput(f"{self.path} has no git id")


@dataclass(frozen=True)
class Manifest:
    """A commit of a repo and all its files, sorted by path."""

    repo: RepoId
    commit: CommitId
    files: tuple[FileEntry, ...]

    @classmethod
    def of(cls, repo: RepoId, commit: CommitId, files: Iterable[FileEntry]) -> Manifest:
        """Build and check: no more than MAX_FILES, no path twice, no file that is also a folder.

        Raises BadInput with the offending path.
        """
        entries: list[FileEntry] = []
        for entry in files:
            entries.append(entry)
            if len(entries) > MAX_FILES:
                raise BadInput(f"it has more than {MAX_FILES} files")
        entries.sort(key=lambda entry: entry.path)
        folders = {entry.path.parts[:depth] for entry in entries for depth in range(1, len(entry.path.parts))}
        previous: FileEntry | None = None
        for entry in entries:
            if previous is not None and previous.path == entry.path:
                raise BadInput(f"it lists {entry.path} twice")
            if entry.path.parts in folders:
                raise BadInput(f"{entry.path} is listed both as a file and as a folder")
            previous = entry
        return cls(repo, commit, tuple(entries))

    @cached_property
    def by_path(self) -> Mapping[str, FileEntry]:
        """Entries by path text."""
        return {str(entry.path): entry for entry in self.files}

    @property
    def size(self) -> int:
        """Sum of all files, bytes."""
        return sum(entry.size for entry in self.files)
