"""`edgecdn doctor`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from edgecdn.cli.online import go_online
from edgecdn.cli.output import json_option, print_json, tell
from edgecdn.settings import load_settings
from edgecdn.upkeep.checkup import check_up
from edgecdn.upkeep.diagnosis import Check, State, exit_code

__all__ = ["doctor"]

_SHOWN = {State.OK: "ok  ", State.WARN: "warn", State.FAIL: "FAIL"}


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check disk, clock, token, hubs, cache and catalog of this machine, and say what to do."""
    go_online()
    settings = load_settings()
    checks: list[Check] = []
    for check in check_up(settings):
        checks.append(check)
        if not as_json:
            click.echo(f"{_SHOWN[check.state]}  {check.check}: {check.detail}")
            if check.remedy:
                click.echo(f"      {check.remedy}")
    if as_json:
        print_json([_row(check) for check in checks])
    counts = Counter(check.state for check in checks)
    tell(f"{counts[State.OK]} ok, {counts[State.WARN]} to look at, {counts[State.FAIL]} failing.")
    ctx.exit(exit_code(checks))


def _row(check: Check) -> dict[str, object]:
    row = asdict(check)
    del row["exit_code"]
    return row
