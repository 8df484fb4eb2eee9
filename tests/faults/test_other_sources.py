"""Fetching from ModelScope alone, from ModelScope beside a hub, and from a folder of the lab."""

from __future__ import annotations

import pytest

from edgecdn.errors import RepoMissing
from edgecdn.fileset import FileSet
from edgecdn.local_fetch import run_fetch
from edgecdn.names import ModelRef
from edgecdn.settings import load_settings
from tests.faults.machine import Machine, contents, files_in
from tests.hub import Generated, TestHub, make_repo, slow_total

REPO = make_repo("org/name", {"config.json": b"{}", "sub/m.safetensors": Generated(1, 6 << 20)})
NO_HUB = "http://127.0.0.1:9"


async def test_a_repo_that_is_only_on_modelscope(machine: Machine) -> None:
    async with TestHub([REPO], modelscope=True) as hub:
        settings = load_settings(machine.environment(NO_HUB, hub_modelscope=hub.modelscope_url))
        fetched = await run_fetch(ModelRef.parse("org/name"), FileSet(), settings, hub="modelscope")
        assert files_in(fetched.path) == contents(REPO)
        assert fetched.bytes_by_source["origin"] == fetched.bytes_total
        with pytest.raises(RepoMissing):
            await run_fetch(ModelRef.parse("org/none"), FileSet(), settings, hub="modelscope")
    assert machine.offline() is not None


async def test_modelscope_gives_bytes_of_the_same_hash(machine: Machine) -> None:
    large = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(2, 40 << 20)})
    async with TestHub([large], modelscope=True) as hub:
        hub.inject(slow_total(8_000_000, route="cdn"))  # time for ModelScope to be asked, and to be the faster one
        fetched = await machine.fetch("org/name", hub, hub_modelscope=hub.modelscope_url)
        assert files_in(fetched.path) == contents(large)
        assert hub.stats.by_route["modelscope"] > 0
    assert fetched.bytes_by_source["mirror"] > 0


async def test_a_folder_of_the_lab_spares_the_line(machine: Machine) -> None:
    folder = machine.base / "nas" / "org" / "name"
    for path, data in contents(REPO).items():
        machine.own(folder / path, data)
    async with TestHub([REPO]) as hub:
        fetched = await machine.fetch("org/name", hub, local_folders=str(machine.base / "nas"))
        assert files_in(fetched.path) == contents(REPO)
        assert hub.stats.total == 0


async def test_a_stale_folder_costs_nothing_but_a_note(machine: Machine) -> None:
    wrong = dict.fromkeys(contents(REPO), b"")
    for path, data in contents(REPO).items():
        wrong[path] = bytes(len(data))
        machine.own(machine.base / "nas" / "name" / path, wrong[path])
    async with TestHub([REPO]) as hub:
        fetched = await machine.fetch("org/name", hub, local_folders=str(machine.base / "nas"))
    assert files_in(fetched.path) == contents(REPO)
    assert "has other bytes" in machine.said
