"""Rows 1 to 5, 8 and 10: what a hub's listing may contain."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import unicodedata
import zlib
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from edgecdn.errors import BadInput, CacheRefused, EdgecdnError, ManifestRefused, Unreachable
from edgecdn.sources import hub_api
from tests.faults.machine import ROOT, Machine, contents, files_in
from tests.hub import Generated, HubFile, TestHub, make_repo, status
from tests.hub.listeners import Listener

GOOD = HubFile.of("config.json", b"{}")
LFS = HubFile.of("model.safetensors", b"weights")


def _everything(machine: Machine) -> set[str]:
    return {str(p) for p in machine.base.rglob("*") if not p.is_relative_to(machine.home)}


async def _refused(machine: Machine, files: dict[str, Any], expected: type[EdgecdnError] = ManifestRefused) -> None:
    before = _everything(machine)
    async with TestHub([make_repo("org/name", files)]) as hub:
        with pytest.raises(expected) as caught:
            await machine.fetch("org/name", hub)
        assert hub.stats.total == 0
    assert caught.value.exit_code == 5
    assert _everything(machine) == before


@pytest.mark.parametrize("digest", ["../../evil", "abc", "", "A" * 64, "0" * 63 + "\0", "a" * 64 + "/x", "g" * 64])
@pytest.mark.parametrize("lfs", [True, False], ids=["lfs", "git"])
async def test_01_hostile_digest(machine: Machine, digest: str, lfs: bool) -> None:
    bad = replace(LFS, sha256=digest) if lfs else replace(GOOD, oid=digest)
    await _refused(machine, {"x.safetensors": bad, "config.json": GOOD})


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/x", "a//b", "./x", "%2e%2e/x", "a%2f..%2fx", "a;b", "a\\b", "a\nb", ".."]
)
async def test_02_hostile_file_name(machine: Machine, path: str) -> None:
    await _refused(machine, {path: replace(GOOD, path=path), "config.json": GOOD})


@pytest.mark.parametrize(
    "typed", ["../x", "org/..", "org/na\\me", "org/%2e%2e", "org/name@../x", "org/name@/x", "a/b/c", "org/a;b", ""]
)
async def test_02_hostile_repo_or_revision(machine: Machine, typed: str) -> None:
    with pytest.raises(BadInput) as caught:
        await machine.fetch(typed, "http://127.0.0.1:9")
    assert caught.value.exit_code == 2
    assert not machine.cache.exists()


@pytest.mark.parametrize(
    "where", ["", "blobs", "snapshots", "snapshots/COMMIT", "snapshots/COMMIT/sub", "trees", "refs"]
)
async def test_03_planted_folder_link(machine: Machine, where: str) -> None:
    outside = machine.own(machine.base / "outside" / "mine", b"mine").parent
    repo = make_repo("org/name", {"config.json": b"{}", "sub/a": b"a", "m.safetensors": Generated(1, 2 << 20)})
    link = machine.repo_dir() / where.replace("COMMIT", repo.main)
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    async with TestHub([repo]) as hub:
        with pytest.raises(CacheRefused) as caught:
            await machine.fetch("org/name", hub)
    assert caught.value.exit_code == 5
    assert [path.name for path in outside.iterdir()] == ["mine"]


@pytest.mark.parametrize("where", ["blob", "ref", "tree", "link"])
async def test_03_planted_file_link(machine: Machine, where: str) -> None:
    mine = machine.own(machine.base / "outside" / "mine", b"mine")
    repo = make_repo("org/name", {"config.json": b"{}"})
    base = machine.repo_dir()
    link = {
        "blob": base / "blobs" / GOOD.oid,
        "ref": base / "refs/main",
        "tree": base / f"trees/{repo.main}.json",
        "link": base / "snapshots" / repo.main / "config.json",
    }[where]
    link.parent.mkdir(parents=True)
    link.symlink_to(mine)
    async with TestHub([repo]) as hub:
        try:
            await machine.fetch("org/name", hub)
        except CacheRefused:
            assert link.readlink() == mine  # refused, and left for the user to look at
        else:
            assert not link.is_symlink() or link.resolve().is_relative_to(base)


async def test_03_link_into_the_shared_store_is_followed(machine: Machine) -> None:
    shared = machine.cache / "blobs" / "ab" / ("ab" * 32)
    machine.own(shared, b"weights")
    link = machine.repo_dir() / "blobs" / LFS.sha256
    link.parent.mkdir(parents=True)
    link.symlink_to(f"../../blobs/ab/{shared.name}")
    async with TestHub([make_repo("org/name", {"m.safetensors": b"weights"})]) as hub:
        fetched = await machine.fetch("org/name", hub)
        assert hub.stats.total == 0
    assert files_in(fetched.path) == {"m.safetensors": b"weights"}


async def test_04_case_and_unicode_collisions_stay_distinct(machine: Machine) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é.txt") for form in ("NFC", "NFD"))
    repo = make_repo("org/name", {"A.txt": b"1", "a.txt": b"2", composed: b"3", decomposed: b"4"})
    async with TestHub([repo]) as hub:
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == contents(repo)


async def test_04_file_that_is_also_a_folder(machine: Machine) -> None:
    await _refused(machine, {"a": GOOD, "a/b": GOOD})


async def test_04_same_path_twice(machine: Machine) -> None:
    entry = {"type": "file", "oid": GOOD.oid, "size": 2, "path": "a"}
    async with TestHub([make_repo("org/name", {"a": GOOD})]) as hub:
        hub.inject(status(200, text=json.dumps([entry, entry]), path="*/tree/*"))
        with pytest.raises(ManifestRefused, match="twice"):
            await machine.fetch("org/name", hub)


@pytest.mark.parametrize("path", ["n" * 4096, "n" * 256, "/".join(["nn"] * 600), "é" * 200])
async def test_05_long_names(machine: Machine, path: str) -> None:
    await _refused(machine, {path: replace(GOOD, path=path)})


@pytest.mark.parametrize("size", [-1, 1 << 60])
async def test_05_impossible_sizes(machine: Machine, size: int) -> None:
    await _refused(machine, {"m.safetensors": replace(LFS, size=size)})


async def test_05_endless_listing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_api, "MAX_FILES", 5000)
    page = json.dumps([{"type": "file", "oid": GOOD.oid, "size": 2, "path": f"f{n}"} for n in range(1000)])
    async with TestHub([make_repo("org/name", {"a": GOOD})]) as hub:
        link = f'<{hub.url}/api/models/org/name/tree/main?cursor=1>; rel="next"'
        hub.inject(status(200, {"Link": link}, text=page, path="*/tree/*"))
        with pytest.raises(ManifestRefused, match="too many files"):
            await machine.fetch("org/name", hub)
        assert len(hub.stats.asked(contains="/tree/")) <= 12
    assert not machine.cache.exists()


BOMBS = {
    "deep": "[" * 200_000,
    "deep closed": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a":' * 100_000,
    "deep inside": '[{"type":"file","path":"a","size":2,"oid":' + "[" * 100_000 + "]" * 100_000 + "}]",
    "huge number": '[{"type":"file","path":"a","size":' + "9" * 100_000 + "}]",
    "not an object": '["a", 1, null]',
    "null": "null",
    "not utf-8": "[\udcff]".encode("utf-8", "surrogatepass").decode("latin-1"),
    "wrong types": '[{"type":"file","path":["a"],"size":"2","oid":{}}]',
    "empty": "",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("where", ["revision", "tree"])
async def test_08_json_bomb(machine: Machine, bomb: str, where: str) -> None:
    async with TestHub([make_repo("org/name", {"a": GOOD})]) as hub:
        hub.inject(status(200, text=bomb, path="*/tree/*" if where == "tree" else "/api/models/org/name*"))
        with pytest.raises((Unreachable, ManifestRefused)) as caught:
            await machine.fetch("org/name", hub)
    assert len(str(caught.value)) < 1000


async def test_08_json_bomb_at_the_command_line(machine: Machine) -> None:
    async with TestHub([make_repo("org/name", {"a": GOOD})]) as hub:
        hub.inject(status(200, text=BOMBS["deep closed"], path="*/tree/*"))
        ran = await machine.run("fetch", "org/name", hubs=(hub,))
    assert ran.code in (5, 6)
    assert ran.out == ""


PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Runs a command; its exit code and peak in KiB. A process of its own: children of the tests' are counted there too."""


async def test_08_compressed_json_bomb(machine: Machine) -> None:
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(b"A" * (1 << 20)) for _ in range(160)) + packer.flush()
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}

    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bomb, headers=headers)

    listener = Listener(answer)
    await listener.start()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PEAK, sys.executable, "-m", "edgecdn", "fetch", "org/name",
            cwd=ROOT, env={"PATH": os.environ["PATH"], "NO_PROXY": "*", **machine.environment(listener.url)},
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
    finally:
        await listener.stop()
    code, peak_kib = map(int, out.split())
    assert code in (5, 6)
    assert peak_kib < 400 << 10


SIZES = [0, 1, *(n + d for n in (16 << 10, 1 << 20, 16 << 20) for d in (-1, 0, 1))]


@pytest.mark.parametrize("lfs", [True, False], ids=["lfs", "git"])
async def test_10_sizes_at_every_boundary(machine: Machine, lfs: bool) -> None:
    files = {f"f{size}": b"".join([os.urandom(1 << 10) * (size // 1024), b"z" * (size % 1024)]) for size in SIZES}
    repo = make_repo("org/name", files, lfs=lfs)
    async with TestHub([repo]) as hub:
        fetched = await machine.fetch("org/name", hub)
        assert hub.stats.total <= 1.1 * sum(SIZES)  # the tail of a slow connection may be shared
        assert machine.received == fetched.bytes_total == sum(SIZES)
    assert files_in(fetched.path) == files
