"""`edgecdn doctor`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from edgecdn.cli.online import go_online
from edgecdn.cli.output import counted, json_option, print_json, tell
from edgecdn.settings import load_settings
from edgecdn.upkeep.checkup import check_up
from edgecdn.upkeep.diagnosis import Check, State, exit_code
from edgecdn.upkeep.lab_speed import Speed, measure_speed

__all__ = ["doctor"]

_SHOWN = {State.OK: "ok  ", State.WARN: "warn", State.FAIL: "FAIL"}


@click.command()
@click.option("--speed", metavar="PEER", help="Only measure how fast a peer gives: its name, id, or HOST:PORT.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, speed: str | None, as_json: bool) -> None:
    """Check disk, clock, token, hubs, lab, cache and catalog of this machine, and say what to do."""
    go_online()
    settings = load_settings()
    if speed is not None:
        _show(measure_speed(settings, speed), as_json=as_json)
        return
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


def _show(found: Speed, *, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(found), "best": found.best})
        return
    for count, rate in found.rates.items():
        click.echo(f"{counted(count, 'connection')}: {rate / 1e6:.1f} MB/s ({rate * 8 / 1e6:.0f} Mbit/s)")
    tell(f"From {found.peer} ({found.address}) to here, within its limits.upload; for the other way, measure there.")


def _row(check: Check) -> dict[str, object]:
    row = asdict(check)
    del row["exit_code"]
    return row
