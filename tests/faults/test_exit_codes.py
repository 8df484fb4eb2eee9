"""What the command line says and returns, for everything that can go wrong with a fetch."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from tests.faults.machine import TOKEN, Machine, contents, files_in
from tests.hub import Generated, TestHub, dry_up, make_repo, slow_per_connection, status

pytestmark = pytest.mark.timeout(180)

REPO = make_repo("org/name", {"config.json": b"{}", "tokenizer.json": b"{ }", "m.safetensors": Generated(1, 2 << 20)})
LOG_IN = "hf auth login"


async def test_unknown_repo(machine: Machine) -> None:
    async with TestHub([REPO, make_repo("org/bert-base", {"a": b"a"})]) as hub:
        ran = await machine.run("fetch", "org/bert-bsae", hubs=(hub,))
        assert ran.code == 3
        assert "There is no model 'org/bert-bsae'" in ran.err
        near = await machine.run("fetch", "organ/bert-base", hubs=(hub,))
        assert near.code == 3
        assert "Did you mean org/bert-base" in near.err
    assert ran.out == near.out == ""


async def test_unknown_revision(machine: Machine) -> None:
    repo = make_repo("org/name", {"a": b"a"})
    repo.branches["stable"] = repo.main
    async with TestHub([repo]) as hub:
        ran = await machine.run("fetch", "org/name@stabel", hubs=(hub,))
    assert ran.code == 3
    assert "'stabel'" in ran.err
    assert "Did you mean stable" in ran.err


async def test_no_file_matches(machine: Machine) -> None:
    async with TestHub([REPO]) as hub:
        ran = await machine.run("fetch", "org/name", "--include", "tokeniser.json", hubs=(hub,))
    assert ran.code == 3
    assert "tokenizer.json" in ran.err


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_gated(machine: Machine, token: str | None) -> None:
    repo = make_repo("org/gated", {"config.json": b"{}", "m.safetensors": b"x"}, gated="manual")
    variables = {"HF_TOKEN": token} if token else {}
    async with TestHub([repo], tokens={TOKEN: []}) as hub:
        ran = await machine.run("fetch", "org/gated", hubs=(hub,), variables=variables)
        assert ran.code == 4
        assert f"{hub.url}/org/gated" in ran.err
    assert LOG_IN in ran.err


async def test_private(machine: Machine) -> None:
    repo = make_repo("org/private", {"config.json": b"{}"}, private=True)
    async with TestHub([repo], tokens=[TOKEN]) as hub:
        ran = await machine.run("fetch", "org/private", hubs=(hub,))
        assert ran.code == 3  # a hub does not tell a private repo from none
        assert LOG_IN in ran.err
        ran = await machine.run("fetch", "org/private", hubs=(hub,), variables={"HF_TOKEN": TOKEN})
        assert ran.code == 0
        ran = await machine.run("fetch", "org/private", hubs=(hub,), variables={"HF_TOKEN": "hf_wrong"})
        assert ran.code in (3, 4)
        assert LOG_IN in ran.err


async def test_access_lost_between_listing_and_bytes(machine: Machine) -> None:
    async with TestHub([REPO]) as hub:
        hub.inject(status(403, {"X-Error-Message": "Your plan has ended."}, route="resolve"))
        ran = await machine.run("fetch", "org/name", hubs=(hub,))
    assert ran.code == 4
    assert "Your plan has ended." in ran.err


async def test_no_source(machine: Machine) -> None:
    ran = await machine.run("fetch", "org/name", hubs=("http://127.0.0.1:9", "http://nonexistent.invalid"))
    assert ran.code == 6
    assert "127.0.0.1:9" in ran.err
    assert "nonexistent.invalid" in ran.err
    assert "edgecdn doctor" in ran.err


async def test_all_wrong_settings_at_once(machine: Machine) -> None:
    wrong = {"fetch_connections": "many", "fetch_patience": "-1 s", "hub_modelscope": "ftp://x"}
    ran = await machine.run("fetch", "org/name", hubs=("http://u:p@hub",), **wrong)
    assert ran.code == 2
    for name in ("HUB_ENDPOINTS", "FETCH_CONNECTIONS", "FETCH_PATIENCE", "HUB_MODELSCOPE"):
        assert f"EDGECDN_{name}" in ran.err
    assert "u:p" not in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["fetch"],
        ["fetch", "a", "--type", "modle"],
        ["fecth", "a"],
        ["fetch", "a/b", "--from", "moon"],
        ["fetch", "a//b"],
    ],
)
async def test_usage(machine: Machine, arguments: list[str]) -> None:
    ran = await machine.run(*arguments)
    assert ran.code == 2
    assert ran.out == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted(machine: Machine, number: signal.Signals) -> None:
    repo = make_repo("org/name", {"config.json": b"{}", "m.safetensors": Generated(2, 16 << 20)})
    async with TestHub([repo], faults=[slow_per_connection(4e6, route="cdn"), dry_up(12 << 20, route="cdn")]) as hub:
        process = await machine.start("fetch", "org/name", hubs=(hub,))
        async with asyncio.timeout(40):
            while machine.kept() < 4 << 20:
                await asyncio.sleep(0.01)
        process.send_signal(number)
        ran = await machine.finish(process)
        hub.clear()
        if number is signal.SIGINT:
            assert ran.code == 130
            assert "goes on where it stopped" in ran.err
            assert "that arrived in this run are kept" in ran.err
            assert "Traceback" not in ran.err
        else:
            assert ran.code in (130, 143, -signal.SIGTERM)
        assert ran.out == ""
        assert machine.offline() is None
        fetched = await machine.fetch("org/name", hub)
        assert fetched.bytes_by_source["cache"] >= 4 << 20
    assert files_in(fetched.path) == contents(repo)


async def test_interrupted_before_anything(machine: Machine) -> None:
    async with TestHub([REPO]) as hub:
        hub.inject(slow_per_connection(1000, route="cdn"))
        process = await machine.start("fetch", "org/name", hubs=(hub,))
        async with asyncio.timeout(40):
            while not hub.stats.requests:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        ran = await machine.finish(process)
    assert ran.code == 130
    assert "Traceback" not in ran.err


async def test_json(machine: Machine) -> None:
    keys = {"repo", "type", "revision", "commit", "path", "files", "bytes_total", "bytes_by_source", "seconds"}
    async with TestHub([REPO]) as one, TestHub([REPO]) as two:
        for source in ("origin", "cache"):
            ran = await machine.run("fetch", "org/name", "--json", hubs=(one, two))
            assert ran.code == 0
            assert ran.err == ""
            told = json.loads(ran.out)
            assert set(told) == keys
            assert set(told["bytes_by_source"]) == {"cache", "lan", "mirror", "origin"}
            assert sum(told["bytes_by_source"].values()) == told["bytes_total"] == REPO_BYTES
            assert (told["bytes_by_source"]["cache"] == REPO_BYTES) == (source == "cache")
            assert (told["repo"], told["type"], told["revision"]) == ("org/name", "model", "main")
            assert (told["commit"], told["files"]) == (REPO.main, 3)
            assert files_in(told["path"]) == contents(REPO)


REPO_BYTES = sum(file.size for file in REPO.commits[REPO.main].files.values())


async def test_last_line_is_the_path(machine: Machine) -> None:
    async with TestHub([REPO]) as hub:
        ran = await machine.run("fetch", "org/name", hubs=(hub,))
        assert ran.code == 0
        assert ran.out == f"{machine.repo_dir() / 'snapshots' / REPO.main}\n"
        assert "3 files" in ran.err
        quiet = await machine.run("fetch", "org/name", "--quiet", hubs=(hub,))
        assert (quiet.code, quiet.out, quiet.err) == (0, ran.out, "")
