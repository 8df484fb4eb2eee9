"""One file between its carrier and the sources: what is cancelled, what is disputed, and who is to blame meanwhile."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from edgecdn.cache.partial import PartialFile
from edgecdn.cache.safedir import SafeDir
from edgecdn.errors import Unreachable
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry
from edgecdn.piecetree import PieceTree
from edgecdn.plan.state import Blob
from edgecdn.transfer.arrivals import Arrivals
from edgecdn.transfer.carrier import Cargo, Giver, Line
from edgecdn.transfer.carrying import Carriages
from edgecdn.transfer.court import Court
from edgecdn.transfer.incoming import Incoming, WorkThreads
from edgecdn.transfer.patience import Patience
from tests.unit.made import MIB, REPO, add, lfs_file, manifest_of, new_board

DATA = os.urandom(2 * MIB)
ENTRY = lfs_file("m.bin", DATA)
LAB = Giver("peer one", Kind.LAN)


class _Carrier:
    """Brings all, and then does not end until it is let go."""

    name, kind = "peers", Kind.LAN

    def __init__(self) -> None:
        self.cargos: list[Cargo] = []
        self.brought, self.let_go = asyncio.Event(), asyncio.Event()
        self.finds = True
        self.at_once = self.most_at_once = 0

    def takes(self, _entry: FileEntry) -> bool:
        return True

    async def carry(self, cargo: Cargo) -> bool:
        self.cargos.append(cargo)
        await self._bring(cargo)
        return True

    async def _bring(self, cargo: Cargo) -> None:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        here = {span.start // MIB for span in cargo.have()}
        for unit in {0, 1} - here:
            await cargo.put(unit * MIB, DATA[unit * MIB : (unit + 1) * MIB], LAB)
        self.brought.set()
        await self.let_go.wait()
        self.at_once -= 1

    async def called_for(self, _cargo: Cargo) -> None:
        await asyncio.Event().wait()

    async def disputed(self, cargo: Cargo) -> bool:
        await self._bring(cargo)
        return self.finds

    def built(self, entry: FileEntry, tree: PieceTree) -> None:
        """Not in these tests."""

    def left(self, _cargo: Cargo) -> None:
        """Its job has ended."""


@dataclass
class _Made:
    carrier: _Carrier
    carriages: Carriages
    incoming: Incoming
    blob: Blob
    received: Counter[str]

    async def carry(self) -> None:
        await self.carriages.carry(manifest_of(ENTRY), self.blob, self.incoming)


@asynccontextmanager
async def _made(folder: Path) -> AsyncIterator[_Made]:
    threads, board, carrier = WorkThreads.start(), new_board(hub=(Kind.ORIGIN, 4)), _Carrier()
    received: Counter[str] = Counter()

    def on_received(giver: Giver, count: int) -> None:
        received[giver.name] += count

    carriages = Carriages(
        carrier, board, lambda _: cast("Line", None), lambda _: True, on_received, lambda _: None, lambda _: None,
        lambda: None,
    )  # fmt: skip
    blobs, state = (SafeDir.at(folder / name, create=True) for name in ("blobs", "state"))
    part = PartialFile(blobs, state, ENTRY.digest, ENTRY.size)
    with Arrivals().bring(REPO, ENTRY) as arrival:
        incoming = Incoming(ENTRY, part, threads, arrival)
        yield _Made(carrier, carriages, incoming, board.add_blob(ENTRY, (), ["hub"]), received)
    threads.stop()
    part.close()


async def test_what_is_being_written_when_a_carrier_is_stopped_is_counted_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the sources bring it again, while the thread still writes."""
    writes, slow = PartialFile.write, threading.Event()
    began = threading.Event()

    def write(part: PartialFile, start: int, pieces: list[bytes]) -> None:
        began.set()
        slow.wait(10)
        writes(part, start, pieces)

    monkeypatch.setattr(PartialFile, "write", write)
    async with _made(tmp_path) as made:
        running = asyncio.create_task(made.carry())
        await asyncio.to_thread(began.wait, 10)
        running.cancel()
        await asyncio.sleep(0.05)
        assert not running.done(), "it still touches the file"
        slow.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (made.incoming.part.prefix(), sum(made.received.values())) == (MIB, MIB)


async def test_a_dispute_begins_when_the_carrying_has_ended(tmp_path: Path) -> None:
    """Else what it replaces would be asked of the sources, too."""
    async with _made(tmp_path) as made:
        carrying = asyncio.create_task(made.carry())
        await made.carrier.brought.wait()
        assert made.carriages.is_busy
        disputing = asyncio.create_task(made.carriages.looked_at_again(made.incoming))
        await asyncio.sleep(0.05)
        assert made.carrier.most_at_once == 1
        made.carrier.let_go.set()
        assert await disputing
        assert made.carrier.most_at_once == 1
        assert not made.carriages.is_busy
        made.carrier.finds = False
        assert not await made.carriages.looked_at_again(made.incoming)
        made.carrier.finds = True
        assert not await made.carriages.looked_at_again(made.incoming), "others find out, once and for all"
        carrying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await carrying


def test_sources_that_all_fail_end_nothing_that_a_carrier_brings() -> None:
    board = new_board(hub=(Kind.ORIGIN, 4))
    add(board, "a", 4 * MIB)
    court = Court(board, {}, lambda _: None)
    patience = Patience(board, court, lambda _: None, 60.0, 0.0)
    board.sources["hub"].failures = 9
    patience.check(10.0, idle=True, carried=True)
    with pytest.raises(Unreachable):
        patience.check(10.0, idle=True)
    with pytest.raises(Unreachable):
        patience.check(61.0, idle=True, carried=True)
