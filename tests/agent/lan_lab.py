"""A LAN server on loopback over real files in a folder, and a shelf that tests can do things to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from multidict import CIMultiDict

from edgecdn.digest import Digest, DigestKind
from edgecdn.lan_wire import Hello
from edgecdn.names import RepoId, RepoType
from edgecdn.piecetree import PieceTree, TreeBuilder
from edgecdn.settings_values import Listen
from edgecdn_agent.holdings.held_files import Holding
from edgecdn_agent.lan.guard import Limits
from edgecdn_agent.lan.parts import LanParts
from edgecdn_agent.lan.server import LanServer

REPO = RepoId(RepoType.MODEL, "org/name")
AGENT = "0123456789abcdef" * 2
HELLO = Hello(1, 1, AGENT, "box", "0.1", 8378)


def tree_of(data: bytes) -> PieceTree:
    builder = TreeBuilder(len(data))
    builder.update(data)
    return builder.finish()


@dataclass
class FolderShelf:
    """Files of a folder, each named by its digest."""

    folder: Path
    held: dict[Digest, Holding] = field(default_factory=dict)
    secret: set[Digest] = field(default_factory=set)
    trees: dict[Digest, PieceTree] = field(default_factory=dict)
    withdrawn: list[Digest] = field(default_factory=list)
    rechecked: list[Digest] = field(default_factory=list)
    opener: Callable[[Holding], int] | None = None

    def add(self, data: bytes, kind: DigestKind = DigestKind.SHA256, *, secret: bool = False) -> Digest:
        digest = Digest.of(kind, data)
        path = self.folder / digest.hex
        path.write_bytes(data)
        seen = path.stat()
        self.held[digest] = Holding(digest, len(data), path, REPO, seen.st_ino, seen.st_mtime_ns)
        if kind is DigestKind.SHA256 and data:
            self.trees[digest] = tree_of(data)
        if secret:
            self.secret.add(digest)
        return digest

    def shared(self, digest: Digest) -> Holding | None:
        return None if digest in self.secret else self.held.get(digest)

    async def tree(self, digest: Digest) -> PieceTree | None:
        return self.trees.get(digest)

    def open(self, holding: Holding) -> int:
        return self.opener(holding) if self.opener else os.open(holding.path, os.O_RDONLY)

    def withdraw(self, digest: Digest) -> None:
        self.withdrawn.append(digest)
        self.held.pop(digest, None)

    async def recheck(self, digest: Digest) -> bool:
        self.rechecked.append(digest)
        return True


@dataclass
class Lab:
    """A running server and a client of it."""

    server: LanServer
    shelf: FolderShelf
    session: aiohttp.ClientSession
    address: Listen
    sent: Counter[str]

    @property
    def url(self) -> str:
        return f"http://{self.address}/edgecdn/v1"

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, bytes, CIMultiDict[str]]:
        """Status, body and headers of one answer."""
        async with self.session.request(method, f"{self.url}{path}", **more) as response:
            return response.status, await response.read(), response.headers.copy()


@asynccontextmanager
async def serving(folder: Path, limits: Limits | None = None, **parts: Any) -> AsyncIterator[Lab]:
    """Serve the files of `folder` until the end of the block."""
    shelf, sent = FolderShelf(folder), Counter[str]()

    def count(host: str, _asker: object, bytes_: int) -> None:
        sent[host] += bytes_

    given = {"shelf": shelf, "hello": lambda: HELLO, "allows": lambda _host: True, "sent": count, **parts}
    server = LanServer(LanParts(**given), limits)
    try:
        address = await server.start(Listen("127.0.0.1", 0))
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
            yield Lab(server, shelf, session, address, sent)
    finally:
        await server.close()
