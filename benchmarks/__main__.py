"""`make bench [ONLY=name]`: every figure the project promises for fetching, side by side with `hf download`.

Files lie in memory (/dev/shm) where the network is measured, so that the disk of a shared machine
does not decide; `disk` measures with the disk, until the data is durable for both.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import bare_swarm, gateway, gateway_lab, gateway_tools, lab, lab_ingest
from benchmarks.runs import Run, edgecdn, hf_download
from tests.hub import dry_up, slow_per_connection, slow_total
from tests.hub.process import HubProcess

MIB = 1 << 20


def main() -> None:
    """Run all benchmarks, or those named on the command line, and print one line each."""
    wanted = sys.argv[1:] or list(BENCHMARKS)
    base = Path(tempfile.mkdtemp(prefix="edgecdn-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        for name in wanted:
            print(f"{name:24} {BENCHMARKS[name](base)}", flush=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def unshaped(base: Path) -> str:
    """2 GiB in 3 files, loopback as fast as it goes."""
    with HubProcess("--generate", "org/big=3x683MiB", "--scratch", str(base / "made")) as hub:
        ours, theirs = _alternate(
            3, lambda: edgecdn(base / "e", hub, repo="org/big"), lambda: hf_download(base / "h", hub, repo="org/big")
        )
    return _ratio(ours, theirs, "2 GiB in 3 files", "<= 1.0")


def disk(base: Path) -> str:
    """The same 1 GiB on the disk, until it is durable: edgecdn syncs by itself, `hf download` is followed by `sync`."""
    folder = Path(tempfile.mkdtemp(prefix="edgecdn-bench-disk-", dir=Path.home()))
    try:
        with HubProcess("--generate", "org/big=2x512MiB", "--scratch", str(base / "made2")) as hub:
            ours, theirs = _alternate(
                2,
                lambda: edgecdn(folder / "e", hub, repo="org/big"),
                lambda: _synced(lambda: hf_download(folder / "h", hub, repo="org/big"), folder),
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _ratio(ours, theirs, "1 GiB on disk, durable", "report")


def capped(base: Path) -> str:
    """A hub that gives each connection 5 MB/s."""
    with HubProcess("--generate", "org/cap=1x512MiB", "--scratch", str(base / "cap")) as hub:
        hub.inject(slow_per_connection(5_000_000, route="cdn"))
        ours = edgecdn(base / "e", hub, repo="org/cap")
        theirs = hf_download(base / "h", hub, repo="org/cap")
    one = _ratio([ours], [theirs], "512 MiB in 1 file", "<= 0.25")
    with HubProcess("--generate", "org/cap3=3x171MiB", "--scratch", str(base / "cap3")) as hub:
        hub.inject(slow_per_connection(5_000_000, route="cdn"))
        ours = edgecdn(base / "e", hub, repo="org/cap3")
        theirs = hf_download(base / "h", hub, repo="org/cap3")
    return f"{one}; {_ratio([ours], [theirs], '513 MiB in 3 files (hf: 3 connections)', '<= 0.25')}"


def mirrors(base: Path) -> str:
    """Two mirrors at 10 and 20 MB/s: what share of 30 MB/s is reached."""
    with _twins(base, "600MiB") as (slow, fast):
        slow.inject(slow_total(10_000_000))
        fast.inject(slow_total(20_000_000))
        run = edgecdn(base / "e", fast, slow, repo="org/twin")
    return f"{600 * MIB / run.seconds / 30e6:.3f} of the sum ({run.seconds:.1f} s)   bar >= 0.9"


def stalled(base: Path) -> str:
    """One of two sources stalls half-way for good; against the good one alone."""
    with _twins(base, "400MiB") as (good, bad):
        good.inject(slow_total(20_000_000))
        alone = edgecdn(base / "e", good, repo="org/twin")
        bad.inject(slow_total(20_000_000), dry_up(30 * MIB, route="cdn"))
        both = edgecdn(base / "e", good, bad, repo="org/twin")
    return f"{both.seconds / alone.seconds:.3f} x the good one alone ({both.seconds:.1f} / {alone.seconds:.1f} s)   bar <= 1.15"


def resume(base: Path) -> str:
    """kill -9 at half, then again: bytes the hub sent in all."""
    folder = base / "r"
    shutil.rmtree(folder, ignore_errors=True)
    with HubProcess("--generate", "org/big=1x1024MiB", "--scratch", str(base / "made1")) as hub:
        hub.inject(slow_total(200_000_000))
        settings = {
            **os.environ,
            "EDGECDN_HUB_ENDPOINTS": hub.url,
            "EDGECDN_HOME": str(folder / "home"),
            "HF_HUB_CACHE": str(folder / "hub"),
        }
        command = [sys.executable, "-m", "edgecdn", "fetch", "org/big", "--quiet"]
        process = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL)
        while hub.stats()["total"] < 512 * MIB and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        subprocess.run(command, env=settings, stdout=subprocess.DEVNULL, check=True)
        total = hub.stats()["total"]
    return f"{total / (1024 * MIB):.4f} x the model   bar <= 1.05"


def memory(base: Path) -> str:
    """Peak resident memory for one small and one large file."""
    peaks = []
    for size in (64, 4096):
        with HubProcess("--generate", f"org/m{size}=1x{size}MiB", "--scratch", str(base / "mem")) as hub:
            code = "import resource,sys;from edgecdn.cli.main import run;r=run(sys.argv[1:]);print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss);sys.exit(r)"
            folder = base / "m"
            settings = {
                **os.environ,
                "EDGECDN_HUB_ENDPOINTS": hub.url,
                "EDGECDN_HOME": str(folder / "home"),
                "HF_HUB_CACHE": str(folder / "hub"),
            }
            command = [sys.executable, "-c", code, "fetch", f"org/m{size}", "--quiet"]
            done = subprocess.run(command, env=settings, stdout=subprocess.PIPE, text=True, check=True)
            peaks.append(int(done.stdout.split()[-1]) / 1000)
            shutil.rmtree(folder)
            shutil.rmtree(base / "mem")
    return f"{peaks[0]:.0f} MB for 64 MiB, {peaks[1]:.0f} MB for 4 GiB   bar <= 200"


def startup(_base: Path) -> str:
    """Start-up: help, and importing the library, medians of 9."""
    help_s = _median([sys.executable, "-m", "edgecdn", "--help"])
    bare_s = _median([sys.executable, "-c", "pass"])
    import_s = _median([sys.executable, "-c", "import edgecdn"])
    return (
        f"--help {help_s * 1000:.0f} ms (bar 300), import edgecdn {(import_s - bare_s) * 1000:.0f} ms (bar 50), "
        f"bare python {bare_s * 1000:.0f} ms"
    )


def planning(_base: Path) -> str:
    """A data set repo of 10,000 files: listing, selection and plan, up to the first byte."""
    code = "import json,sys;from benchmarks.planning import measure;print(json.dumps(measure()))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    parts = ", ".join(f"{count} files {seconds:.2f} s" for count, seconds in result.items())
    return f"{parts}   bar 10000 <= 5 s, no quadratic step"


def _synced(run: Callable[[], Run], folder: Path) -> Run:
    done = run()
    started = time.monotonic()
    subprocess.run(["sync", "-f", str(folder)], check=True)
    return Run(done.seconds + time.monotonic() - started, done.peak_mb)


class _twins:  # noqa: N801 - reads as a function
    """Two hubs with the same repo."""

    def __init__(self, base: Path, size: str) -> None:
        arguments = ("--generate", f"org/twin=1x{size}", "--scratch", str(base / f"twin{size}"))
        self._hubs = HubProcess(*arguments), HubProcess(*arguments)

    def __enter__(self) -> tuple[HubProcess, HubProcess]:
        return self._hubs[0].__enter__(), self._hubs[1].__enter__()

    def __exit__(self, *error: object) -> None:
        for hub in self._hubs:
            hub.__exit__(None, None, None)


def _alternate(times: int, ours: Callable[[], Run], theirs: Callable[[], Run]) -> tuple[list[Run], list[Run]]:
    first, second = [], []
    for _ in range(times):
        first.append(ours())
        second.append(theirs())
    return first, second


def _ratio(ours: list[Run], theirs: list[Run], what: str, bar: str) -> str:
    mine, other = (statistics.median(run.seconds for run in runs) for runs in (ours, theirs))
    return f"{what}: {mine / other:.3f} x hf download ({mine:.1f} / {other:.1f} s)   bar {bar}"


def _median(command: list[str]) -> float:
    times = []
    for _ in range(9):
        started = time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append(time.monotonic() - started)
    return statistics.median(times)


BENCHMARKS: dict[str, Callable[[Path], str]] = {
    "unshaped": unshaped,
    "disk": disk,
    "capped": capped,
    "mirrors": mirrors,
    "stalled": stalled,
    "resume": resume,
    "memory": memory,
    "startup": startup,
    "planning": planning,
    **bare_swarm.WAYS,
    **lab.WAYS,
    **gateway.WAYS,
    **gateway_tools.WAYS,
    **gateway_lab.WAYS,
    **lab_ingest.WAYS,
}

if __name__ == "__main__":
    main()
