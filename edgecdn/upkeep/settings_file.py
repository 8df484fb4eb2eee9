"""Writing `config.toml`: one setting at a time, checked before, comments kept, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AbstractTable

from edgecdn.cache.safedir import SafeDir
from edgecdn.errors import BadInput, SettingsInvalid
from edgecdn.settings import Setting, config_file, settings_table
from edgecdn.shortnames import nearest

__all__ = ["find_setting", "set_value", "unset_value", "with_value", "without_value"]

_ALIASES = "aliases"


def find_setting(name: str) -> Setting:
    """The setting of that name, `aliases.NAME` included; raises BadInput with the nearest."""
    known = {setting.name: setting for setting in settings_table()}
    head, _, alias = name.partition(".")
    found = known.get(_ALIASES if head == _ALIASES and alias else name)
    if found is None:
        near = nearest(name, known)
        told = f" (did you mean {' or '.join(near[:2])}?)" if near else ""
        raise BadInput(f"There is no setting '{name}'{told}", hint="`edgecdn config show` lists all.")
    return found


def set_value(home: Path, name: str, values: Sequence[str]) -> None:
    """Write a setting; raises BadInput for a wrong value, SettingsInvalid when the file is no TOML."""
    setting = find_setting(name)
    text = _read(home)
    if len(values) > 1 and not setting.takes_several:
        raise BadInput(f"{name} takes one value, not {len(values)}", hint=_tells(name))
    try:
        written = with_value(text, name, values)
    except BadInput as error:
        raise BadInput(error.message.rstrip("."), hint=_tells(name)) from error
    _write(home, written)


def unset_value(home: Path, name: str) -> bool:
    """Take a setting out of the file, back to its default; returns whether it was there."""
    text = _read(home)
    without = without_value(text, name)
    if without == text:
        find_setting(name)
        return False
    _write(home, without)
    return True


def _tells(name: str) -> str:
    return f"`edgecdn config show {name.partition('.')[0] if name.startswith(_ALIASES) else name}` tells what it is."


def with_value(text: str, name: str, values: Sequence[str]) -> str:
    """The file's text with a setting set."""
    document = tomlkit.parse(text)
    *parents, last = _keys(name)
    table: Any = document
    for key in parents:
        if key not in table:
            table[key] = tomlkit.table()
        table = table[key]
        if not isinstance(table, AbstractTable):
            raise BadInput(f"'{key}' in the file is no table")
    table[last] = _toml_value(name, values)
    return tomlkit.dumps(document)


def without_value(text: str, name: str) -> str:
    """The file's text without a setting; the same text when it is not there."""
    document = tomlkit.parse(text)
    *parents, last = _keys(name)
    table: Any = document
    for key in parents:
        table = table.get(key) if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping) or last not in table:
        return text
    del table[last]  # type: ignore[attr-defined]  # tomlkit's containers are mutable
    return tomlkit.dumps(document)


def _keys(name: str) -> list[str]:
    """The path in the file; an alias may itself hold dots (`aliases.qwen2.5`)."""
    head, _, alias = name.partition(".")
    return [head, alias.lower()] if head == _ALIASES and alias else name.split(".")


def _toml_value(name: str, values: Sequence[str]) -> object:
    setting = find_setting(name)
    typed: object = values[0] if len(values) == 1 else list(values)
    if setting.name == _ALIASES and name != _ALIASES:
        if not isinstance(typed, str):
            raise BadInput(f"an alias stands for one repo, not for {len(values)}")
        return setting.parse({name.partition(".")[2]: typed})[name.partition(".")[2].lower()]
    return _as_toml(setting.parse(typed), typed)


def _as_toml(parsed: object, typed: object) -> object:
    """What was typed, in the form it is best kept: lists as arrays, numbers as numbers, relative folders absolute."""
    if isinstance(parsed, (tuple, Mapping)):
        return dict(parsed) if isinstance(parsed, Mapping) else [str(part) for part in parsed]
    if isinstance(parsed, int) and not isinstance(parsed, bool):
        return parsed
    return str(parsed) if isinstance(parsed, Path) and not str(typed).startswith("~") else typed


def _read(home: Path) -> str:
    path = config_file(home)
    try:
        text = path.read_text(encoding="utf-8")
        tomlkit.parse(text)
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise SettingsInvalid(
            f"{path} cannot be read: {error}", hint="Correct it in an editor, or move it away."
        ) from error
    return text


def _write(home: Path, text: str) -> None:
    path = config_file(home).resolve()  # it may be a link into the user's own dotfiles
    with SafeDir.at(path.parent, create=True) as folder:
        folder.write_whole(path.name, text.encode())
        folder.sync()
