"""Files, manifests and boards that tests are made of."""

from __future__ import annotations

import hashlib
from random import Random

from edgecdn.digest import Digest, DigestKind, lfs_pointer_oid
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, RepoId, RepoType
from edgecdn.plan.board import Board
from edgecdn.plan.state import Blob, Lease
from edgecdn.repopath import RepoPath
from edgecdn.spans import UNIT_BYTES, Span

MIB = UNIT_BYTES
COMMIT = CommitId("c" * 40)
REPO = RepoId(RepoType.MODEL, "org/name")


def lfs_file(path: str, data: bytes) -> FileEntry:
    """A large file, named by its SHA-256."""
    digest = Digest.of(DigestKind.SHA256, data)
    return FileEntry(RepoPath.parse(path), len(data), digest, lfs_pointer_oid(digest, len(data)))


def git_file(path: str, data: bytes) -> FileEntry:
    """A small file, named by its git id."""
    digest = Digest.of(DigestKind.GIT_SHA1, data)
    return FileEntry(RepoPath.parse(path), len(data), digest, digest)


def sized(path: str, size: int) -> FileEntry:
    """A file of which only the size matters; each path has its own digest."""
    digest = Digest(DigestKind.SHA256, hashlib.sha256(path.encode()).hexdigest())
    return FileEntry(RepoPath.parse(path), size, digest, lfs_pointer_oid(digest, size))


def manifest_of(*files: FileEntry, repo: RepoId = REPO) -> Manifest:
    """A commit with these files."""
    return Manifest.of(repo, COMMIT, files)


def new_board(**sources: tuple[Kind, int]) -> Board:
    """A board with sources, each of a kind with so many connections at most."""
    board = Board(Random(1))
    for name, (kind, connections) in sources.items():
        board.add_source(name, kind, connections)
    return board


def add(board: Board, path: str, size: int, *names: str) -> Blob:
    """A file of which all is missing, offered by these sources (none named: by all)."""
    return board.add_blob(sized(path, size), [Span(0, size)], names or tuple(board.sources))


def grant_all(board: Board, now: float) -> list[Lease]:
    """Every request the board makes at this moment, in order."""
    granted: list[Lease] = []
    while (lease := board.grant(now)) is not None:
        granted.append(lease)
    return granted


def finish(board: Board, lease: Lease, now: float) -> None:
    """Have a request bring all that is left of it, and end."""
    board.received(lease, lease.remaining, now)
    board.end(lease, lease.stop)
