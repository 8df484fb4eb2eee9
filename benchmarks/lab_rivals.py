"""What a user would run instead, on the same cables: iperf3 for the rate, rsync and curl for the copy.

A tool that is not installed gives None, which the printed line says.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab.network import Node
from tests.lab.probes import mbit_between

__all__ = ["copied_by_curl", "copied_by_rsync", "link_mbit", "shown"]

_ROOT = Path(__file__).resolve().parents[1]
_LIMIT_S = 900.0
_READY_LIMIT_S = 10.0
_PROBE_BYTES = 256 << 20


def link_mbit(holder: Node, taker: Node) -> tuple[float, str]:
    """The rate from holder to taker, and what measured it: iperf3, or a plain socket where there is none."""
    if shutil.which("iperf3") is None:
        return mbit_between(holder, taker, _PROBE_BYTES), "a plain socket (no iperf3 here)"
    with _serving(holder, ["iperf3", "-s", "-1", "-B", holder.address], 5201):
        command = taker.space.command("iperf3", "-c", holder.address, "-R", "-t", "4", "-O", "1", "-J")
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LIMIT_S)
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e6, "iperf3"


def copied_by_rsync(data: Path, holder: Node, takers: Sequence[Node], folder: Path) -> float | None:
    """Seconds until the last taker has `data` from the holder's rsync daemon."""
    if shutil.which("rsync") is None:
        return None
    folder.mkdir(parents=True)
    config = folder / "rsyncd.conf"
    config.write_text(f"use chroot = no\nuid = 0\ngid = 0\nmax connections = 0\n[data]\npath = {data.parent}\n")
    serve = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--address={holder.address}", "--port=8730"]
    with _serving(holder, serve, 8730):
        url = f"rsync://{holder.address}:8730/data/{data.name}"
        return _all_at_once(takers, folder, lambda target: f"rsync --whole-file --inplace {url} {target}")


def copied_by_curl(data: Path, holder: Node, takers: Sequence[Node], folder: Path) -> float | None:
    """Seconds until the last taker has `data` from a plain HTTP server (sendfile) and has hashed it."""
    if shutil.which("curl") is None:
        return None
    folder.mkdir(parents=True)
    serve = [sys.executable, "-m", "benchmarks.lab_files", str(data.parent), holder.address, "8000"]
    with _serving(holder, serve, 8000):
        url = f"http://{holder.address}:8000/{data.name}"
        return _all_at_once(takers, folder, lambda target: f"curl -sf -o {target} {url} && sha256sum {target}")


def shown(name: str, seconds: float | None, floor_s: float) -> str:
    """`rsync 17.1 s (1.02 x bytes / link)`."""
    return (
        f"{name} not installed"
        if seconds is None
        else f"{name} {seconds:.2f} s ({seconds / floor_s:.3f} x bytes / link)"
    )


def _all_at_once(takers: Sequence[Node], folder: Path, command: Callable[[Path], str]) -> float:
    started = time.monotonic()
    running = [
        subprocess.Popen(node.space.command("sh", "-c", command(folder / node.name)), stdout=subprocess.DEVNULL)
        for node in takers
    ]
    try:
        codes = [process.wait(_LIMIT_S) for process in running]
        took = time.monotonic() - started
    finally:
        for process in running:
            process.kill()
        shutil.rmtree(folder)
    if any(codes):
        raise RuntimeError(f"a copy failed: exit codes {codes}")
    return took


@contextmanager
def _serving(node: Node, command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(node.space.command(*command), cwd=_ROOT, stdout=subprocess.DEVNULL)
    try:
        _until_open(node, port, process)
        yield
    finally:
        process.terminate()
        process.wait(_READY_LIMIT_S)


def _until_open(node: Node, port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_LIMIT_S
    while not node.space.enter(lambda: _listens(port)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} does not listen")
        time.sleep(0.02)


def _listens(port: int) -> bool:
    # Looked up, not connected to: a server that takes one client would take this for it.
    rows = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)
