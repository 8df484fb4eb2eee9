"""What a fetch did, as it is told to whoever asked for it. Pure; no I/O."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Fetched"]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch did. `bytes_by_source` sums to `bytes_total`; `cache` is what was here already. Times in seconds."""

    repo: str
    type: str
    revision: str
    commit: str
    path: str
    files: int
    bytes_total: int
    bytes_by_source: dict[str, int]
    seconds: float
