"""Running the two downloaders on the same hub, and measuring them from outside."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.hub.process import HubProcess

__all__ = ["Run", "edgecdn", "hf_download", "timed"]

_LIMIT_S = 900.0


@dataclass(frozen=True)
class Run:
    """Seconds on the wall, and the largest resident memory of the process in MB."""

    seconds: float
    peak_mb: float


def edgecdn(folder: Path, *hubs: HubProcess, repo: str, environ: dict[str, str] | None = None) -> Run:
    """`edgecdn fetch` into an empty cache."""
    shutil.rmtree(folder, ignore_errors=True)
    settings = {
        "EDGECDN_HUB_ENDPOINTS": ",".join(hub.url for hub in hubs),
        "EDGECDN_HOME": str(folder / "home"),
        "HF_HUB_CACHE": str(folder / "hub"),
        **(environ or {}),
    }
    return timed([sys.executable, "-m", "edgecdn", "fetch", repo, "--quiet"], settings)


def hf_download(folder: Path, hub: HubProcess, *, repo: str) -> Run:
    """`hf download` into an empty cache, over plain HTTP like every self-made hub and mirror."""
    shutil.rmtree(folder, ignore_errors=True)
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return timed([str(Path(sys.executable).with_name("hf")), "download", repo, "--quiet"], settings)


def timed(command: list[str], settings: dict[str, str], watch: Callable[[], None] | None = None) -> Run:
    """Run a command to its end; raises CalledProcessError with what it said."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "EDGECDN_"))}
    started = time.monotonic()
    process = subprocess.Popen(
        command, env={**environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if watch is not None:
        watch()
    _, said = process.communicate(timeout=_LIMIT_S)
    seconds = time.monotonic() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=said)
    return Run(seconds, peak_mb_of_children())


def peak_mb_of_children() -> float:
    """The largest resident memory any child so far has had, MB (so: run the smallest first)."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
