"""A blob that is ingested, in memory and a file, for tests of what members say to each other."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import BadInput
from edgecdn.lan_wire import Asker
from edgecdn.sources.peer import peer_session
from edgecdn_agent.ingest.link import IngestClient
from edgecdn_agent.ingest.routes import IngestRoutes
from edgecdn_agent.ingest.telling import Tempo
from edgecdn_agent.ingest.wire import Have, LeaseAnswer, LeaseAsk, Told
from edgecdn_agent.ingest.world import UnitMap
from edgecdn_agent.lan.guard import Limits
from edgecdn_agent.listeners import Listeners
from tests.agent.lan_lab import Lab, serving

ME = Asker("e" * 32, 4321)
UNIT = 1 << 20


@dataclass(frozen=True)
class At:
    """Where a member is."""

    host: str
    lan_port: int


def node_of(unit: int) -> bytes:
    return unit.to_bytes(32, "big")


class SharedFile:
    """One blob in a file, of which some units are here. It notes what members say to it."""

    def __init__(self, path: Path, data: bytes, have: set[int] | None = None) -> None:
        path.write_bytes(data)
        self.path = path
        self.cut = UnitMap(len(data))
        self.have = set(range(self.cut.count)) if have is None else have
        self.heard: list[tuple[str, str, int]] = []
        self.asked: list[tuple[str, LeaseAsk]] = []
        self.back: list[tuple[str, int, int]] = []
        self.answer = LeaseAnswer(run=(0, 1))
        self.barred: set[str] = set()
        self.listeners: Listeners[Told] = Listeners()

    def first(self) -> Told:
        return Told(size=self.cut.size, preparing=False, have=[Have(u, node_of(u)) for u in sorted(self.have)])

    def subscribe(self, callback: Callable[[Told], None]) -> Callable[[], None]:
        return self.listeners.subscribe(callback)

    @property
    def listening(self) -> int:
        return len(self.listeners._callbacks)

    def add(self, *units: int) -> None:
        for unit in units:
            self.have.add(unit)
            self.listeners.tell(Told(have=[Have(unit, node_of(unit), True)]))

    def heard_from(self, member: str, host: str, port: int) -> None:
        if member in self.barred:
            raise BadInput("nothing is told to this one")
        self.heard.append((member, host, port))

    def ask(self, member: str, _host: str, ask: LeaseAsk) -> LeaseAnswer:
        self.asked.append((member, ask))
        return self.answer

    def give_back(self, member: str, _host: str, start: int, stop: int) -> None:
        self.back.append((member, start, stop))

    def open(self, unit: int) -> int | None:
        return os.open(self.path, os.O_RDONLY) if unit in self.have else None


@dataclass
class IngestLab:
    """A server that shares one blob, and a client of it."""

    lan: Lab
    routes: IngestRoutes
    book: dict[Digest, SharedFile]
    digest: Digest
    data: bytes
    link: IngestClient
    folder: Path
    place: At = field(init=False)

    def __post_init__(self) -> None:
        self.place = At(self.lan.address.host, self.lan.address.port)

    @property
    def shared(self) -> SharedFile:
        return self.book[self.digest]


@asynccontextmanager
async def ingesting(
    folder: Path,
    size: int = 3 * UNIT + 5,
    have: set[int] | None = None,
    limits: Limits | None = None,
    tempo: Tempo | None = None,
    **parts: Any,
) -> AsyncIterator[IngestLab]:
    data = os.urandom(size)
    digest = Digest.of(DigestKind.SHA256, data)
    book = {digest: SharedFile(folder / "part", data, have)}
    routes = IngestRoutes(book, tempo)
    async with serving(folder, limits, extensions=(routes,), **parts) as lan, peer_session() as session:
        yield IngestLab(lan, routes, book, digest, data, IngestClient(session, ME), folder)
