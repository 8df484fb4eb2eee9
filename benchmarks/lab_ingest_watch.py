"""What the line of a hub carried, seen from outside: connections for file bytes, and bytes on the wire with their headers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.hub import LabHub

__all__ = ["Seen", "watched"]

_LOOK_S = 0.05
_ESTABLISHED = "01"


@dataclass(slots=True)
class Seen:
    """At most so many connections at one moment to where large files are given: `open`, and `busy` with bytes to send."""

    open: int = 0
    busy: int = 0
    wire_bytes: int = 0


@asynccontextmanager
async def watched(hub: LabHub, url: str) -> AsyncIterator[Seen]:
    """Look 20 times a second at who is connected to `url` of the hub; `wire_bytes` is known after the block."""
    seen = Seen()
    began = _sent_bytes(hub)
    looking = asyncio.create_task(_look(hub, url, seen))
    try:
        yield seen
    finally:
        looking.cancel()
        await asyncio.wait([looking])
        seen.wire_bytes = _sent_bytes(hub) - began


async def _look(hub: LabHub, url: str, seen: Seen) -> None:
    port = f":{int(url.rpartition(':')[2]):04X}"
    while True:
        rows = [line.split() for line in _net(hub, "tcp").splitlines()[1:]]
        rows = [row for row in rows if row[1].endswith(port) and row[3] == _ESTABLISHED]
        seen.open = max(seen.open, len(rows))
        seen.busy = max(seen.busy, sum(int(row[4].partition(":")[0], 16) > 0 for row in rows))
        await asyncio.sleep(_LOOK_S)


def _sent_bytes(hub: LabHub) -> int:
    row = next(line for line in _net(hub, "dev").splitlines() if line.strip().startswith("eth0:"))
    return int(row.partition(":")[2].split()[8])


def _net(hub: LabHub, name: str) -> str:
    # The hub's process is in its machine's namespace, and so is its view of the network.
    return Path(f"/proc/{hub.pid}/net/{name}").read_text()
