"""What the test hub was asked and what it really sent."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REQUEST_LOG_LENGTH = 200_000  # newest requests kept, so that a long benchmark stays bounded


@dataclass
class Seen:
    """One request as it arrived, completed when it has been answered."""

    listener: str
    method: str
    path: str  # raw request target, query included
    range: str | None
    headers: Mapping[str, str]
    route: str = ""
    repo: str = ""
    file: str = ""
    status: int = 0
    sent: int = 0  # body bytes handed to the socket

    @property
    def authorization(self) -> str | None:
        """The Authorization header as it arrived."""
        return self.headers.get("Authorization")


@dataclass
class Stats:
    """Counters of file bytes that were handed to the socket, and the request log."""

    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    by_route: Counter[str] = field(default_factory=Counter)
    requests: deque[Seen] = field(default_factory=lambda: deque(maxlen=REQUEST_LOG_LENGTH))
    open_bodies: int = 0
    most_open_bodies: int = 0

    @property
    def total(self) -> int:
        """All file bytes sent, on every listener."""
        return self.sent.total()

    def count(self, seen: Seen, amount: int) -> None:
        """Record body bytes; only those of files enter the counters."""
        seen.sent += amount
        if seen.file:
            self.sent[seen.repo, seen.file] += amount
            self.by_route[seen.route] += amount

    def body_opened(self) -> None:
        """Note that a body is being sent."""
        self.open_bodies += 1
        self.most_open_bodies = max(self.most_open_bodies, self.open_bodies)

    def body_closed(self) -> None:
        """Note that a body ended, whole or not."""
        self.open_bodies -= 1

    def asked(self, method: str | None = None, contains: str = "") -> list[Seen]:
        """List the requests whose method matches and whose path contains a text."""
        return [seen for seen in self.requests if method in (None, seen.method) and contains in seen.path]

    def reset(self) -> None:
        """Start counting again."""
        self.sent.clear()
        self.by_route.clear()
        self.requests.clear()
        self.most_open_bodies = self.open_bodies

    def to_json(self) -> dict[str, Any]:
        """Summarise for the control listener."""
        sent: dict[str, dict[str, int]] = {}
        for (repo, path), amount in self.sent.items():
            sent.setdefault(repo, {})[path] = amount
        return {
            "total": self.total,
            "sent": sent,
            "by_route": dict(self.by_route),
            "requests": len(self.requests),
            "by_method": dict(Counter(f"{seen.route} {seen.method}" for seen in self.requests)),
            "open_bodies": self.open_bodies,
            "most_open_bodies": self.most_open_bodies,
        }
