"""`ls` and `pin`."""

from __future__ import annotations

from pathlib import Path

from tests.cli.machine import SMALL, TINY, Machine, download
from tests.hub import HubProcess

KEYS = {"repo", "type", "size", "files", "commits", "pinned", "brought_bytes", "partial_bytes"}


def test_empty_cache_is_no_error(machine: Machine) -> None:
    done = machine("ls")
    assert (done.code, done.out) == (0, "")
    assert "Nothing is in the cache" in done.err
    assert machine("ls", "--json").json == []


def test_lists_who_brought_what(machine: Machine, hub: HubProcess) -> None:
    machine.fetch(TINY)
    download(hub, machine.cache, SMALL)
    tiny, small = sorted(machine("ls", "--json").json, key=lambda row: -row["size"])
    assert set(tiny) == KEYS
    assert (tiny["repo"], tiny["type"], tiny["files"], tiny["pinned"]) == (TINY, "model", 3, False)
    assert tiny["brought_bytes"] == tiny["size"] > 4 << 20
    assert small["brought_bytes"] == 0 < small["size"]
    [commit] = tiny["commits"]
    assert (commit["refs"], commit["files"], commit["complete"]) == (["main"], 3, True)
    text = machine("ls").out
    assert [line.split()[-1] for line in text.splitlines()] == ["other", "edgecdn"]


def test_one_repo_with_its_files(machine: Machine) -> None:
    snapshot = machine.fetch(TINY, "--include", "*.json")
    row = machine("ls", "tiny", "--json").json
    [commit] = row["commits"]
    assert commit["complete"] is False
    assert commit["path"] == str(snapshot)
    assert [(f["path"], f["by"]) for f in commit["listing"]] == [("config.json", "edgecdn")]
    assert "config.json" in machine("ls", f"{TINY}@{commit['commit'][:9]}").out
    assert machine("ls", f"{TINY}@nope").code == 3
    missing = machine("ls", "org/tinny")
    assert missing.code == 3
    assert f"Did you mean {TINY}?" in missing.err


def test_broken_caches_are_listed_as_far_as_they_go(machine: Machine, tmp_path: Path) -> None:
    machine.fetch(SMALL)
    (tmp_path / "elsewhere").mkdir()
    (machine.cache / "models--evil--link").symlink_to(tmp_path / "elsewhere")
    (machine.cache / "models--a--file").write_text("no folder")
    (machine.cache / "models--half--there" / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (machine.cache / "models--half--there" / "snapshots" / ("0" * 40) / "gone.bin").symlink_to(
        "../../blobs/" + "a" * 40
    )
    done = machine("ls", "--json")
    assert done.code == 0
    assert {row["repo"] for row in done.json} == {SMALL, "half/there"}
    assert "evil/link is left out" in done.err
    assert "a/file is left out" in done.err
    assert machine("ls").code == 0
    assert "missing" in machine("ls", "half/there").out


def test_pins_outlive_the_catalog(machine: Machine) -> None:
    snapshot = machine.fetch(SMALL)
    assert machine("pin", "small").code == 0
    assert machine("pin", f"{TINY}@main").code == 0
    for lost in machine.home.glob("catalog.sqlite*"):
        lost.unlink()
    assert machine("pin", "--json").json == [
        {"repo": SMALL, "type": "model", "revision": None, "cached": True},
        {"repo": TINY, "type": "model", "revision": "main", "cached": False},
    ]
    [row] = machine("ls", "--json").json
    assert row["pinned"] is True
    refused = machine("rm", "small", "--yes")
    assert refused.code == 2
    assert f"edgecdn unpin {SMALL}" in refused.err
    assert (snapshot / "config.json").exists()
    assert machine("unpin", "small").code == 0
    assert "was not pinned" in machine("unpin", "small").err
    assert [pin["repo"] for pin in machine("pin", "--json").json] == [TINY]


def test_pin_of_a_commit_keeps_that_commit(machine: Machine) -> None:
    commit = machine.fetch(SMALL).name
    assert machine("pin", f"{SMALL}@{commit[:8]}").code == 0
    assert machine("pin", "--json").json[0]["revision"] == commit
    for name in (SMALL, f"{SMALL}@main", f"{SMALL}@{commit}"):
        assert machine("rm", name, "--yes").code == 2
    assert machine("unpin", f"{SMALL}@{commit[:8]}").code == 0
    assert machine("rm", SMALL, "--yes").code == 0


def test_unreadable_pins_stop_removal(machine: Machine) -> None:
    machine.fetch(SMALL)
    (machine.home / "pins.json").write_text("{")
    before = machine.blobs(SMALL)
    for command in (("rm", SMALL, "--yes"), ("gc",), ("pin", TINY)):
        assert machine(*command).code == 2
    assert machine.blobs(SMALL) == before
    assert (machine.home / "pins.json").read_text() == "{"


def test_unknown_short_name(machine: Machine) -> None:
    done = machine("pin", "nothing-like-that")
    assert done.code == 3
    assert "nothing-like-that" in done.err


def test_nothing_there_is_said(machine: Machine) -> None:
    assert "Nothing is pinned." in machine("pin").err
    assert "Nothing to verify in" in machine("verify").err
    blobs = machine.folder(SMALL) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{'b' * 64}.incomplete").write_bytes(b"x" * 5000)
    assert "nothing complete yet" in machine("ls", SMALL).err
    absent = machine("pin", "org/smal")
    assert absent.code == 0
    assert f"(not in the cache yet). Did you mean {SMALL}?" in absent.err
