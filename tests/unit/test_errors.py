"""The audit of errors and events: none without a sentence, a remedy, an exit code."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import string
import typing
from pathlib import Path
from typing import Any

import pytest

from edgecdn import errors, events
from edgecdn.errors import EdgecdnError
from edgecdn.events import Event, Kind

ALL: list[type[EdgecdnError]] = [getattr(errors, name) for name in errors.__all__]
EXIT_CODES = {1, 2, 3, 4, 5, 6, 7, 8, 130}


def _fields(error: type[EdgecdnError]) -> set[str]:
    return {name for text in (error.template, error.hint) for _, name, _, _ in string.Formatter().parse(text) if name}


def _made(error: type[EdgecdnError]) -> EdgecdnError:
    values = {name: f"<{name} {{}}>" for name in _fields(error) - {"detail"}}
    return error("a detail {with} braces", **values)


def test_every_error_is_exported() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, EdgecdnError)]
    assert set(classes) == set(ALL)
    assert errors.__all__ == sorted(errors.__all__)


@pytest.mark.parametrize("error", ALL, ids=lambda e: e.__name__)
def test_each_says_what_and_what_to_do(error: type[EdgecdnError]) -> None:
    assert error.__doc__
    assert error.exit_code in EXIT_CODES
    assert error is EdgecdnError or error.hint != EdgecdnError.hint
    assert all(name.isidentifier() for name in _fields(error))
    made = _made(error)
    assert str(made) == made.message
    assert made.remedy
    for name in _fields(error) - {"detail"}:
        assert f"<{name} {{}}>" in made.message + made.remedy
    if "{detail}" in error.template:
        assert "a detail {with} braces" in made.message


def test_the_exit_codes_are_those_users_were_told() -> None:
    assert {error.exit_code for error in ALL} == EXIT_CODES
    codes = {
        errors.BadInput: 2, errors.RepoMissing: 3, errors.GatedRepo: 4, errors.IntegrityFailure: 5,
        errors.Unreachable: 6, errors.NoSpace: 7, errors.AgentNotRunning: 8, errors.Interrupted: 130,
    }  # fmt: skip
    assert {error: error.exit_code for error in codes} == codes


@pytest.mark.parametrize(
    ("error", "familiar"),
    [
        (errors.BadInput, ValueError),
        (errors.FileMissing, FileNotFoundError),
        (errors.NothingMatched, FileNotFoundError),
        (errors.RepoMissing, LookupError),
        (errors.AccessDenied, PermissionError),
        (errors.GatedRepo, PermissionError),
        (errors.Unreachable, ConnectionError),
        (errors.NoSpace, OSError),
        (errors.CacheRefused, OSError),
    ],
)
def test_code_written_before_edgecdn_still_catches_them(error: type[EdgecdnError], familiar: type[Exception]) -> None:
    with pytest.raises(familiar) as caught:
        raise _made(error)
    assert isinstance(caught.value, EdgecdnError)


def test_a_hint_of_its_own_replaces_the_usual() -> None:
    assert errors.FileMissing("gone", hint="Look under the sofa.").remedy == "Look under the sofa."


def test_events_are_facts_nobody_can_change() -> None:
    shapes = typing.get_args(Event)
    assert {shape.__name__ for shape in shapes} == set(events.__all__) - {"Event", "Kind", "Listener"}
    for shape in shapes:
        assert dataclasses.is_dataclass(shape)
        names = [f.name for f in dataclasses.fields(shape)]
        make: Any = shape
        made = make(*names)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, names[0], "changed")
        assert not {"token", "authorization", "headers", "url"} & set(names)


def test_kinds_are_the_keys_users_see() -> None:
    assert [kind.value for kind in Kind] == ["cache", "lan", "mirror", "origin"]


def test_raised_errors_have_the_fields_their_sentences_need() -> None:
    """Every `raise errors.X(...)` in the package, read from its source, names the fields of X."""
    checked = 0
    for path in sorted(Path(errors.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in errors.__all__ or any(keyword.arg is None for keyword in node.keywords):
                continue
            given = {keyword.arg for keyword in node.keywords}
            needed = _fields(getattr(errors, name)) - {"detail"}
            if "hint" in given:
                texts = [getattr(errors, name).template]
                needed = {f for t in texts for _, f, _, _ in string.Formatter().parse(t) if f} - {"detail"}
            assert needed <= given, f"{path.name}:{node.lineno}: {name} lacks {needed - given}"
            checked += 1
    assert checked > 50
