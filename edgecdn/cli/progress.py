"""Progress of a fetch on a terminal: files, bytes, rate, time left, and how much came from where.

Where stderr is no terminal: a line at the start, one every 30 s while something arrives, and the notes.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from edgecdn.cli.output import counted, human_bytes, tell
from edgecdn.events import (
    BlobPublished,
    BytesDiscarded,
    BytesReceived,
    Event,
    FetchPlanned,
    Kind,
    Note,
    SourceDropped,
    Waiting,
)

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

__all__ = ["FetchProgress", "bar_columns"]

_LINE_EVERY_S = 30.0
"""How often a log that is no terminal gets a line."""

_MANY_PEERS = 2

_ROOM_FOR_SOURCES = 110
_ROOM_FOR_RATE = 70
"""Terminals narrower than this (columns) get a bar without."""


class FetchProgress:
    """A listener for fetch events; use as a context manager. `quiet` shows nothing but dropped sources."""

    def __init__(self, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.quiet = quiet
        self._clock = clock
        self._last_line: tuple[float, int] | None = None  # when, and how much was here; None: no lines are wanted
        self.received: Counter[str] = Counter()
        self.total = 0
        self.here = 0
        self._files = (0, 0)
        self._peers: set[str] = set()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Take an event; never raises."""
        match event:
            case FetchPlanned():
                self._plan(event)
            case BytesReceived(source=source, kind=kind, count=count):
                self.received[source] += count
                if kind is Kind.LAN:
                    self._peers.add(source)
                self._show(advance=count)
            case BytesDiscarded(source=source, count=count):
                self.received[source] -= count
                self._show(advance=-count)
            case BlobPublished():
                self._files = (self._files[0] + 1, self._files[1])
                self._show()
            case SourceDropped(source=source, reason=reason):
                self._line(f"{source} {reason}; it is not used any more in this fetch.", always=True)
            case Waiting(reason=text) | Note(text=text):
                self._line(text)

    def __enter__(self) -> FetchProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _plan(self, event: FetchPlanned) -> None:
        self.total, self.here = event.bytes_total, event.bytes_here
        self._files = (event.files_here, event.files)
        if event.bytes_here >= event.bytes_total or self.quiet:
            return
        what = f"{event.repo} at {event.commit[:12]}"
        if not sys.stderr.isatty():
            here = f", {human_bytes(event.bytes_here)} here already" if event.bytes_here else ""
            self._line(f"{what}: {counted(event.files, 'file')}, {human_bytes(event.bytes_total)}{here}")
            self._last_line = (self._clock(), self.here)
            return
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(*bar_columns(console.width, "{task.fields[files]}"), console=console)
        self._line(what)
        if event.bytes_here:
            self._line(f"{human_bytes(event.bytes_here)} of {human_bytes(event.bytes_total)} are here already")
        self._task = self._bar.add_task("", total=event.bytes_total, completed=event.bytes_here, files="", sources="")
        self._show()
        self._bar.start()

    def _show(self, advance: int = 0) -> None:
        if self._bar is None or self._task is None:
            self._log()
            return
        sources = ", ".join(f"{name} {human_bytes(count)}" for name, count in self._shares().most_common(3))
        files = f"{self._files[0]}/{counted(self._files[1], 'file')}"
        self._bar.update(self._task, advance=advance, files=files, sources=sources)

    def _shares(self) -> Counter[str]:
        """What came from where; several peers are shown as one, beside what the line brought."""
        if len(self._peers) < _MANY_PEERS:
            return self.received
        shares = Counter({name: count for name, count in self.received.items() if name not in self._peers})
        shares[f"{len(self._peers)} peers"] = sum(self.received[name] for name in self._peers)
        return shares

    def _log(self) -> None:
        """A line where there is no bar, if it is time for one."""
        if self._last_line is None:
            return
        now, (then, before) = self._clock(), self._last_line
        if now - then < _LINE_EVERY_S:
            return
        done = self.here + sum(self.received.values())
        rate = human_bytes(max(0, done - before) / (now - then))
        share = 100 * done // max(1, self.total)
        self._line(f"{human_bytes(done)} of {human_bytes(self.total)} ({share} %), {rate}/s")
        self._last_line = (now, done)

    def _line(self, text: str, *, always: bool = False) -> None:
        if self.quiet and not always:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            tell(text)


def bar_columns(width: int, label: str) -> list[ProgressColumn]:
    """What fits on one line of a terminal so wide: label, bar, bytes, rate, time left, sources."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.table import Column

    def single() -> Column:
        return Column(no_wrap=True)

    columns: list[ProgressColumn] = [
        TextColumn(label, table_column=single()),
        BarColumn(bar_width=10 if width < 90 or _ROOM_FOR_SOURCES <= width < 150 else 40, table_column=single()),
        DownloadColumn(table_column=single()),
    ]
    if width >= _ROOM_FOR_RATE:
        columns.append(TransferSpeedColumn(table_column=single()))
    columns.append(TimeRemainingColumn(table_column=single()))
    if width >= _ROOM_FOR_SOURCES:
        columns.append(TextColumn("{task.fields[sources]}", table_column=single()))
    return columns
