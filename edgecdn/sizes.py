"""Sizes as people read them. Pure."""

from __future__ import annotations

__all__ = ["human_bytes"]

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def human_bytes(count: float) -> str:
    """1234567 as `1.2 MB` (decimal units, as disks and lines are sold)."""
    for unit in _UNITS[:-1]:
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"
