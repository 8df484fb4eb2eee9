"""Progress of a fetch on a terminal: files, bytes, rate, time left, and how much came from where.

Where stderr is no terminal only notes are printed, a line each.
"""

from __future__ import annotations

import sys
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING

from edgecdn.cli.output import human_bytes, tell
from edgecdn.events import (
    BlobPublished,
    BytesDiscarded,
    BytesReceived,
    Event,
    FetchPlanned,
    Note,
    SourceDropped,
    Waiting,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["FetchProgress"]


class FetchProgress:
    """A listener for fetch events; use as a context manager. `quiet` shows nothing but dropped sources."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.received: Counter[str] = Counter()
        self.total = 0
        self.here = 0
        self._files = (0, 0)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Take an event; never raises."""
        match event:
            case FetchPlanned():
                self._plan(event)
            case BytesReceived(source=source, count=count):
                self.received[source] += count
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
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bar = Progress(
            TextColumn("{task.fields[files]}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[sources]}"),
            console=Console(stderr=True),
        )
        self._line(f"{event.repo} at {event.commit[:12]}")
        self._task = self._bar.add_task("", total=event.bytes_total, completed=event.bytes_here, files="", sources="")
        self._show()
        self._bar.start()

    def _show(self, advance: int = 0) -> None:
        if self._bar is None or self._task is None:
            return
        sources = ", ".join(f"{name} {human_bytes(count)}" for name, count in self.received.most_common(3))
        files = f"{self._files[0]}/{self._files[1]} files"
        self._bar.update(self._task, advance=advance, files=files, sources=sources)

    def _line(self, text: str, *, always: bool = False) -> None:
        if self.quiet and not always:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            tell(text)
