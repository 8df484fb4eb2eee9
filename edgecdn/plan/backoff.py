"""How long to leave a failing source alone. Pure; the caller brings chance."""

from __future__ import annotations

__all__ = ["backoff_s"]

_FIRST_S = 0.5
_MOST_S = 30.0


def backoff_s(failures: int, chance: float, told_s: float | None = None) -> float:
    """Seconds to wait after `failures` in a row without a byte (1 = the first).

    Doubles from 0.5 s to 30 s; `chance` (0 to 1) spreads it over the upper half, so that machines
    that failed together do not return together. What the server told (`told_s`) is a floor, never
    shortened, and spread upwards by at most a tenth.
    """
    own = min(_MOST_S, _FIRST_S * 2.0 ** max(0, failures - 1)) * (0.5 + chance / 2)
    return own if told_s is None else max(told_s * (1 + chance / 10), 0.05)
