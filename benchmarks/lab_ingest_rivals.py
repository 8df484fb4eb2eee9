"""What a lab would do instead of an ingest, on the same cables and the same line, from an empty cache.

Eight `hf download`; one of them, then rsync from each machine to the next; olah (from PyPI, in an environment of its own
that is thrown away) as a caching mirror for eight of them. A tool that cannot be had gives its reason instead of a figure.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.lab_ingest_watch import watched
from benchmarks.lab_rivals import copied_by_rsync
from tests.lab.asking import session_in
from tests.lab.hub import LabHub
from tests.lab.ingesting import MODEL, model_at
from tests.lab.machine import Machine
from tests.lab.world import World

__all__ = ["RIVALS", "Rival", "Shape"]

_LIMIT_S = 900.0
_INSTALL_LIMIT_S = 300.0
_READY_LIMIT_S = 60.0
_OLAH_PORT = 8090
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Shape:
    """A lab: machines on cables of `lan` Mbit/s, a hub behind a line of `line` Mbit/s (None: as fast as it goes)."""

    files: int
    mib: int
    machines: int = 8
    lan: float = 100
    line: float | None = 50

    @property
    def generated(self) -> str:
        """As the test hub is told of it."""
        return f"{MODEL}={self.files}x{self.mib}MiB"

    @property
    def floor_s(self) -> float:
        """The model's bytes over the line, seconds."""
        assert self.line is not None
        return self.files * self.mib * (1 << 20) * 8 / 1e6 / self.line


@dataclass(frozen=True, slots=True)
class Rival:
    """Seconds until the last machine had the model, and how often the hub sent it; or why there is nothing to say."""

    seconds: float = 0.0
    copies: float = 0.0
    connections: int = 0
    missing: str = ""


async def _hf_by_all(base: Path, shape: Shape) -> Rival:
    return await _in_a_world(base, shape, lambda world, hub: _all_by_hf(_machines(world, shape), hub.url))


async def _hf_then_rsync(base: Path, shape: Shape) -> Rival:
    if shutil.which("rsync") is None:
        return Rival(missing="rsync is not installed")

    async def act(world: World, hub: LabHub) -> float:
        machines = _machines(world, shape)
        seconds = await _all_by_hf(machines[:1], hub.url)
        found = [path for path in machines[0].blobs() if len(path.name) == 64]
        for sender, receiver in itertools.pairwise(machines):
            for blob in found:  # one disk under all of them: what a machine was given is this very file
                took = await asyncio.to_thread(
                    copied_by_rsync, blob, sender.node, [receiver.node], base / "rsync" / receiver.name / blob.name[:8]
                )
                assert took is not None
                seconds += took
        return seconds

    return await _in_a_world(base, shape, act)


async def _hf_by_olah(base: Path, shape: Shape) -> Rival:
    place = base / "olah"
    python, why = await asyncio.to_thread(_installed, place / "venv")
    if why:
        return Rival(missing=why)

    async def act(world: World, hub: LabHub) -> float:
        mirror = world.machine("mirror", shape.lan)
        here = f"{mirror.address}:{_OLAH_PORT}"
        from_hub, from_cdn = (url.removeprefix("http://") for url in (hub.url, hub.cdn_url))
        await mirror.start(
            str(python), "-m", "olah.server", "--host", mirror.address, "--port", str(_OLAH_PORT),
            "--hf-scheme", "http", "--hf-netloc", from_hub, "--hf-lfs-netloc", from_cdn,
            "--mirror-scheme", "http", "--mirror-netloc", here, "--mirror-lfs-netloc", here,
            "--repos-path", str(place / "repos"), "--log-path", str(place / "logs"),
        )  # fmt: skip
        await _answers(mirror, f"http://{here}/")
        return await _all_by_hf(_machines(world, shape), f"http://{here}")

    return await _in_a_world(base, shape, act)


RIVALS: dict[str, Callable[[Path, Shape], Coroutine[Any, Any, Rival]]] = {
    "8 x `hf download`": _hf_by_all,
    "`hf download`, then rsync in a chain": _hf_then_rsync,
    "olah, 8 x `hf download`": _hf_by_olah,
}


async def _in_a_world(base: Path, shape: Shape, act: Callable[[World, LabHub], Awaitable[float]]) -> Rival:
    """Each in a lab of its own, with nothing anywhere; the oracle holds for them as well."""
    try:
        async with World(base / "world") as world:
            hub = world.hub("--generate", shape.generated, rate=shape.line)
            model = await model_at(hub, MODEL)
            hub.reset_stats()
            async with watched(hub, hub.cdn_url) as seen:
                seconds = await act(world, hub)
            return Rival(seconds, hub.stats()["total"] / model.size, seen.open)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _machines(world: World, shape: Shape) -> list[Machine]:
    return [world.machine(f"desk{number}", shape.lan) for number in range(1, shape.machines + 1)]


async def _all_by_hf(machines: list[Machine], endpoint: str) -> float:
    """Over plain HTTP, like every self-made hub and mirror."""
    variables = (f"HF_ENDPOINT={endpoint}", "HF_HUB_DISABLE_XET=1", "HF_HUB_DISABLE_TELEMETRY=1")
    command = ("env", *variables, str(Path(sys.executable).with_name("hf")), "download", MODEL, "--quiet")
    began = time.monotonic()
    programs = [await machine.start(*command) for machine in machines]
    for program in programs:
        ran = await program.wait(_LIMIT_S)
        assert ran.code == 0, ran.err
    return time.monotonic() - began


def _installed(place: Path) -> tuple[Path, str]:
    python = place / "bin" / "python"
    commands = (
        [sys.executable, "-m", "venv", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "olah"],
    )
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S)
        except (OSError, subprocess.SubprocessError) as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()
            return python, f"olah cannot be installed here: {said[-1] if said else error}"
    return python, ""


async def _answers(mirror: Machine, url: str) -> None:
    async with asyncio.timeout(_READY_LIMIT_S), session_in(mirror.node.space) as session:
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(url):
                    return
            await asyncio.sleep(_LOOK_S)
