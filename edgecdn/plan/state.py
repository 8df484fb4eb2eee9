"""What the board knows of files, sources and requests under way. Plain data; no decisions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from edgecdn.events import Kind
from edgecdn.manifest import FileEntry
from edgecdn.plan.growth import Window
from edgecdn.plan.rates import RateMeter
from edgecdn.spans import Span

__all__ = ["Blob", "Lease", "SourceState"]


@dataclass(slots=True, eq=False)
class Blob:
    """A file on its way: which bytes nobody fetches yet, and which requests are under way."""

    entry: FileEntry
    free: list[Span]
    leases: set[Lease] = field(default_factory=set)
    givers: dict[str, int] = field(default_factory=dict)
    """Bytes of it each source has given in this job."""
    held: bool = False
    """Nobody is asked for it: a carrier has it."""
    hurried: bool = False
    """Somebody reads it as it comes."""

    @property
    def complete(self) -> bool:
        """Whether every byte has arrived."""
        return not self.free and not self.leases


@dataclass(slots=True, eq=False)
class Lease:
    """One request under way: `source` gives `blob` from `position` on, up to `stop` (which a split may lower)."""

    blob: Blob
    source: SourceState
    start: int
    stop: int
    granted_at: float
    position: int = 0
    last_byte_at: float = 0.0
    whole: bool = False
    revoked: bool = False

    def __post_init__(self) -> None:
        self.position = self.start
        self.last_byte_at = self.granted_at

    @property
    def remaining(self) -> int:
        """Bytes still to come."""
        return self.stop - self.position

    def rate(self, now: float) -> float:
        """Its mean bytes per second so far."""
        return (self.position - self.start) / max(now - self.granted_at, 0.05)

    def idle_s(self, now: float) -> float:
        """Seconds since its last byte."""
        return now - self.last_byte_at


@dataclass(slots=True, eq=False)
class SourceState:
    """A source as the board sees it."""

    name: str
    kind: Kind
    window: Window
    queue: deque[Blob] = field(default_factory=deque)
    offered: set[Blob] = field(default_factory=set)
    whole_only: set[Blob] = field(default_factory=set)
    leases: set[Lease] = field(default_factory=set)
    meter: RateMeter = field(default_factory=RateMeter)
    recent: RateMeter = field(default_factory=lambda: RateMeter(0.5))
    """Shorter than a trial of a window's size, so that it holds nothing from before."""
    steady: RateMeter = field(default_factory=lambda: RateMeter(10.0))
    blocked_until: float = 0.0
    first_asked_at: float | None = None
    last_byte_at: float = 0.0
    failures: int = 0
    offences: int = 0
    ever_gave: bool = False
    good_bytes: int = 0
    """Since the last offence."""
    dropped: str | None = None

    def usable(self, now: float) -> bool:
        """Whether it may be asked for something now."""
        return self.dropped is None and now >= self.blocked_until and len(self.leases) < self.window.size

    def connection_rate(self, now: float) -> float:
        """What one of its connections brings, bytes per second; 0 when not known."""
        return self.meter.rate(now) / max(1, len(self.leases)) if self.leases else self.meter.rate(now)
