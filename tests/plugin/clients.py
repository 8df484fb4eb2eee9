"""A user's Python with the hook in it: scripts as users write them, run in processes of their own.

    user = User(tmp_path, hub.url, home)            # any interpreter: User(..., python=ENVIRONMENT.python)
    ran = await user.run("tell(hf_hub_download('org/name', 'config.json'))")
    ran.told, ran.err, ran.seconds

The hook comes from a folder of its own, by its `.pth`; the interpreter's own environment is not changed. Scripts have
huggingface_hub's names, and `tell` for what they want to say.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecdn.plugin.bundle import hook_source, pth_source

LIMIT_S = 90.0
"""A safety net for slow machines, no measure."""

_PRELUDE = """
import json, os, sys
import huggingface_hub
from huggingface_hub import HfApi, constants, file_exists, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub import snapshot_download
def tell(*what): print("TOLD " + json.dumps(what if len(what) != 1 else what[0], default=str), flush=True)
"""


@dataclass(frozen=True)
class Ran:
    """What a script said. `told`: what it told, in order."""

    code: int
    told: list[Any]
    out: str
    err: str
    seconds: float

    @property
    def warnings(self) -> list[str]:
        """The lines of ours on stderr."""
        return [line for line in self.err.splitlines() if "edgecdn" in line and not line.startswith(" ")]


def put_hook(folder: Path) -> Path:
    """Put the hook into a folder, with what makes a Python that has it on PYTHONPATH read its `.pth`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "edgecdn_hook.py").write_text(hook_source())
    (folder / "edgecdn_hook.pth").write_text(pth_source())
    (folder / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({str(folder)!r})\n")
    return folder


class User:
    """One user of a hub, with a cache of their own. `home`: of the agent; `hook`: whether it is installed."""

    def __init__(
        self, base: Path, endpoint: str, home: Path, *, python: Path | str = sys.executable, hook: bool = True
    ) -> None:
        self.base, self.python = base, python
        self.cache = base / "cache" / "hub"
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(base / "user"), "NO_PROXY": "*", "EDGECDN_HOME": str(home),
            "HF_HOME": str(base / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": "", "TERM": "dumb",
            "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "DISABLE_SAFETENSORS_CONVERSION": "1",
        }  # fmt: skip
        base.mkdir(parents=True, exist_ok=True)
        if hook:
            self.env["PYTHONPATH"] = str(put_hook(base / "site"))

    async def start(self, code: str, *, prelude: str = _PRELUDE, **env: str) -> asyncio.subprocess.Process:
        """Begin a script; `finish` waits for it."""
        script = self.base / f"script-{time.monotonic_ns()}.py"
        script.write_text(prelude + code)
        return await asyncio.create_subprocess_exec(
            str(self.python), str(script), env=self.env | env, cwd=self.base,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    async def finish(self, process: asyncio.subprocess.Process, began: float = 0.0) -> Ran:
        """What came of it."""
        try:
            async with asyncio.timeout(LIMIT_S):
                out, err = await process.communicate()
        except BaseException:
            process.kill()
            raise
        lines = out.decode().splitlines()
        told = [json.loads(line[5:]) for line in lines if line.startswith("TOLD ")]
        assert process.returncode is not None
        return Ran(process.returncode, told, out.decode(), err.decode(), time.monotonic() - began)

    async def run(self, code: str, **env: str) -> Ran:
        """Run a script to its end, which is a good one."""
        ran = await self.tried(code, **env)
        assert ran.code == 0, ran.err
        return ran

    async def tried(self, code: str, **env: str) -> Ran:
        """Run a script to whatever end."""
        began = time.monotonic()
        return await self.finish(await self.start(code, **env), began)

    def blobs(self, repo: str) -> dict[str, bytes]:
        """What is in the cache of a model."""
        folder = self.cache / f"models--{repo.replace('/', '--')}" / "blobs"
        return {path.name: path.read_bytes() for path in folder.glob("*")}
