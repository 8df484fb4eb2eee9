"""`edgecdn mirrors`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import click

from edgecdn.cli.online import go_online
from edgecdn.cli.output import human_bytes, json_option, print_json, print_table, tell
from edgecdn.errors import Unreachable
from edgecdn.local_names import find_repo
from edgecdn.names import ModelRef
from edgecdn.settings import load_settings
from edgecdn.upkeep.probe import DEFAULT_REPO, MirrorReport, probe_mirrors

__all__ = ["mirrors"]


@click.command()
@click.argument("model", required=False)
@click.option("--sample-mb", default=4.0, show_default=True, metavar="N", help="How much is fetched from each (MB).")
@json_option
def mirrors(model: str | None, sample_mb: float, as_json: bool) -> None:
    """Probe every configured hub: does it answer, how fast, are its answers sound, is it up to date.

    With MODEL that repo is asked for, else a small public one. Takes at most 20 s.
    """
    go_online()
    settings = load_settings()
    repo = find_repo(ModelRef.parse(model), settings) if model else DEFAULT_REPO
    reports = asyncio.run(probe_mirrors(settings, repo, max(1, round(sample_mb * 1e6))))
    if as_json:
        print_json([asdict(report) for report in reports])
    else:
        header = ("HUB", "ANSWERS", "LATENCY", "RATE", "RANGES", "HEADERS", "MAIN", "LAG")
        print_table(header, [_columns(report) for report in reports])
        for report in reports if any(r.reachable for r in reports) else ():  # else the error says it all
            for problem in report.problems:
                tell(f"{report.endpoint}: {problem}")
    if not any(report.reachable for report in reports):
        raise Unreachable("; ".join(f"{r.endpoint} {', '.join(r.problems)}" for r in reports))


def _columns(report: MirrorReport) -> tuple[str, ...]:
    said = {True: "yes", False: "no", None: "-"}
    return (
        report.endpoint,
        said[report.reachable],
        "-" if report.latency_ms is None else f"{report.latency_ms:.0f} ms",
        "-" if report.rate_bytes_s is None else f"{human_bytes(report.rate_bytes_s)}/s",
        said[report.ranges],
        {True: "right", False: "wrong", None: "-"}[report.headers_ok],
        (report.commit or "-")[:8],
        report.lag or "-",
    )
