"""A bare libtorrent swarm on a lab network, timed from the word go to the last taker's flushed data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lab_peer import PIECE_BYTES, make_torrent
from tests.lab.network import Node

__all__ = ["Swarm", "swarm_seconds"]

_PORT = 6881
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Swarm:
    """How the peers are set."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Of every peer."""
    holder: dict[str, Any] = field(default_factory=dict)
    """Of the holder, over `settings`."""
    flags: dict[str, bool] = field(default_factory=dict)
    """super_seeding, sequential, no_upload_mode; striped: each taker prefers its share of the pieces."""
    piece_bytes: int = PIECE_BYTES


def swarm_seconds(
    folder: Path, data: Path, holder: Node, takers: Sequence[Node], swarm: Swarm
) -> tuple[list[float], list[str]]:
    """Each taker's seconds, and what each peer said it sent; the holder's is first."""
    folder.mkdir(parents=True)
    torrent = folder / "file.torrent"
    torrent.write_bytes(make_torrent(data, swarm.piece_bytes))
    asked: dict[str, Any] = {"torrent": str(torrent), "port": _PORT, **swarm.flags}
    whole = {
        **asked,
        "holds": True,
        "peers": [],
        "folder": str(data.parent),
        "settings": {**swarm.settings, **swarm.holder},
    }
    peers = [(holder, whole)]
    for number, node in enumerate(takers):
        earlier = [holder.address, *(taker.address for taker in takers[:number])]
        part = {
            **asked,
            "holds": False,
            "number": [number, len(takers)],
            "peers": earlier,
            "folder": str(folder / node.name),
            "settings": swarm.settings,
        }
        peers.append((node, part))
    try:
        with _started(peers) as processes:
            return _timed(processes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _started(peers: list[tuple[Node, dict[str, Any]]]) -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    try:
        for node, asked in peers:
            command = [sys.executable, "-m", "benchmarks.lab_peer", json.dumps({**asked, "address": node.address})]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            processes.append(subprocess.Popen(node.space.command(*command), cwd=_ROOT, **pipes))  # type: ignore[call-overload]
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def _timed(processes: list[subprocess.Popen[str]]) -> tuple[list[float], list[str]]:
    for process in processes:
        _expect(process, "ready")
    started = time.monotonic()
    for process in processes:
        _say(process, "go\n")
    seconds = [float(_expect(process, "done").split()[2]) for process in processes[1:]]
    elapsed = time.monotonic() - started
    assert elapsed >= max(seconds) - 1, "the clocks disagree"
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    return seconds, [_expect(process, "sent") for process in processes]


def _say(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


def _expect(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith(word):
        raise RuntimeError(f"a peer ended before it was {word}: {line!r}; its stderr says why")
    return line.strip()
