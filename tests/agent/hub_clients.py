"""The hub's own client, a process for each run, that knows a gateway (or a hub) and nothing else; curl beside it.

    client = clients(gateway(agent))                  # the fixture (import `_clients`): ended and checked with the test
    got = await client.download()                     # a whole repo; `got.files`, `got.error`, `got.said`
    running = await client.start("m.safetensors")     # or one file, while the test does something to it
    await client.has_got(1 << 20)
    got = await client.finish(running)

Its cache is its own (or the one given), and ends with the oracle of every machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.agent.agents import Agent, eventually
from tests.conformance.environments import NEWEST, Environment
from tests.faults.machine import Machine, files_in

__all__ = ["Clients", "Curled", "Got", "HubClient", "curl", "gateway"]

RUN_LIMIT_S = 120.0
"""A safety net: the client tries again for a while when nobody answers."""

_CODE = """\
import json, sys
from huggingface_hub import constants, hf_hub_download, snapshot_download
constants.DOWNLOAD_CHUNK_SIZE = 64 << 10  # it writes what it has, so that it resumes on top of it
{prelude}
try:
    if sys.argv[2:]:
        path = [hf_hub_download(sys.argv[1], file) for file in sys.argv[2:]][-1]
    else:
        path = snapshot_download(sys.argv[1])
    print(json.dumps({{"path": path}}))
except Exception as error:
    print(json.dumps({{"error": type(error).__name__, "message": str(error)}}))
"""


def gateway(agent: Agent) -> str:
    """Where an agent serves hub clients."""
    return f"http://{agent.listener('local')}"


@dataclass(frozen=True, slots=True)
class Got:
    """How a download ended. `path`: the file or folder, None where `error` (a class) says `message`."""

    path: Path | None
    error: str
    message: str
    said: str

    @property
    def files(self) -> dict[str, bytes]:
        """What it has: relative path (of one file, its name) to bytes."""
        assert self.path is not None, f"{self.error}: {self.message}\n{self.said}"
        return files_in(self.path) if self.path.is_dir() else {self.path.name: self.path.read_bytes()}


class HubClient(Machine):
    """A user with the client (`client`: another one than the newest). `prelude`: code that runs before its download."""

    def __init__(
        self,
        base: Path,
        endpoint: str,
        *,
        client: Environment = NEWEST,
        cache: Path | None = None,
        token: str = "",
        prelude: str = "",
    ) -> None:
        super().__init__(base)
        if not client.is_ready:
            pytest.skip(f"the environment {client.name} is not made: `make conformance`")
        self._python = str(client.python)
        base.mkdir(parents=True, exist_ok=True)
        self.cache = cache or base / "hf" / "hub"
        self.endpoint = endpoint
        self._token = token
        self._code = _CODE.format(prelude=prelude)

    @property
    def variables(self) -> dict[str, str]:
        """Its environment."""
        token = {"HF_TOKEN": self._token} if self._token else {}
        return token | {
            "PATH": os.environ["PATH"],
            "HOME": str(self.base / "user"),
            "HF_HOME": str(self.base / "hf"),
            "HF_HUB_CACHE": str(self.cache),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
        }

    async def start(self, *files: str, repo: str = "org/name") -> asyncio.subprocess.Process:  # type: ignore[override]
        """Begin to download files of a repo, or all of it; ended with the test."""
        process = await asyncio.create_subprocess_exec(
            self._python, "-c", self._code, repo, *files, env=self.variables,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._started.append(process)
        return process

    async def finish(self, process: asyncio.subprocess.Process) -> Got:  # type: ignore[override]
        """How it ended."""
        async with asyncio.timeout(RUN_LIMIT_S):
            out, err = await process.communicate()
        said = err.decode()
        self.captured += [out.decode(), said]
        told = json.loads(out.splitlines()[-1]) if out.strip() else {"error": "ended", "message": said}
        path = told.get("path")
        return Got(Path(path) if path else None, told.get("error", ""), told.get("message", ""), said)

    async def download(self, *files: str, repo: str = "org/name") -> Got:
        """Start and finish."""
        return await self.finish(await self.start(*files, repo=repo))

    async def has_got(self, count: int) -> None:
        """Wait until an unfinished file of it has so many bytes."""

        async def has() -> bool:
            return any(_size(path) >= count for path in self.cache.rglob("*.incomplete"))

        await eventually(has, 60, f"the client has {count} bytes")

    async def hf(self, *arguments: str) -> str:
        """Run the `hf` command; what it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", *arguments, env=self.variables,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        self._started.append(process)
        async with asyncio.timeout(RUN_LIMIT_S):
            out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        return out.decode()


class Clients:
    """The users of one test, by name."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._made: list[HubClient] = []

    def __call__(self, endpoint: str, name: str = "client", **more: Any) -> HubClient:
        """A user; `more` as for HubClient."""
        made = HubClient(self._base / name, endpoint, **more)
        self._made.append(made)
        return made

    async def close(self) -> None:
        """End what runs, then the oracle on every one."""
        for client in self._made:
            await client.close()
        for client in self._made:
            client.check()


@pytest_asyncio.fixture(name="clients")
async def _clients(tmp_path: Path) -> AsyncIterator[Clients]:
    """Users; ended and checked with the test."""
    made = Clients(tmp_path / "users")
    yield made
    await made.close()


@dataclass(frozen=True, slots=True)
class Curled:
    """What curl got. `code`: its exit code; `headers` have lower-case names."""

    code: int
    status: int
    headers: dict[str, list[str]]
    body: bytes


async def curl(url: str, *arguments: str, into: Path) -> Curled:
    """Ask with curl; the body is `into`, which is kept (for `-C -`)."""
    command = shutil.which("curl")
    if command is None:
        pytest.skip("curl is not installed")
    asked = ("-sS", "--max-time", "60", "-o", str(into), "-w", "%{http_code} %{header_json}", *arguments, url)
    process = await asyncio.create_subprocess_exec(
        command, *asked, env={"PATH": os.environ["PATH"], "NO_PROXY": "*"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    async with asyncio.timeout(RUN_LIMIT_S):
        out, _ = await process.communicate()
    status, _, headers = out.decode().partition(" ")
    body = into.read_bytes() if into.exists() else b""
    return Curled(process.returncode or 0, int(status), json.loads(headers or "{}"), body)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
