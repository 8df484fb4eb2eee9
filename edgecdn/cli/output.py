"""What commands print: data on stdout, dialogue on stderr; sizes as people read them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from edgecdn.sizes import human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["counted", "human_bytes", "human_seconds", "json_option", "print_json", "print_table", "tell"]


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The `--json` every listing has."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def human_seconds(seconds: float) -> str:
    """75.2 as `1 min 15 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; the header only for people."""
    table = [list(header), *map(list, rows)] if sys.stdout.isatty() else list(map(list, rows))
    widths = [max((len(row[column]) for row in table), default=0) for column in range(len(header))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def tell(text: str) -> None:
    """Talk to the person at the terminal."""
    click.echo(text, err=True)
