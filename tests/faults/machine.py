"""A user's machine in a test: its cache, its edgecdn home, fetches on it, and the oracle that closes every test."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from edgecdn.cache.journal import read_journal
from edgecdn.cache.safedir import SafeDir
from edgecdn.events import BytesReceived, Event, Note, SourceDropped, Waiting
from edgecdn.fileset import FileSet
from edgecdn.local_fetch import run_fetch
from edgecdn.names import ModelRef
from edgecdn.pipeline import Fetched
from edgecdn.settings import load_settings
from edgecdn.spans import Span, journal_unit
from tests.hub import HubRepo, TestHub
from tests.hub.content import chunks_of

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_OnlyForFaultTests0123456789abcdef"
RUN_LIMIT_S = 50.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


class Machine:
    """One machine. `hubs` arguments are test hubs or URLs, in the user's order."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.home = base / "home"
        self.cache = base / "cache"
        self.events: list[Event] = []
        self.captured: list[str] = []
        self._own: dict[Path, bytes] = {}
        self._started: list[asyncio.subprocess.Process] = []

    def environment(self, *hubs: TestHub | str, **settings: str) -> dict[str, str]:
        """The variables of a command; `fetch_patience="1s"` sets EDGECDN_FETCH_PATIENCE."""
        urls = [hub if isinstance(hub, str) else hub.url for hub in hubs]
        named = {f"EDGECDN_{name.upper()}": value for name, value in settings.items()}
        return {
            "EDGECDN_HOME": str(self.home),
            "HF_HUB_CACHE": str(self.cache),
            "EDGECDN_HUB_ENDPOINTS": ",".join(urls),
            "EDGECDN_FETCH_PATIENCE": "20s",
            "EDGECDN_DISCOVERY_MDNS": "off",
            **named,
        }

    async def fetch(
        self,
        model: str,
        *hubs: TestHub | str,
        wanted: FileSet | None = None,
        local_dir: Path | None = None,
        listener: Callable[[Event], None] | None = None,
        **settings: str,
    ) -> Fetched:
        """Fetch in this process."""

        def listen(event: Event) -> None:
            self.events.append(event)
            if listener is not None:
                listener(event)

        loaded = load_settings(self.environment(*hubs, **settings))
        chosen = wanted or FileSet()
        return await run_fetch(ModelRef.parse(model), chosen, loaded, listener=listen, local_dir=local_dir)

    async def start(self, *arguments: str, hubs: tuple[TestHub | str, ...], **more: Any) -> asyncio.subprocess.Process:
        """Start a command; it is ended with the test. `variables` adds to its environment."""
        variables = more.pop("variables", {})
        base = {"PATH": os.environ["PATH"], "HOME": str(self.base / "user"), "NO_PROXY": "*"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edgecdn", *arguments, cwd=ROOT,
            env={**base, **self.environment(*hubs, **more), **variables},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._started.append(process)
        return process

    async def finish(self, process: asyncio.subprocess.Process) -> Ran:
        """Wait for a command."""
        async with asyncio.timeout(RUN_LIMIT_S):
            out, err = await process.communicate()
        assert process.returncode is not None
        self.captured += [out.decode(), err.decode()]
        return Ran(process.returncode, out.decode(), err.decode())

    async def run(self, *arguments: str, hubs: tuple[TestHub | str, ...] = ("http://127.0.0.1:9",), **more: Any) -> Ran:
        """Run a command to its end; it never shows a traceback."""
        ran = await self.finish(await self.start(*arguments, hubs=hubs, **more))
        assert "Traceback" not in ran.err, ran.err
        return ran

    def own(self, path: Path, data: bytes) -> Path:
        """A file of the user's, which must still be there, unchanged, at the end."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._own[path] = data
        return path

    @property
    def said(self) -> str:
        """All that fetches in this process told the user, a line each."""
        lines = []
        for event in self.events:
            match event:
                case Note(text=text) | Waiting(reason=text):
                    lines.append(text)
                case SourceDropped(source=source, reason=reason):
                    lines.append(f"{source} {reason}")
        return "\n".join(lines)

    @property
    def received(self) -> int:
        """Bytes that fetches in this process wrote."""
        return sum(event.count for event in self.events if isinstance(event, BytesReceived))

    def repo_dir(self, name: str = "org/name") -> Path:
        """A model's folder in the cache."""
        return self.cache / f"models--{name.replace('/', '--')}"

    def blobs(self) -> list[Path]:
        """Every complete blob (links, which tests plant, are not)."""
        found = sorted(self.cache.glob("*/blobs/*"))
        return [path for path in found if _is_digest(path.name) and not path.is_symlink()]

    def partials(self) -> list[Path]:
        """Every partial file."""
        return sorted(self.cache.glob("*/blobs/*.incomplete"))

    def kept_spans(self) -> list[Span]:
        """Of partial files, what the next run goes on with, should this one be killed now."""
        found = []
        for path in self.home.glob("partials/*/*.journal"):
            with SafeDir.at(path.parent) as folder:
                journal = read_journal(folder, path.name)
            if journal is not None:
                header, units = journal
                unit = journal_unit(header.size)
                found += [Span(n * unit, min((n + 1) * unit, header.size)) for n in sorted(units)]
        return found

    def kept(self) -> int:
        """How many bytes those are."""
        return sum(map(len, self.kept_spans()))

    def ref(self, name: str = "main", repo: str = "org/name") -> str | None:
        """The commit a ref names."""
        path = self.repo_dir(repo) / "refs" / name
        return path.read_text() if path.exists() else None

    def offline(self, repo: str = "org/name", **options: Any) -> Path | None:
        """What a hub client finds without a network; None when it refuses."""
        try:
            return Path(snapshot_download(repo, cache_dir=self.cache, local_files_only=True, **options))
        except Exception:
            return None

    async def close(self) -> None:
        """End what still runs."""
        for process in self._started:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                await process.communicate()

    def check(self) -> None:
        """The oracle."""
        for blob in self.blobs():
            data = blob.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            assert blob.name in (hashlib.sha256(data).hexdigest(), git), f"{blob} is not what its name says"
        for link in self.cache.glob("*/snapshots/*/**/*"):
            assert link.exists(), f"{link} dangles"
        for path in _files(self.home):
            assert TOKEN.encode() not in path.read_bytes(), f"the token is in {path}"
        assert all(TOKEN not in text for text in (self.said, *self.captured)), "the token was printed"
        for path, data in self._own.items():
            assert path.read_bytes() == data, f"{path} of the user's was changed"
        database = self.home / "catalog.sqlite"
        if database.exists():
            with sqlite3.connect(database) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            connection.close()


def contents(repo: HubRepo, revision: str = "main") -> dict[str, bytes]:
    """Path to bytes of a commit."""
    commit = repo.resolve(revision)
    assert commit is not None
    return {path: b"".join(chunks_of(file.source)) for path, file in commit.files.items()}


def files_in(folder: Path | str) -> dict[str, bytes]:
    """Path to bytes of a folder, links followed, `.cache` left out."""
    base = Path(folder)
    found = {path.relative_to(base).as_posix(): path for path in base.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".cache/")}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _is_digest(name: str) -> bool:
    return len(name) in (40, 64) and set(name) <= set("0123456789abcdef")
