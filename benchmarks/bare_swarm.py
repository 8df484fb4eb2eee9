"""Bare libtorrent on lab networks, beside iperf3, rsync and curl: what the agents are measured against.

`python -m benchmarks.bare_swarm [one] [crowd]`. All files are in memory (/dev/shm): the machines of the
lab share one disk, which would decide otherwise.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.lab_rivals import copied_by_curl, copied_by_rsync, link_mbit, shown
from benchmarks.lab_swarm import Swarm, swarm_seconds
from tests.lab.namespaces import unavailable
from tests.lab.network import Network, Node

__all__ = ["BEST_CROWD", "BEST_ONE", "CROWD", "MIB", "WAYS", "crowd", "in_a_lab", "main", "one"]

MIB = 1 << 20
CROWD = 8

BEST_ONE = Swarm({"unchoke_slots_limit": -1, "max_allowed_in_request_queue": 64})
BEST_CROWD = Swarm(
    {"unchoke_slots_limit": -1, "max_allowed_in_request_queue": 4, "request_queue_time": 1}, piece_bytes=64 * 1024
)
"""A taker's requests wait in the holder's queue, for as many as the holder said it takes at once. With the
2000 of the default, takers ask for pieces seconds before they get them, which by then others could give. Small pieces can be passed on sooner; super-seeding and larger pieces were slower."""


def in_a_lab(way: Callable[[Path], str]) -> Callable[[Path], str]:
    """Say why where there can be no lab, instead of running."""

    @functools.wraps(way)
    def run(base: Path) -> str:
        reason = unavailable()
        return f"skipped: {reason}" if reason else way(base)

    return run


@in_a_lab
def one(base: Path) -> str:
    """1 Gbit/s, one holder, one taker, 2 GiB."""
    with Network() as network:
        holder, taker = network.node("holder", 1000), network.node("taker", 1000)
        return compared(base, 2048 * MIB, 1000, holder, [taker], BEST_ONE)


@in_a_lab
def crowd(base: Path) -> str:
    """100 Mbit/s, one holder, eight takers at once, 200 MiB."""
    with Network() as network:
        holder = network.node("holder", 100)
        takers = [network.node(f"taker{number}", 100) for number in range(1, CROWD + 1)]
        return compared(base, 200 * MIB, 100, holder, takers, BEST_CROWD)


def compared(base: Path, size: int, mbit: float, holder: Node, takers: Sequence[Node], best: Swarm) -> str:
    """One line: each way's seconds until the last taker has all."""
    data = made_file(base / "held" / "blob.bin", size)
    floor_s = size * 8 / 1e6 / mbit
    measured, by = link_mbit(holder, takers[0])
    seconds, _ = swarm_seconds(base / "swarm", data, holder, takers, best)
    share = size * 8 / 1e6 / max(seconds) / measured
    parts = [
        f"{size // MIB} MiB, {mbit:g} Mbit/s links ({by}: {measured:.0f}), {len(takers)} takers, in memory",
        shown("libtorrent", max(seconds), floor_s) + f" = {share:.3f} of {by.split()[0]}",
        shown("rsync", copied_by_rsync(data, holder, takers, base / "rsync"), floor_s),
        shown("curl + sha256sum", copied_by_curl(data, holder, takers, base / "curl"), floor_s),
    ]
    return "; ".join(parts)


def made_file(path: Path, size: int) -> Path:
    """A file of random bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    return path


def main(ways: dict[str, Callable[[Path], str]], wanted: Sequence[str]) -> None:
    """Run the named ones, or all, and print a line each."""
    base = Path(tempfile.mkdtemp(prefix="edgecdn-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        for name in wanted or list(ways):
            print(f"{name:10} {ways[name](base / name)}", flush=True)
            shutil.rmtree(base / name, ignore_errors=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)


WAYS: dict[str, Callable[[Path], str]] = {"bare-one": one, "bare-crowd": crowd}

if __name__ == "__main__":
    main(WAYS, sys.argv[1:])
