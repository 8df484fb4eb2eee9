"""What a fetch shows while it runs: one line on any terminal, sparse lines in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from edgecdn.cli.progress import FetchProgress, bar_columns
from edgecdn.events import BytesReceived, FetchPlanned, Kind

PLAN = FetchPlanned("org/big", "72e58dcbe34a" + "0" * 28, 4, 1, 201_000_000, 48_000_000)


@pytest.mark.parametrize("width", [50, 80, 110, 200])
def test_the_bar_is_one_line(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    bar = Progress(*bar_columns(width, "{task.fields[files]}"), console=console)
    sources = "hub.example.org 100 MB, hf-mirror.example 60 MB"
    bar.add_task("", total=201_300_000, completed=164_600_000, files="3/4 files", sources=sources)
    console.print(bar.get_renderable())
    [line] = [line for line in out.getvalue().splitlines() if line.strip()]
    assert "164.6/201.3 MB" in line
    assert ("hub.example" in line) == (width >= 110)


def test_a_log_gets_a_line_at_the_start_and_every_30_s(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = FetchProgress(quiet=False, clock=lambda: now[0])
    progress(PLAN)
    for now[0] in (1.0, 29.0, 31.0, 40.0):
        progress(BytesReceived("hub", Kind.ORIGIN, 10_000_000))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "org/big at 72e58dcbe34a: 4 files, 201 MB, 48.0 MB here already"
    assert second == "78.0 MB of 201 MB (38 %), 968 kB/s"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    FetchProgress(quiet=True)(PLAN)
    assert capsys.readouterr().err == ""
