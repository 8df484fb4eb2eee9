"""What a fetch leaves is a native entry of the Hugging Face cache, as every hub client reads it."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from edgecdn.errors import BadInput, EdgecdnError
from edgecdn.events import FetchPlanned
from edgecdn.fileset import FileSet
from tests.faults.machine import Machine, contents, files_in
from tests.hub import Generated, TestHub, dry_up, make_repo

MIXED = make_repo(
    "org/name",
    {
        "config.json": b"{}",
        "model.safetensors": Generated(1, (1 << 20) + 17),
        "pytorch_model.bin": Generated(2, 300_000),
        "onnx/model.onnx": b"onnx",
        "a/b/c/deep.txt": b"deep",
        "copy/config.json": b"{}",
        "copy/model.safetensors": Generated(1, (1 << 20) + 17),
        "empty.txt": b"",
    },
)
LEFT_OUT = {"pytorch_model.bin", "onnx/model.onnx"}
EXPECTED = {name: data for name, data in contents(MIXED).items() if name not in LEFT_OUT}


async def _call(function: Any, *arguments: Any, **options: Any) -> Any:
    return await asyncio.to_thread(function, *arguments, **options)


def _healthy(machine: Machine) -> None:
    found = scan_cache_dir(machine.cache)
    assert not found.warnings
    assert len(found.repos) == 1


async def test_default_set_offline(machine: Machine) -> None:
    async with TestHub([MIXED]) as hub:
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == EXPECTED
    assert machine.offline(ignore_patterns=["*.bin", "onnx/*"]) == Path(fetched.path)
    assert machine.offline() is None  # not all of it is here, and the listing says so
    path = hf_hub_download("org/name", "a/b/c/deep.txt", cache_dir=machine.cache, local_files_only=True)
    assert Path(path).read_bytes() == b"deep"
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("org/name", "pytorch_model.bin", cache_dir=machine.cache, local_files_only=True)
    tree = json.loads((machine.repo_dir() / f"trees/{MIXED.main}.json").read_text())
    assert set(tree["files"]) == set(contents(MIXED))
    assert tree["files"]["model.safetensors"]["lfs_size"] == (1 << 20) + 17
    _healthy(machine)


async def test_all_formats_unfiltered_offline(machine: Machine) -> None:
    async with TestHub([MIXED]) as hub:
        await machine.fetch("org/name", hub)
        sent = hub.stats.total
        fetched = await machine.fetch("org/name", hub, wanted=FileSet(all_formats=True))
        assert hub.stats.total - sent == 300_004  # only what was left out before
    assert machine.offline() == Path(fetched.path)
    assert files_in(fetched.path) == contents(MIXED)
    _healthy(machine)


async def test_include_and_exclude(machine: Machine) -> None:
    async with TestHub([MIXED]) as hub:
        fetched = await machine.fetch("org/name", hub, wanted=FileSet(("*.json", "onnx/"), ("copy/*",)))
        assert files_in(fetched.path) == {"config.json": b"{}", "onnx/model.onnx": b"onnx"}
    assert machine.offline(allow_patterns=["config.json", "onnx/*"]) == Path(fetched.path)
    _healthy(machine)


async def test_same_bytes_under_several_paths_come_once(machine: Machine) -> None:
    async with TestHub([MIXED]) as hub:
        fetched = await machine.fetch("org/name", hub)
        assert hub.stats.total == (1 << 20) + 17 + 2 + 4
    assert sum(fetched.bytes_by_source.values()) == fetched.bytes_total == sum(map(len, EXPECTED.values()))
    links = [Path(fetched.path, name) for name in ("model.safetensors", "copy/model.safetensors")]
    assert links[0].resolve() == links[1].resolve()
    assert not links[1].readlink().is_absolute()


async def test_hf_cache_verify_accepts(machine: Machine) -> None:
    async with TestHub([MIXED]) as hub:
        await machine.fetch("org/name", hub, wanted=FileSet(all_formats=True))
        verify = HfApi(endpoint=hub.url, token=False).verify_repo_checksums
        seen = await _call(verify, "org/name", repo_type="model", revision="main", cache_dir=machine.cache)
    assert seen.checked_count == len(contents(MIXED))
    assert not seen.mismatches
    assert not seen.missing_paths
    assert not seen.extra_paths


async def test_online_client_downloads_nothing_more(machine: Machine) -> None:
    async with TestHub([MIXED]) as hub:
        fetched = await machine.fetch("org/name", hub, wanted=FileSet(all_formats=True))
        sent = hub.stats.total
        options = {"cache_dir": machine.cache, "endpoint": hub.url, "token": False}
        assert await _call(snapshot_download, "org/name", **options) == fetched.path
        assert hub.stats.total == sent


async def test_edgecdn_completes_what_a_client_began(machine: Machine) -> None:
    async with TestHub([MIXED]) as hub:
        options = {"cache_dir": machine.cache, "endpoint": hub.url, "token": False}
        await _call(hf_hub_download, "org/name", "model.safetensors", **options)
        sent = hub.stats.total
        fetched = await machine.fetch("org/name", hub)
        assert hub.stats.total - sent == 2 + 4
    assert files_in(fetched.path) == EXPECTED
    assert fetched.bytes_by_source["cache"] > 1 << 20
    _healthy(machine)


@pytest.mark.parametrize("typed", ["main", "dev/x", "v1.0", "refs/pr/1", "COMMIT"])
async def test_revisions(machine: Machine, typed: str) -> None:
    repo = make_repo("org/name", {"config.json": b"{}"})
    target = repo.add_commit({"config.json": b'{"at": 1}'}, branch="dev/x")
    repo.branches["main"] = repo.tags["v1.0"] = repo.pull_requests["refs/pr/1"] = target
    revision = typed.replace("COMMIT", target)
    async with TestHub([repo]) as hub:
        fetched = await machine.fetch(f"org/name@{revision}", hub)
    assert fetched.commit == target
    assert machine.offline(revision=revision) == Path(fetched.path)
    refs = [path for path in (machine.repo_dir() / "refs").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in refs] == ([] if typed == "COMMIT" else [target.encode()])
    _healthy(machine)


async def test_two_commits_share_blobs(machine: Machine) -> None:
    repo = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(3, 1 << 20)})
    async with TestHub([repo]) as hub:
        one = await machine.fetch("org/name", hub)
        repo.add_commit({"config.json": b'{"two": 2}'})
        sent = hub.stats.total
        two = await machine.fetch("org/name", hub)
        assert hub.stats.total - sent == len(b'{"two": 2}')
    assert files_in(one.path)["config.json"] == b"{}"
    assert files_in(two.path) == contents(repo)
    assert machine.ref() == repo.main
    _healthy(machine)


async def test_data_set(machine: Machine) -> None:
    repo = make_repo("org/data", {"README.md": b"#", "data/x.parquet": b"p", "weights.bin": b"b"}, repo_type="dataset")
    async with TestHub([repo]) as hub:
        fetched = await machine.fetch("datasets/org/data", hub)
    assert fetched.type == "dataset"
    assert files_in(fetched.path) == contents(repo)
    assert machine.offline("org/data", repo_type="dataset") == Path(fetched.path)
    assert (machine.cache / "datasets--org--data").is_dir()
    _healthy(machine)


async def test_local_dir(machine: Machine, tmp_path: Path) -> None:
    target = tmp_path / "here"
    async with TestHub([MIXED]) as hub:
        machine.own(target / "notes.txt", b"mine")
        fetched = await machine.fetch("org/name", hub, local_dir=target)
        assert fetched.path == str(target)
        assert files_in(target) == {**EXPECTED, "notes.txt": b"mine"}
        assert not any(path.is_symlink() for path in target.rglob("*"))
        sent = hub.stats.total
        options = {"local_dir": target, "endpoint": hub.url, "token": False, "ignore_patterns": ["*.bin", "onnx/*"]}
        await _call(snapshot_download, "org/name", **options)  # takes the folder as its own
        assert hub.stats.total == sent
        (target / "config.json").write_bytes(b"edited")
        with pytest.raises(BadInput, match=r"config\.json"):
            await machine.fetch("org/name", hub, local_dir=target)
    assert (target / "config.json").read_bytes() == b"edited"
    assert (machine.repo_dir() / "snapshots" / MIXED.main / "config.json").read_bytes() == b"{}"


async def test_users_file_where_a_link_belongs_is_kept(machine: Machine) -> None:
    mine = machine.repo_dir() / "snapshots" / MIXED.main / "config.json"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    async with TestHub([MIXED]) as hub:
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == EXPECTED
    assert [path.read_bytes() for path in (machine.home / "quarantine").iterdir()] == [b"mine"]
    assert "is kept as" in machine.said


async def test_a_refused_fetch_leaves_no_empty_folder(machine: Machine) -> None:
    async with TestHub([make_repo("org/name", {"a": b"a"}, gated=True)]) as hub:
        with pytest.raises(EdgecdnError):
            await machine.fetch("org/name", hub)
    assert not machine.repo_dir().exists()


async def test_a_local_dir_in_the_cache_is_refused(machine: Machine) -> None:
    async with TestHub([make_repo("org/name", {"a": b"a"})]) as hub:
        with pytest.raises(BadInput, match="lies in"):
            await machine.fetch("org/name", hub, local_dir=machine.cache / "x" / "..")
        assert hub.stats.total == 0


async def _left_halfway(machine: Machine, hub: TestHub) -> None:
    """A fetch that was stopped when a part of the file was here."""
    hub.inject(dry_up(4 << 20, route="cdn"))
    job = asyncio.create_task(machine.fetch("org/name", hub))
    async with asyncio.timeout(20):
        while not machine.kept():
            await asyncio.sleep(0.01)
    job.cancel()
    await asyncio.wait([job])
    assert job.cancelled()


async def test_what_the_user_removed_is_not_counted_as_here(machine: Machine) -> None:
    """The journal of a partial file outlives it."""
    repo = make_repo("org/name", {"m.safetensors": Generated(3, 8 << 20)})
    async with TestHub([repo]) as hub:
        await _left_halfway(machine, hub)
        assert machine.partials()
        shutil.rmtree(machine.repo_dir())
        assert list(machine.home.glob("partials/*/*.journal"))
        machine.events.clear()
        hub.clear()
        await machine.fetch("org/name", hub)
    planned = next(event for event in machine.events if isinstance(event, FetchPlanned))
    assert (planned.bytes_here, machine.received) == (0, 8 << 20)


async def test_a_resumed_fetch_counts_what_is_here(machine: Machine) -> None:
    repo = make_repo("org/name", {"m.safetensors": Generated(3, 8 << 20)})
    async with TestHub([repo]) as hub:
        await _left_halfway(machine, hub)
        kept = machine.received
        machine.events.clear()
        hub.clear()
        await machine.fetch("org/name", hub)
    planned = next(event for event in machine.events if isinstance(event, FetchPlanned))
    assert 0 < planned.bytes_here <= kept
    assert planned.bytes_here + machine.received == 8 << 20
