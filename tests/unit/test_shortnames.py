"""The table of short names, and what comes near a wrong one."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from edgecdn.names import RepoId, RepoType
from edgecdn.shortnames import lookup, nearest, shipped_names

MODELS, DATASETS = shipped_names()[RepoType.MODEL], shipped_names()[RepoType.DATASET]
ALL = [(t, key, target) for t, table in shipped_names().items() for key, target in table.items()]


def test_the_table_has_the_form_its_head_says() -> None:
    assert len(ALL) >= 150
    assert DATASETS
    for repo_type, key, target in ALL:
        assert re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", key), key
        assert re.fullmatch(r"[A-Za-z0-9_][\w.\-]*/[A-Za-z0-9_][\w.\-]*", target, re.ASCII), target
        assert str(RepoId(repo_type, target)).endswith(target)


def test_no_name_and_no_target_stands_for_two() -> None:
    assert not set(MODELS) & set(DATASETS)
    spellings = Counter(target.lower() for target in {target for _, _, target in ALL})
    assert not [target for target, count in spellings.items() if count > 1]
    bare: dict[str, set[str]] = {}
    for _, key, target in ALL:
        bare.setdefault(key.replace("-", ""), set()).add(target)
    assert not {key: targets for key, targets in bare.items() if len(targets) > 1}


@pytest.mark.parametrize(
    ("typed", "target"),
    [
        ("qwen-7b", "Qwen/Qwen-7B"),
        ("Qwen-7B", "Qwen/Qwen-7B"),
        ("qwen_7b", "Qwen/Qwen-7B"),
        ("qwen7b", "Qwen/Qwen-7B"),
        ("qwen-2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct"),
    ],
)
def test_lookup(typed: str, target: str) -> None:
    assert lookup(typed, None, {}) == (RepoType.MODEL, target)


def test_every_name_is_found_whatever_its_case() -> None:
    for repo_type, key, target in ALL:
        assert lookup(key.upper(), repo_type, {}) == lookup(key, None, {}) == (repo_type, target)


def test_a_type_that_was_asked_for_is_kept_to() -> None:
    assert lookup("qwen-7b", RepoType.DATASET, {}) is None
    assert lookup(next(iter(DATASETS)), RepoType.MODEL, {}) is None
    assert lookup("qwen-7b", RepoType.SPACE, {}) is None


def test_own_names_win() -> None:
    own = {"qwen-7b": "me/mine", "d": "datasets/me/data"}
    assert lookup("QWEN-7B", None, own) == (RepoType.MODEL, "me/mine")
    assert lookup("d", None, own) == (RepoType.DATASET, "me/data")
    assert lookup("no-such-name", None, own) is None


def test_nearest() -> None:
    known = list(MODELS.values())
    assert nearest("Qwen/Qwen-7", known)[0] == "Qwen/Qwen-7B"
    assert "Qwen/Qwen2.5-7B-Instruct" in nearest("qwen2.5-7b-instrcut", known)
    assert nearest("quite something else", known) == []
    assert nearest("x", []) == []
    many = nearest("qwen", [f"Qwen/qwen{n}" for n in range(20)])
    assert len(many) == len(set(many)) == 5
