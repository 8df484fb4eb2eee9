"""`verify`: rot is found, set aside, healed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgecdn.errors import IntegrityFailure
from tests.cli.machine import SMALL, TINY, Machine, download, scan_warnings
from tests.hub import HubProcess, status


def _flip(blob: Path) -> bytes:
    """One bit, as a disk would: size and time stay."""
    seen, data = blob.stat(), bytearray(blob.read_bytes())
    good = bytes(data)
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    os.utime(blob, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    return good


def test_all_right(machine: Machine, hub: HubProcess) -> None:
    machine.fetch(TINY)
    download(hub, machine.cache, SMALL)
    rows = machine("verify", "--json").json
    assert all(row["ok"] and row["quarantined"] is None for row in rows)
    assert {row["repo"] for row in rows} == {TINY, SMALL}
    assert {path for row in rows for path in row["paths"]} >= {"config.json", "model-00001-of-00001.safetensors"}


def test_rot_is_set_aside_and_healed(machine: Machine) -> None:
    snapshot = machine.fetch(TINY)
    blob = machine.large_blob(TINY)
    good = _flip(blob)
    found = machine("verify", TINY, "--json")
    assert found.code == IntegrityFailure.exit_code == 5
    [bad] = [row for row in found.json if not row["ok"]]
    assert (bad["digest"], bad["size"], bad["missing"]) == (blob.name, len(good), False)
    assert not blob.exists()
    assert Path(bad["quarantined"]).read_bytes() != good
    again = machine("verify", TINY)  # known to be gone
    assert again.code == 5
    assert "missing" in again.out
    healed = machine("verify", TINY, "--refetch")
    assert healed.code == 0, healed.err
    assert blob.read_bytes() == good
    assert all((snapshot / name).exists() for name in ("config.json", "model-00001-of-00002.safetensors"))
    assert scan_warnings(machine.cache) == []
    assert machine("verify").code == 0


def test_refetch_in_one_go_brings_just_what_was_there(machine: Machine) -> None:
    snapshot = machine.fetch(TINY, "--include", "model-00002*")
    good = _flip(machine.large_blob(TINY))
    healed = machine.process("verify", "--refetch")
    assert healed.code == 0, healed.err
    assert "rotten" in healed.out
    assert [p.name for p in snapshot.iterdir()] == ["model-00002-of-00002.safetensors"]
    assert machine.large_blob(TINY).read_bytes() == good


def test_refetch_that_fails_says_why(machine: Machine, hub: HubProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.fetch(SMALL)
    _flip(machine.large_blob(SMALL))
    monkeypatch.setenv("EDGECDN_FETCH_PATIENCE", "1s")
    hub.inject(status(404, {"X-Error-Code": "EntryNotFound"}, route="resolve"))
    try:
        failed = machine("verify", SMALL, "--refetch")
    finally:
        hub.clear()
    assert failed.code in (3, 5, 6)
    assert failed.err
    assert list((machine.home / "quarantine").iterdir())


def test_a_foreign_file_that_rotted_is_kept_aside(machine: Machine, hub: HubProcess) -> None:
    download(hub, machine.cache, SMALL)
    blob = machine.large_blob(SMALL)
    _flip(blob)
    rotten = blob.read_bytes()
    assert machine("verify").code == 5
    [kept] = (machine.home / "quarantine").iterdir()
    assert kept.read_bytes() == rotten


def test_unlinked_blobs_with_all(machine: Machine) -> None:
    snapshot = machine.fetch(SMALL)
    blob = machine.large_blob(SMALL)
    (snapshot / "model-00001-of-00001.safetensors").unlink()
    _flip(blob)
    assert machine("verify").code == 0
    found = machine("verify", "--all", "--json")
    assert found.code == 5
    assert [row["paths"] for row in found.json if not row["ok"]] == [[]]


def test_not_in_the_cache(machine: Machine) -> None:
    assert machine("verify", "org/none").code == 3
    assert machine("verify").code == 0
