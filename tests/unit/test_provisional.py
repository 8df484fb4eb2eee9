"""Listings that only peers vouch for: remembered, confirmed, by many at a time; a file of nonsense is an empty one."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgecdn.cache.provisional import Provisional
from edgecdn.names import CommitId, RepoId, RepoType

ONE = (RepoId(RepoType.MODEL, "org/name"), CommitId("a" * 40))
TWO = (RepoId(RepoType.DATASET, "org/name"), CommitId("a" * 40))


def test_added_then_confirmed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert Provisional(home).all() == []
    assert ONE not in Provisional(home)
    Provisional(home).add(*ONE)
    Provisional(home).add(*ONE)
    Provisional(home).add(*TWO)
    assert Provisional(home).all() == [ONE, TWO]
    Provisional(home).confirm(*ONE)
    assert ONE not in Provisional(home)
    assert TWO in Provisional(home)
    Provisional(home).confirm(*TWO)
    assert not (home / "provisional.json").exists()


def test_confirming_what_was_never_claimed_writes_nothing(tmp_path: Path) -> None:
    Provisional(tmp_path / "home").confirm(*ONE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"[", b"\xff\xfe", b"{}", b'[{"type":"model"}]'])
def test_nonsense_is_replaced(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "provisional.json").write_bytes(data)
    assert Provisional(tmp_path).all() == []
    Provisional(tmp_path).add(*ONE)
    assert Provisional(tmp_path).all() == [ONE]


def test_a_row_of_nonsense_is_passed_over(tmp_path: Path) -> None:
    good = {"type": "model", "name": "org/name", "commit": "a" * 40}
    rows = [{**good, "type": "x"}, {**good, "name": "../x"}, {**good, "commit": "zz"}, good]
    (tmp_path / "provisional.json").write_text(json.dumps(rows))
    assert Provisional(tmp_path).all() == [ONE]


def test_fetches_at_the_same_time_do_not_undo_each_other(tmp_path: Path) -> None:
    pairs = [(RepoId(RepoType.MODEL, f"org/n{number}"), CommitId(f"{number:040x}")) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda pair: Provisional(tmp_path).add(*pair), pairs))
        assert set(Provisional(tmp_path).all()) == set(pairs)
        list(threads.map(lambda pair: Provisional(tmp_path).confirm(*pair), pairs[:39]))
    assert Provisional(tmp_path).all() == pairs[39:]
