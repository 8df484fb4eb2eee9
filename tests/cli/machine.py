"""A user's home and cache, edgecdn on it, and what huggingface_hub says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import scan_cache_dir, snapshot_download

from edgecdn.cli.main import run
from tests.hub import HubProcess
from tests.hub.process import ROOT

TINY, SMALL, MOVING = "org/tiny", "org/small", "org/moving"
LIMIT_S = 40


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document on stdout."""
        return json.loads(self.out)


@dataclass
class Machine:
    """One user's home and cache, and edgecdn on it."""

    home: Path
    cache: Path
    env: dict[str, str]
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Outcome:
        """Run in this process."""
        self.capsys.readouterr()
        code = run(arguments)
        said = self.capsys.readouterr()
        return Outcome(code, said.out, said.err)

    def process(self, *arguments: str, **env: str) -> Outcome:
        """Run as users do."""
        done = subprocess.run(
            [sys.executable, "-m", "edgecdn", *arguments],
            check=False,
            env=os.environ | self.env | env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def fetch(self, model: str, *more: str) -> Path:
        """Bring a repo; returns its snapshot."""
        done = self("fetch", model, "--quiet", *more)
        assert done.code == 0, done.err
        return Path(done.out.strip())

    def folder(self, repo: str) -> Path:
        """A repo's folder in the cache."""
        return self.cache / f"models--{repo.replace('/', '--')}"

    def blobs(self, repo: str) -> dict[str, bytes]:
        """What is in a repo's blobs, by name."""
        return {p.name: p.read_bytes() for p in (self.folder(repo) / "blobs").glob("*")}

    def large_blob(self, repo: str) -> Path:
        """One of the large files' blobs."""
        return next(p for p in sorted((self.folder(repo) / "blobs").iterdir()) if len(p.name) == 64)


def scan_warnings(cache: Path) -> list[str]:
    """What `hf cache ls` would warn of."""
    return [str(warning) for warning in scan_cache_dir(cache).warnings]


def download(hub: HubProcess, cache: Path, repo: str, **more: Any) -> Path:
    """huggingface_hub's own download."""
    return Path(snapshot_download(repo, endpoint=hub.url, cache_dir=cache, token=False, **more))
