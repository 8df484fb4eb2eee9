"""`rm` and `gc`: what edgecdn brought goes, what anybody else placed never does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from edgecdn.cache.locks import FileLock
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import open_repo
from edgecdn.names import RepoId
from edgecdn.pipeline import partials_name
from tests.cli.machine import MOVING, SMALL, TINY, Machine, download, scan_warnings
from tests.hub import HubProcess

OLD_S = time.time() - 30 * 86400


def test_removes_all_it_brought(machine: Machine) -> None:
    machine.fetch(TINY)
    machine.fetch(SMALL)
    before = machine.blobs(TINY)
    dry = machine("rm", TINY, "--dry-run")
    assert dry.code == 0
    assert "Would remove 3 files" in dry.out
    assert machine.blobs(TINY) == before
    done = machine("rm", TINY, "--yes", "--json").json
    assert sorted(done["removed"]) == sorted(before)
    assert done["removed_bytes"] == sum(map(len, before.values()))
    assert not machine.folder(TINY).exists()
    assert machine.folder(SMALL).exists()
    assert scan_warnings(machine.cache) == []
    assert machine("rm", TINY, "--yes").code == 3


def test_asks_first_and_not_where_nobody_answers(machine: Machine) -> None:
    machine.fetch(SMALL)
    refused = machine.process("rm", SMALL)
    assert refused.code == 2
    assert "--yes" in refused.err
    assert machine.blobs(SMALL)


def test_never_what_the_hub_client_downloaded(machine: Machine, hub: HubProcess) -> None:
    snapshot = download(hub, machine.cache, TINY)
    machine.fetch(TINY)  # finds all there, verifies it, brings nothing
    before = machine.blobs(TINY)
    done = machine("rm", TINY, "--yes")
    assert done.code == 0
    assert "hf cache rm" in done.err
    assert machine("gc", "--older-than", "0").code == 0
    assert machine.blobs(TINY) == before
    assert len(list(snapshot.iterdir())) == 3
    assert (machine.folder(TINY) / "refs/main").exists()
    assert scan_warnings(machine.cache) == []


def test_a_mixed_snapshot_keeps_the_foreign_part(machine: Machine, hub: HubProcess) -> None:
    name = "model-00001-of-00002.safetensors"
    download(hub, machine.cache, TINY, allow_patterns=[name])
    snapshot = machine.fetch(TINY)
    done = machine("rm", TINY, "--yes", "--json").json
    assert done["kept_files"] == 1
    assert [p.name for p in snapshot.iterdir()] == [name]
    assert (snapshot / name).stat().st_size == 2 << 20
    assert (machine.folder(TINY) / "refs/main").exists()
    assert len(machine.blobs(TINY)) == 1
    assert scan_warnings(machine.cache) == []


def test_a_file_that_was_replaced_since_is_not_ours(machine: Machine, hub: HubProcess) -> None:
    machine.fetch(SMALL)
    blob = machine.large_blob(SMALL)
    blob.unlink()
    download(hub, machine.cache, SMALL)
    assert machine("verify", SMALL).code == 0  # edgecdn has seen the new file, and did not bring it
    machine("rm", SMALL, "--yes")
    assert blob.exists()


def test_one_commit_of_two(machine: Machine, hub: HubProcess) -> None:
    first = machine.fetch(MOVING)
    hub.add_commit(MOVING, {"extra.json": os.urandom(16).hex().encode()})
    second = machine.fetch(MOVING)
    assert first != second
    shared = machine.large_blob(MOVING)
    assert machine("rm", f"{MOVING}@{second.name[:10]}", "--yes").code == 0
    assert not second.exists()
    assert not (machine.folder(MOVING) / "refs/main").exists()
    assert not (machine.folder(MOVING) / "trees" / f"{second.name}.json").exists()
    assert shared.exists()
    assert (first / "config.json").read_bytes()
    assert scan_warnings(machine.cache) == []
    assert machine("rm", f"{MOVING}@{first.name}", "--yes").code == 0
    assert not machine.folder(MOVING).exists()


def test_killed_between_links_and_blobs(machine: Machine, hub: HubProcess) -> None:
    commit = machine.fetch(TINY).name
    assert machine.process("rm", TINY, "--yes", EDGECDN_CRASH="rm.1").code == -signal.SIGKILL
    assert len(machine.blobs(TINY)) == 3
    assert scan_warnings(machine.cache) == []
    with pytest.raises(Exception, match="(?i)incomplete|cannot find|missing"):
        download(hub, machine.cache, TINY, revision=commit, local_files_only=True)
    assert machine("rm", TINY, "--yes").code == 0
    assert not machine.folder(TINY).exists()


def test_killed_removal_is_finished_by_gc(machine: Machine) -> None:
    machine.fetch(TINY)
    machine.process("rm", TINY, "--yes", EDGECDN_CRASH="rm.1")
    assert machine("gc", "--json").json == []  # young: it might be a fetch that will go on
    gone = machine("gc", "--older-than", "0s", "--json").json
    assert {row["what"] for row in gone} == {"blob"}
    assert machine.blobs(TINY) == {}


def _state(machine: Machine, repo: str) -> Path:
    with open_repo(machine.cache, RepoId.from_folder(machine.folder(repo).name)) as store:
        return machine.home / "partials" / partials_name(store)


def test_a_running_fetch_is_left_alone(machine: Machine) -> None:
    machine.fetch(SMALL)
    before = machine.blobs(SMALL)
    with SafeDir.at(_state(machine, SMALL)) as state:
        lock = FileLock(state, "job.lock")
        assert lock.try_acquire()
        busy = machine("rm", SMALL, "--yes")
        assert busy.code == 2
        assert "being fetched right now" in busy.err
        assert "left alone" in machine("gc", "--older-than", "0").err
        lock.release()
    assert machine.blobs(SMALL) == before


def _interrupted(machine: Machine) -> Path:
    """A fetch that was killed, long ago; returns its partial file."""
    machine.process("fetch", TINY, "--include", "model-00001*", EDGECDN_CRASH="partial.journaled")
    [partial] = (machine.folder(TINY) / "blobs").glob("*.incomplete")
    return partial


def _age(machine: Machine) -> None:
    for path in (*(machine.folder(TINY) / "blobs").iterdir(), *_state(machine, TINY).iterdir()):
        os.utime(path, (OLD_S, OLD_S))


def test_gc_takes_abandoned_partials_of_ours_only(machine: Machine) -> None:
    ours = _interrupted(machine)
    theirs = ours.with_name(f"{'b' * 64}.12345678.incomplete")
    theirs.write_bytes(b"another client's")
    older = ours.with_name(f"{'c' * 64}.incomplete")
    older.write_bytes(b"an old client's")
    assert machine("gc", "--json").json == []
    _age(machine)
    [dry] = machine("gc", "--dry-run", "--json").json
    assert (dry["what"], dry["name"], dry["repo"]) == ("partial", ours.name, TINY)
    assert dry["bytes"] > 0
    assert ours.exists()
    assert machine("gc").code == 0
    assert not ours.exists()
    assert not list(_state(machine, TINY).glob("*.journal"))
    assert theirs.exists()
    assert older.exists()


def test_a_partial_of_what_another_tool_brought_meanwhile_is_rubbish(machine: Machine, hub: HubProcess) -> None:
    ours = _interrupted(machine)
    [row] = machine("ls", "--json").json
    assert row["partial_bytes"] > 0
    download(hub, machine.cache, TINY)
    [row] = machine("ls", "--json").json
    assert row["partial_bytes"] == 0
    assert "partial" not in machine("ls").out
    [check] = [row for row in machine("doctor", "--json").json if row["check"] in ("cache partial", "cache leftover")]
    assert (check["check"], "fetch" in check["remedy"]) == ("cache leftover", False)
    [gone] = machine("gc", "--json").json
    assert (gone["what"], gone["name"], gone["why"]) == ("partial", ours.name, "the whole file is here")
    assert not ours.exists()
    assert not list(_state(machine, TINY).glob("*.journal"))
    assert len(machine.blobs(TINY)) == 3
    assert "leftover" not in machine("doctor").out


def test_gc_takes_journals_that_speak_of_nothing(machine: Machine) -> None:
    _interrupted(machine).unlink()
    [row] = machine("gc", "--json").json
    assert row["what"] == "journal"
    assert not list(_state(machine, TINY).glob("*.journal"))


def test_gc_takes_old_journals_of_repos_that_are_gone(machine: Machine) -> None:
    _interrupted(machine)
    _age(machine)
    machine.folder(TINY).rename(machine.cache.parent / "moved-away")
    [row] = machine("gc", "--json").json
    assert row["why"] == "its repo is gone"
    assert not list(machine.home.glob("partials/*/*.journal"))


def test_gc_spares_blobs_of_pinned_repos(machine: Machine) -> None:
    machine.fetch(TINY)
    machine.process("rm", TINY, "--yes", EDGECDN_CRASH="rm.1")
    machine("pin", TINY)
    _age(machine)
    assert machine("gc", "--older-than", "0", "--json").json == []
    assert len(machine.blobs(TINY)) == 3


def test_rm_takes_partials_too(machine: Machine) -> None:
    partial = _interrupted(machine)
    foreign = partial.with_name(f"{'b' * 64}.12345678.incomplete")
    foreign.write_bytes(b"another client's")
    assert machine("rm", TINY, "--yes").code == 0
    assert not partial.exists()
    assert foreign.exists()


def test_planted_links_lead_nowhere(machine: Machine, tmp_path: Path) -> None:
    snapshot = machine.fetch(SMALL)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "keep.txt").write_text("mine")
    (snapshot / "out").symlink_to(victim)
    (machine.folder(SMALL) / "refs" / "up").symlink_to(victim)
    machine("rm", SMALL, "--yes")
    assert (victim / "keep.txt").read_text() == "mine"
    assert (snapshot / "out").is_symlink()


def test_quarantine_is_emptied_only_when_asked(machine: Machine) -> None:
    aside = machine.home / "quarantine"
    aside.mkdir(parents=True)
    (aside / "rotten").write_bytes(b"x" * 1000)
    [row] = [row for row in machine("doctor", "--json").json if row["check"] == "quarantine"]
    assert (row["state"], "1 file" in row["detail"]) == ("warn", True)
    machine("gc", "--older-than", "0")
    assert [r["bytes"] for r in machine("gc", "--quarantine", "--dry-run", "--json").json] == [1000]
    assert (aside / "rotten").exists()
    assert machine("gc", "--quarantine").code == 0
    assert not list(aside.iterdir())


def test_a_wrong_age_says_what_it_takes(machine: Machine) -> None:
    wrong = machine("gc", "--older-than", "long")
    assert wrong.code == 2
    assert "It takes seconds, or 90s" in wrong.err
