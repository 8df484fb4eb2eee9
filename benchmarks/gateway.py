"""The gateway of a real agent beside nginx, which serves the very same files, alternating in one run.

`python -m benchmarks gateway-blob gateway-ranges gateway-head`. Files lie in memory; the machine's noise hits
both, and the best of each is compared. Without nginx the first two are skipped aloud.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.agent.agents import Agent, eventually, lab
from tests.hub.process import HubProcess

__all__ = ["WAYS"]

MIB = 1 << 20
_SIZE = 2048 * MIB
_ROUNDS = 7
_READERS = 16
_RATE = 200
_AT_RATE_S = 5.0
_WINDOWS = 3
_CONNECTIONS = 8
_REQUESTS = 6000
_PORT_RANGE = (18300, 18400)


def gateway_blob(base: Path) -> str:
    """A cached 2 GiB blob with curl."""
    return _beside_nginx(base, _curl, ">= 0.9 x nginx")


def gateway_ranges(base: Path) -> str:
    """The same blob by 16 readers at once, each a sixteenth."""
    return _beside_nginx(base, _curl_parts, ">= 0.9 x nginx")


def gateway_head(base: Path) -> str:
    """HEAD at 200 a second; then HEAD and small GET, alternating, as fast as one core answers."""
    return asyncio.run(_heads(base))


def _beside_nginx(base: Path, read: Callable[[str], Awaitable[float]], bar: str) -> str:
    if shutil.which("nginx") is None:
        return "skipped: nginx is not installed"
    return asyncio.run(_compared(base, read, bar))


async def _compared(base: Path, read: Callable[[str], Awaitable[float]], bar: str) -> str:
    async with _cached(base, f"org/big=1x{_SIZE // MIB}MiB") as cached:
        blob = max(cached.blobs.iterdir(), key=lambda path: path.stat().st_size)
        with _nginx(base / "nginx", cached.blobs) as theirs_url:
            ours, theirs = [], []
            for _ in range(_ROUNDS):
                ours.append(await read(cached.large))
                theirs.append(await read(f"{theirs_url}/{blob.name}"))
    mine, other = min(ours), min(theirs)
    return (
        f"{_SIZE // MIB} MiB: {other / mine:.3f} of nginx's rate, best of {_ROUNDS} "
        f"({_SIZE / mine / 1e9:.2f} / {_SIZE / other / 1e9:.2f} GB/s)   bar {bar}"
    )


async def _heads(base: Path) -> str:
    async with _cached(base, "org/big=1x8MiB") as cached:
        windows = [await _at_rate(cached.large) for _ in range(_WINDOWS)]
        beside = await _nginx_heads(base, cached)
        process = psutil.Process(cached.agent.pid)
        cores = process.cpu_affinity()
        process.cpu_affinity(cores[:1])
        with suppress(OSError):  # the agent on one, this program on the others, where there are any
            os.sched_setaffinity(0, cores[1:])
        try:
            rate = max([await _flat_out(cached) for _ in range(_WINDOWS)])
        finally:
            os.sched_setaffinity(0, cores)
    return (
        f"HEAD at {_RATE}/s: {_shown(windows)}{beside}   bar p99 <= 5 ms; "
        f"HEAD + small GET on one core: {rate:.0f}/s   bar >= 1000/s"
    )


async def _nginx_heads(base: Path, cached: _Cached) -> str:
    """The same of nginx: what the machine and this program take of it."""
    if shutil.which("nginx") is None:
        return ""
    with _nginx(base / "nginx", cached.blobs) as url:
        name = next(iter(cached.blobs.iterdir())).name
        return f" (nginx: {_shown([await _at_rate(f'{url}/{name}') for _ in range(_WINDOWS)])})"


def _shown(windows: list[list[float]]) -> str:
    """The best of some windows: another's work on this machine is not the gateway's."""
    best = min(windows, key=lambda times: times[len(times) * 99 // 100])
    return f"p50 {best[len(best) // 2] * 1000:.2f} ms, p99 {best[len(best) * 99 // 100] * 1000:.2f} ms"


@dataclass
class _Cached:
    agent: Agent
    blobs: Path
    large: str
    small: str


@asynccontextmanager
async def _cached(base: Path, made: str) -> AsyncIterator[_Cached]:
    """An agent with a repo of one large file in its cache."""
    folder = base / "gateway"
    try:
        with HubProcess("--generate", made, "--scratch", str(folder / "made")) as hub:
            async with lab(folder, hub.url) as agents:
                agent = await agents.agent("one")
                await agent.fetch_here("org/big")
                at = f"http://{agent.listener('local')}/org/big/resolve/main"
                large, small = f"{at}/model-00001-of-00001.safetensors", f"{at}/config.json"

                async def is_held() -> bool:
                    status = await agent.get("/edgecdn/v1/status")
                    return bool(status["cache"]["repos"])

                await eventually(is_held, 60, "the repo is held")
                yield _Cached(agent, next(agent.cache.glob("models--*/blobs")), large, small)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _nginx(folder: Path, root: Path) -> Any:
    """Nginx with one worker on loopback; where."""
    folder.mkdir(parents=True, exist_ok=True)
    port = next(port for port in range(*_PORT_RANGE) if _is_free(port))
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"""{user} worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:{port}; root {root}; }} }}
"""
    )
    process = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        while _is_free(port):
            assert process.poll() is None, (folder / "errors").read_text()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def _is_free(port: int) -> bool:
    return not any(c.laddr.port == port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN)


async def _curl(url: str) -> float:
    return await _timed(["curl", "-sS", "-o", "/dev/null", "--fail", url])


async def _curl_parts(url: str) -> float:
    step = _SIZE // _READERS
    parts = [f"{n * step}-{(n + 1) * step - 1}" for n in range(_READERS)]
    return await _timed(*(["curl", "-sS", "-o", "/dev/null", "--fail", "-r", part, url] for part in parts))


async def _timed(*commands: list[str]) -> float:
    began = time.monotonic()
    running = [await asyncio.create_subprocess_exec(*command) for command in commands]
    assert [await process.wait() for process in running] == [0] * len(commands)
    return time.monotonic() - began


class _Connection:
    """One kept-alive connection that asks with as little work of its own as can be."""

    def __init__(self, url: str) -> None:
        self._host = url.split("/")[2]
        self._reader: asyncio.StreamReader | None = None

    async def open(self) -> None:
        host, port = self._host.split(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))

    async def ask(self, method: str, url: str) -> float:
        assert self._reader is not None
        path = url.partition(self._host)[2]
        began = time.perf_counter()
        self._writer.write(f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head[:20], head
        if method == "GET":
            await self._reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
        return time.perf_counter() - began

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


async def _at_rate(url: str) -> list[float]:
    """Seconds of each HEAD, sorted: asked when it is time to, whether those before were answered or not."""
    connections = await _connections(url)
    free: asyncio.Queue[_Connection] = asyncio.Queue()
    for connection in connections:
        free.put_nowait(connection)
    times: list[float] = []

    async def ask(due: float) -> None:
        connection = await free.get()
        await connection.ask("HEAD", url)
        times.append(time.monotonic() - due)
        free.put_nowait(connection)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(int(_RATE * _AT_RATE_S)):
            due = began + number / _RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(ask(time.monotonic()))
    for connection in connections:
        await connection.close()
    return sorted(times)


async def _flat_out(cached: _Cached) -> float:
    """Requests a second."""
    connections = await _connections(cached.large)

    async def ask(connection: _Connection) -> None:
        for _ in range(_REQUESTS // _CONNECTIONS // 2):
            await connection.ask("HEAD", cached.large)
            await connection.ask("GET", cached.small)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(ask(connection))
    seconds = time.monotonic() - began
    for connection in connections:
        await connection.close()
    return _REQUESTS / seconds


async def _connections(url: str) -> list[_Connection]:
    made = [_Connection(url) for _ in range(_CONNECTIONS)]
    for connection in made:
        await connection.open()
    return made


WAYS: dict[str, Callable[[Path], str]] = {
    "gateway-blob": gateway_blob,
    "gateway-ranges": gateway_ranges,
    "gateway-head": gateway_head,
}
