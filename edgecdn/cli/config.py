"""`edgecdn config`: show, set, unset, path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click

from edgecdn.cli.output import json_option, print_json, print_table, tell
from edgecdn.settings import Reading, Setting, config_file, home_dir, read_settings, refuse_problems, settings_table
from edgecdn.upkeep.settings_file import find_setting, set_value, unset_value

__all__ = ["config"]


@click.group()
def config() -> None:
    """Show or change the settings. Order: environment over config.toml over the default."""


@config.command()
@click.argument("name", required=False)
@json_option
def show(name: str | None, as_json: bool) -> None:
    """Show every setting, or NAME: its value, where that came from, its unit, what it is for."""
    chosen = [find_setting(name)] if name else settings_table()
    reading = read_settings()
    rows = [_row(setting, reading) for setting in chosen if setting.field in reading.values]
    if as_json:
        print_json(rows[0] if name and rows else rows)
    elif name:
        for row in rows:
            _print_one(row)
    else:
        header = ("NAME", "VALUE", "ORIGIN", "UNIT")
        print_table(header, [(str(r["name"]), _text(r["value"]), str(r["origin"]), str(r["unit"])) for r in rows])
    refuse_problems(reading)


@config.command("set")
@click.argument("name")
@click.argument("values", nargs=-1, required=True, metavar="VALUE...")
def set_(name: str, values: tuple[str, ...]) -> None:
    """Set NAME in config.toml; a list takes several values, `aliases.NAME OWNER/REPO` one alias."""
    home = home_dir(os.environ)
    set_value(home, name, values)
    tell(f"{name} is set in {config_file(home)}.")
    variable = find_setting(name).variable
    if variable in os.environ:
        tell(f"The environment has {variable}, which wins over it.")
    _tell_agent(home)


@config.command()
@click.argument("name")
def unset(name: str) -> None:
    """Take NAME out of config.toml, back to its default."""
    home = home_dir(os.environ)
    was_there = unset_value(home, name)
    tell(f"{name} is back to its default." if was_there else f"{name} was not set in {config_file(home)}.")
    if was_there:
        _tell_agent(home)


@config.command()
def path() -> None:
    """Print where config.toml is (or would be)."""
    click.echo(config_file(home_dir(os.environ)))


def _tell_agent(home: Path) -> None:
    """A running agent has read its settings long ago."""
    from edgecdn.upkeep.agent_process import agent_pid
    from edgecdn.upkeep.systemd_unit import UNIT, unit_path

    pid = agent_pid(home)
    if pid is not None:
        again = f"systemctl --user restart {UNIT}" if unit_path(os.environ).exists() else ""
        by_hand = "`edgecdn agent stop`, then `edgecdn agent start`"
        tell(f"The agent (process {pid}) reads it when it starts again: {again and f'`{again}`, or '}{by_hand}.")


def _row(setting: Setting, reading: Reading) -> dict[str, object]:
    return {
        "name": setting.name,
        "value": _plain(reading.values[setting.field]),
        "origin": reading.origins[setting.name],
        "unit": setting.unit,
        "help": setting.help,
        "variable": setting.variable,
    }


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return dict(value)
    return value if isinstance(value, (str, int, float)) or value is None else str(value)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name}={target}" for name, target in value.items()) or "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "-" if value in ("", None) else str(value)


def _print_one(row: Mapping[str, object]) -> None:
    click.echo(f"{row['name']} = {_text(row['value'])}")
    click.echo(f"  from: {row['origin']} ({row['variable']} in the environment wins)")
    click.echo(f"  unit: {row['unit']}")
    click.echo(f"  {row['help']}")
