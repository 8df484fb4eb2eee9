"""`mirrors` and `doctor`, against hubs that answer, lag, misbehave and are not there."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from edgecdn.cache.health import Oddity
from edgecdn.upkeep import diagnosis
from edgecdn.upkeep.diagnosis import Check, Heard, State
from tests.cli.machine import SMALL, TINY, Machine
from tests.hub import Fault, HubProcess, Kind

NOBODY = "http://127.0.0.1:9"


def test_a_good_hub_and_modelscope(machine: Machine, hub: HubProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECDN_HUB_MODELSCOPE", hub.modelscope_url)
    done = machine("mirrors", TINY, "--sample-mb", "1", "--json")
    assert done.code == 0
    for report in done.json:
        assert report["reachable"] is True
        assert report["latency_ms"] > 0
        assert report["rate_bytes_s"] > 0
        assert (report["ranges"], report["headers_ok"], report["lag"]) == (True, True, "same")
        assert report["problems"] == []
    assert [report["kind"] for report in done.json] == ["hub", "modelscope"]


def test_one_that_is_down_beside_one_that_is_not(
    machine: Machine, hub: HubProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECDN_HUB_ENDPOINTS", f"{NOBODY},{hub.url}")
    done = machine("mirrors", TINY, "--json")
    assert done.code == 0
    down, up = done.json
    assert (down["reachable"], up["reachable"], up["lag"]) == (False, True, None)
    assert down["problems"]
    states = {row["check"]: row["state"] for row in machine("doctor", "--json").json}
    assert (states[f"hub {NOBODY}"], states[f"hub {hub.url}"]) == ("warn", "ok")


def test_nobody_there(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECDN_HUB_ENDPOINTS", NOBODY)
    done = machine.process("mirrors", "--json", EDGECDN_HUB_ENDPOINTS=NOBODY)
    assert done.code == 6
    assert json.loads(done.out)[0]["reachable"] is False
    assert machine("doctor").code == 6


def test_a_repo_the_hub_does_not_have_is_still_an_answer(machine: Machine) -> None:
    done = machine("mirrors")
    assert done.code == 0
    assert "There is no model" in done.err


@pytest.mark.parametrize(
    ("kind", "field"), [(Kind.IGNORE_RANGE, "ranges"), (Kind.WRONG_ETAG, "headers_ok"), (Kind.GZIP, "headers_ok")]
)
def test_unsound_answers(machine: Machine, hub: HubProcess, kind: Kind, field: str) -> None:
    hub.inject(Fault(kind, path="*.safetensors"))
    try:
        [report] = machine("mirrors", TINY, "--sample-mb", "1", "--json").json
    finally:
        hub.clear()
    assert report["reachable"] is True
    assert report[field] is False
    assert report["problems"]


def test_a_hub_that_stalls_costs_no_more_than_20_s(
    machine: Machine, hub: HubProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecdn.upkeep.probe._PROBE_S", 2.0)
    hub.inject(Fault(Kind.DELAY_FIRST_BYTE, seconds=60, route="api"))
    started = time.monotonic()
    try:
        done = machine("mirrors", TINY)
    finally:
        hub.clear()
    assert done.code == 6
    assert "took longer than" in done.err
    assert time.monotonic() - started < 20


def test_a_mirror_that_lags(machine: Machine, hub: HubProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubProcess("--generate", f"{SMALL}=1x64KiB") as ahead:
        ahead.add_commit(SMALL, {"new.json": b"{}"})
        monkeypatch.setenv("EDGECDN_HUB_ENDPOINTS", f"{ahead.url},{hub.url}")
        assert [r["lag"] for r in machine("mirrors", SMALL, "--json").json] == ["same", "behind"]
        monkeypatch.setenv("EDGECDN_HUB_ENDPOINTS", f"{hub.url},{ahead.url}")
        assert [r["lag"] for r in machine("mirrors", SMALL, "--json").json] == ["same", "other"]


def test_doctor_on_a_well_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.fetch(SMALL)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    done = machine("doctor")
    assert done.code == 0, done.out
    assert "FAIL" not in done.out
    assert "present, sent to" in done.out
    assert "secret" not in done.out + done.err
    rows = machine("doctor", "--json").json
    assert all(set(row) == {"check", "state", "detail", "remedy"} for row in rows)
    names = {row["check"] for row in rows}
    assert {"cache.dir space", "cache.dir inodes", "cache.dir writable", "clock", "token", "cache", "catalog"} <= names


def test_doctor_sees_what_is_odd(machine: Machine) -> None:
    snapshot = machine.fetch(SMALL)
    (machine.cache / "notes.txt").write_text("mine")
    (machine.cache / "models--evil--link").symlink_to(machine.home)
    (machine.folder(SMALL) / "refs" / "gone").write_text("1" * 40)
    (machine.folder(SMALL) / "blobs" / f"{'b' * 64}.incomplete").write_bytes(b"x" * 5000)
    (machine.folder(SMALL) / "trees" / f"{snapshot.name}.json").unlink()
    machine.large_blob(SMALL).unlink()
    done = machine("doctor", "--json")
    states = {row["check"]: row["state"] for row in done.json}
    assert {name: states[f"cache {name}"] for name in ("foreign", "linked-repo", "broken-link", "lost-ref")} == {
        "foreign": "warn",
        "linked-repo": "fail",
        "broken-link": "warn",
        "lost-ref": "warn",
    }
    assert {"cache partial", "cache no-tree"} <= set(states)
    assert all(row["remedy"] for row in done.json if row["state"] != "ok")
    assert done.code == 5


def test_doctor_and_a_broken_catalog(machine: Machine) -> None:
    machine.fetch(SMALL)
    for path in machine.home.glob("catalog.sqlite-*"):
        path.unlink()
    (machine.home / "catalog.sqlite").write_bytes(b"not a database" * 1000)
    [row] = [row for row in machine("doctor", "--json").json if row["check"] == "catalog"]
    assert row["state"] == "warn"


def test_a_cache_folder_that_is_no_folder(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = machine.cache.parent / "blocked"
    blocked.write_text("a file")
    monkeypatch.setenv("EDGECDN_CACHE_DIR", str(blocked))
    assert machine("doctor").code == 7


class TestDiagnosis:
    """Verdicts, from facts alone."""

    def test_space(self, tmp_path: Path) -> None:
        states = [diagnosis.space("cache.dir", tmp_path, free, 10**12).state for free in (0, 10**9, 10**11)]
        assert states == [State.FAIL, State.WARN, State.OK]
        told = diagnosis.space("cache.dir", tmp_path, 63_400_000, 10**8).detail
        assert told == f"only 63.4 MB of 100 MB are free for {tmp_path}; 64.0 MB must be, beyond what a fetch brings"
        assert diagnosis.inodes("home", tmp_path, 0, 0).state is State.OK
        assert diagnosis.inodes("home", tmp_path, 0, 100).state is State.FAIL

    @pytest.mark.parametrize(("off", "state"), [(10, "ok"), (-299, "ok"), (301, "warn"), (-4000, "warn")])
    def test_clock(self, off: float, state: str) -> None:
        check = diagnosis.clock(Heard("http://hub", "", 200, True, 1.0, off))
        assert check.state == state
        assert bool(check.remedy) == (state == "warn")

    def test_a_login_page_is_no_hub(self) -> None:
        [check] = diagnosis.endpoints([Heard("http://hub", "", 200, is_hub=False)], offline="")
        assert check.state is State.FAIL
        assert "login page" in check.detail

    def test_token(self) -> None:
        assert diagnosis.token(present=True, owner=None).state is State.WARN
        assert diagnosis.token(present=False, owner="http://hub").state is State.OK

    def test_the_gravest_decides(self) -> None:
        failing = [
            Check("a", State.FAIL, "", "", 6),
            Check("b", State.FAIL, "", "", 7),
            Check("c", State.WARN, "", "", 5),
        ]
        assert [diagnosis.exit_code(failing[:n]) for n in (0, 1, 2, 3)] == [0, 6, 7, 7]

    def test_many_oddities_are_summed(self) -> None:
        [check] = diagnosis.cache([Oddity("partial", f"a/{n}", 1000) for n in range(9)])
        assert check.detail.startswith("9 repos")
        assert check.detail.endswith("...")
