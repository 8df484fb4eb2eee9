"""A machine with a cache and a home, for tests of what it holds."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from edgecdn.cache.catalog import Catalog
from edgecdn.digest import Digest, DigestKind
from edgecdn.names import RepoId, RepoType
from edgecdn.piecetree import PieceTree, TreeBuilder
from edgecdn.settings import load_settings
from edgecdn_agent.holdings.shelf import Holdings

PUBLIC = RepoId(RepoType.MODEL, "org/public")
SECRET = RepoId(RepoType.MODEL, "org/secret")
DATA = bytes(range(256)) * 2500  # two and a half pieces
OLD_S = 100.0


def sha256(data: bytes) -> Digest:
    return Digest.of(DigestKind.SHA256, data)


def git_sha1(data: bytes) -> Digest:
    return Digest.of(DigestKind.GIT_SHA1, data)


def tree_of(data: bytes) -> PieceTree:
    builder = TreeBuilder(len(data))
    builder.update(data)
    return builder.finish()


class CacheMachine:
    """Its cache, its catalog, and what it holds; of `allowed` repos peers may have all."""

    def __init__(self, base: Path, **settings: str) -> None:
        named = {f"EDGECDN_{name.upper()}": value for name, value in settings.items()}
        self.cache = base / "cache"
        self.home = base / "home"
        self.settings = load_settings({"EDGECDN_HOME": str(self.home), "HF_HUB_CACHE": str(self.cache), **named})
        self.catalog = Catalog(self.home)
        self.allowed = {PUBLIC}
        self.holdings = self.restarted()

    def restarted(self) -> Holdings:
        """What another agent process would hold."""
        return Holdings(self.settings, self.catalog, lambda repo: repo in self.allowed)

    def path(self, repo: RepoId, digest: Digest) -> Path:
        return self.cache / repo.folder / "blobs" / digest.hex

    def put(
        self,
        data: bytes,
        repo: RepoId = PUBLIC,
        *,
        digest: Digest | None = None,
        verified: bool = True,
        brought: bool = False,
        age_s: float = OLD_S,
    ) -> Digest:
        """Put a blob file there; `verified`: the catalog knows it, `digest`: another than its own."""
        digest = digest or sha256(data)
        path = self.path(repo, digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        changed = time.time() - age_s
        os.utime(path, (changed, changed))
        if verified:
            self.catalog.set_verified(path, digest, path.stat(), brought=brought)
        return digest


def flip(path: Path, at: int) -> None:
    """Change one bit of a file, as a rotting disk does: its time stays."""
    seen = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


async def until(holdings: Holdings, condition: Callable[[], bool], limit_s: float = 20.0) -> float:
    """Wait for something about the holdings; returns how long it took."""
    changed = asyncio.Event()
    unsubscribe = holdings.subscribe(changed.set)
    started = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            while not condition():
                changed.clear()
                await changed.wait()
    finally:
        unsubscribe()
    return time.monotonic() - started
