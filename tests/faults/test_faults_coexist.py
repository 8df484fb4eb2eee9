"""Row 64: a hub client at work in the same cache."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir

from tests.faults.machine import Machine, contents, files_in
from tests.hub import Generated, TestHub, make_repo, slow_per_connection

REPO = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(1, 6 << 20)})
CLIENT = "import sys; from huggingface_hub import snapshot_download; print(snapshot_download('org/name'))"


async def _client(machine: Machine, hub: TestHub) -> asyncio.subprocess.Process:
    own = {"HF_HUB_CACHE": str(machine.cache), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    env = {"PATH": os.environ["PATH"], "HOME": str(machine.base / "user"), **own}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _one_valid_copy(machine: Machine) -> None:
    assert sorted(p.name for p in machine.blobs()) == sorted(f.etag for f in REPO.commits[REPO.main].files.values())
    assert machine.partials() == []
    assert not scan_cache_dir(machine.cache).warnings


@pytest.mark.parametrize("first", ["client", "edgecdn"])
async def test_64_client_downloads_the_same_at_the_same_time(machine: Machine, first: str) -> None:
    async with TestHub([REPO], faults=[slow_per_connection(3e6, path="m.safetensors")]) as hub:
        if first == "edgecdn":
            begun = asyncio.Event()
            job = asyncio.create_task(machine.fetch("org/name", hub, listener=lambda _: begun.set()))
            await begun.wait()
            client = await _client(machine, hub)
        else:
            client = await _client(machine, hub)
            async with asyncio.timeout(40):
                while not hub.stats.total:
                    await asyncio.sleep(0.01)
            job = asyncio.create_task(machine.fetch("org/name", hub))
        async with asyncio.timeout(40):
            fetched = await job
            out, _ = await client.communicate()
    assert client.returncode == 0
    assert files_in(fetched.path) == contents(REPO) == files_in(out.decode().strip())
    _one_valid_copy(machine)


async def test_64_client_lock_that_is_never_released(machine: Machine) -> None:
    etag = REPO.commits[REPO.main].files["m.safetensors"].etag
    lock: Path = machine.cache / ".locks" / "models--org--name" / f"{etag}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        async with TestHub([REPO]) as hub:
            started = time.monotonic()
            fetched = await machine.fetch("org/name", hub)
            assert 4.5 < time.monotonic() - started < 20
    assert files_in(fetched.path) == contents(REPO)
    _one_valid_copy(machine)


async def test_64_partial_files_of_a_client_are_left_alone(machine: Machine) -> None:
    etag = REPO.commits[REPO.main].files["m.safetensors"].etag
    theirs = machine.own(machine.repo_dir() / "blobs" / f"{etag}.incomplete", b"theirs")
    async with TestHub([REPO]) as hub:
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == contents(REPO)
    assert machine.partials() == [theirs]


async def test_64_partial_file_removed_midway_starts_again(machine: Machine) -> None:
    async with TestHub([REPO], faults=[slow_per_connection(3e6, path="m.safetensors")]) as hub:
        enough = asyncio.Event()
        job = asyncio.create_task(
            machine.fetch("org/name", hub, listener=lambda _: enough.set() if machine.received > 2 << 20 else None)
        )
        await enough.wait()
        machine.partials()[0].unlink()
        hub.clear()
        fetched = await job
    assert files_in(fetched.path) == contents(REPO)
    assert "starts again" in machine.said
    _one_valid_copy(machine)
