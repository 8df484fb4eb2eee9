"""A disk that fails while a blob is sent: real read errors, from a loop device whose backing file was cut."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from edgecdn.lan_wire import encode_have_query, parse_have_answer
from tests.agent.lan_lab import FolderShelf, serving

LARGE = os.urandom(1 << 20) * 12


@pytest.fixture
def dying_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A mounted folder with one large file, and the image behind it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a loop device")
    image, folder = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(24 << 20)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)

    def mount() -> None:
        if subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True, check=False).returncode:
            pytest.skip("cannot mount a loop device here")

    mount()
    FolderShelf(folder).add(LARGE)
    subprocess.run(["umount", folder], check=True)  # so that nothing of it is left in memory
    mount()
    yield folder, image
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.root
async def test_a_blob_that_cannot_be_read_is_withdrawn(dying_disk: tuple[Path, Path], tmp_path: Path) -> None:
    """FAULTS 25."""
    folder, image = dying_disk
    async with serving(folder) as lab:
        elsewhere = FolderShelf(tmp_path)
        digest = elsewhere.add(LARGE)
        seen = (folder / digest.hex).stat()
        held = elsewhere.held[digest]
        lab.shelf.held[digest] = type(held)(
            digest, held.size, folder / digest.hex, held.repo, seen.st_ino, seen.st_mtime_ns
        )
        os.truncate(image, 4 << 20)
        with pytest.raises(aiohttp.ClientPayloadError):
            await lab.ask("GET", f"/blobs/{digest}")
        async with asyncio.timeout(20):
            while not lab.shelf.withdrawn:
                await asyncio.sleep(0.01)
        assert lab.shelf.withdrawn == [digest]
        answer = (await lab.ask("POST", "/have", data=encode_have_query([digest], inline=True)))[1]
        assert parse_have_answer(answer) == {}
        assert (await lab.ask("GET", f"/blobs/{digest}"))[0] == 404
