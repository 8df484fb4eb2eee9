"""Running the test hub in another process."""

from __future__ import annotations

import base64
import json
import selectors
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.hub.faults import Fault

ROOT = Path(__file__).resolve().parents[2]
STOP_LIMIT_S = 10.0
CONTROL_LIMIT_S = 10.0


class HubProcess:
    """`with HubProcess("--generate", "org/big=3x64MiB") as hub: hub.url`."""

    def __init__(self, *arguments: str, ready_limit_s: float = 60.0) -> None:
        self._arguments = arguments
        self._ready_limit_s = ready_limit_s
        self._process: subprocess.Popen[str] | None = None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.returncode: int | None = None
        self.url = self.cdn_url = self.modelscope_url = self.control_url = ""

    @property
    def pid(self) -> int:
        """Process id while running."""
        assert self._process is not None, "not running"
        return self._process.pid

    def stats(self) -> dict[str, Any]:
        """Read the counters: total, sent by repo and path, by_route, requests, ..."""
        found: dict[str, Any] = self._control("GET", "/stats")
        return found

    def requests(self) -> list[dict[str, Any]]:
        """Read the request log."""
        found: list[dict[str, Any]] = self._control("GET", "/requests")
        return found

    def reset_stats(self) -> None:
        """Start counting again."""
        self._control("DELETE", "/stats")

    def inject(self, *faults: Fault) -> None:
        """Put rules in force."""
        self._control("POST", "/faults", [fault.to_json() for fault in faults])

    def clear(self) -> None:
        """Lift every rule."""
        self._control("DELETE", "/faults")

    def add_commit(self, repo: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Push small files and return the commit id."""
        encoded = {path: base64.b64encode(data).decode() for path, data in files.items()}
        body = {"repo": repo, "files": encoded, "branch": branch}
        return str(self._control("POST", "/commits", body)["commit"])

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.control_url + path, data, headers, method=method)
        with self._opener.open(request, timeout=CONTROL_LIMIT_S) as response:
            return json.load(response)

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.hub", *self._arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._process = process
        try:
            assert process.stdout is not None
            urls = json.loads(_first_line(process.stdout, self._ready_limit_s))
        except BaseException:
            self.stop()
            raise
        self.url, self.cdn_url = urls["url"], urls["cdn_url"]
        self.modelscope_url, self.control_url = urls["modelscope_url"], urls["control_url"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process and wait for it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.returncode = process.returncode
        if process.stdout is not None:
            process.stdout.close()


def _first_line(stream: IO[str], limit_s: float) -> str:
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        if not selector.select(limit_s):
            raise TimeoutError(f"the test hub was not ready within {limit_s} s")
    line = stream.readline()
    if not line:
        raise RuntimeError("the test hub ended before it was ready; its stderr says why")
    return line
