"""curl with every form of Range, and aria2c with eight connections: through the gateway, against the hub itself."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.conformance.clients import run_command
from tests.conformance.environments import NEWEST
from tests.conformance.world import MiB, world
from tests.hub import Generated, make_repo

pytestmark = pytest.mark.timeout(300)

SIZE = 24 * MiB + 333

RANGES = (
    "", "bytes=0-0", "bytes=0-99", "bytes=100-", "bytes=1000-1999", "bytes=-1", "bytes=-500", f"bytes={SIZE - 1}-",
    f"bytes=0-{SIZE - 1}", f"bytes=0-{SIZE}", f"bytes=5-{SIZE * 3}", f"bytes=-{SIZE * 2}", f"bytes={SIZE - MiB}-",
    f"bytes={SIZE // 2}-{SIZE // 2 + MiB}",
)  # fmt: skip
"""Answered with exactly these bytes."""

BEHIND = (f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=99999999999-")
"""Behind the end: 416 with the size."""

ODD = (
    "bytes=5-2", "bytes=0-1,5-6", "bytes=0-0,-1", "bytes=a-b", "bytes=", "bytes=-", "bytes=-0", "items=0-1", "bytes 0-1",
    "bytes=0x1-2", "bytes=1-2-3", "bytes=99999999999999999999999-", "bytes=0-99999999999999999999999", "=0-1",
)  # fmt: skip
"""Of no hub client; FAULTS row 9: all of it, or 416, or what RFC 9110 says; never other bytes, never an error of ours."""


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


async def _curl(endpoint: str, base: Path, path: str, span: str, *more: str) -> tuple[int, str, str, int]:
    """Status, Content-Range, hash and length of the body."""
    body = base / "body"
    body.unlink(missing_ok=True)
    asked = ["-H", f"Range: {span}"] if span else []
    said = await run_command(
        NEWEST,
        (_tool("curl"), "-sSL", "--max-time", "60", "-o", str(body), "-w", "%{http_code}|%header{content-range}", *asked, *more, f"{endpoint}/{path}"),
        endpoint,
        base,
    )  # fmt: skip
    status, _, content_range = said.strip().partition("|")
    data = body.read_bytes() if body.exists() else b""
    return int(status), content_range, hashlib.sha256(data).hexdigest(), len(data)


async def _compare(hub: str, gateway: str, base: Path) -> None:
    """Every form, for a large file and an empty one; what is wrong is collected and told together."""
    wrong: list[object] = []
    for path in ("org/large/resolve/main/large.bin", "org/large/resolve/main/empty.txt"):
        for span in RANGES + BEHIND:
            one, other = await _curl(hub, base, path, span), await _curl(gateway, base, path, span)
            if span.startswith("bytes=-") and one[3] == other[3] == 0:
                continue  # the end of nothing is nothing: all of it by RFC 9110, 416 by many servers
            if one[0] == 416 == other[0]:
                one, other = one[:2], other[:2]  # type: ignore[assignment]  # the text is each server's own
            if one != other:
                wrong.append((path, span, one, other))
        whole = (await _curl(hub, base, path, ""))[2]
        for span in ODD:
            got = await _curl(gateway, base, path, span)
            if not (got[0] in (206, 416, 400) or (got[0] == 200 and got[2] == whole)):
                wrong.append((path, span, "", got))
    assert wrong == []


async def test_every_form_of_range(tmp_path: Path) -> None:
    repo = make_repo("org/large", {"large.bin": Generated(5, SIZE), "empty.txt": b""})
    async with world(tmp_path, repo) as here:
        gateway = await here.gateway()
        base = tmp_path / "curl"
        await _compare(here.hub.url, gateway, base)  # what nobody has
        one = await here.agent()
        await one.fetch_here("org/large", include=("*",))
        asked = here.hub.stats.total
        path = "org/large/resolve/main/large.bin"
        assert (await _curl(gateway, base, path, ""))[3] == SIZE
        assert here.hub.stats.total == asked
        await _compare(here.hub.url, gateway, base)  # what is in the cache


async def test_if_range(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        gateway = await here.gateway()
        base = tmp_path / "curl"
        path = "org/model/resolve/main/config.json"
        etag = here.hub.state.repos["model", "org/model"].resolve("main").files["config.json"].oid  # type: ignore[union-attr]
        for told, status in ((f'"{etag}"', 206), ('"other"', 200)):
            for endpoint in (here.hub.url, gateway):
                assert (await _curl(endpoint, base, path, "bytes=1-3", "-H", f"If-Range: {told}"))[0] == status


async def test_eight_connections(tmp_path: Path) -> None:
    repo = make_repo("org/large", {"large.bin": Generated(6, SIZE)})
    async with world(tmp_path, repo) as here:
        gateway = await here.gateway()
        hashes = []
        for name, endpoint in (("direct", here.hub.url), ("cold", gateway), ("warm", gateway)):
            base = tmp_path / name
            command = (
                _tool("aria2c"), "--max-connection-per-server=8", "--split=8", "--min-split-size=1M", "--quiet=false",
                "--no-conf", "--allow-overwrite=true", "--console-log-level=warn", "--dir", str(base), "--out", "got.bin",
                f"{endpoint}/org/large/resolve/main/large.bin",
            )  # fmt: skip
            await run_command(NEWEST, command, endpoint, base)
            hashes.append(hashlib.sha256((base / "got.bin").read_bytes()).hexdigest())
        sha256 = repo.commits[repo.main].files["large.bin"].sha256
        assert hashes == [sha256] * 3
