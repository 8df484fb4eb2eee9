"""Who was wrong, when all bytes of a file arrived and their digest does not match. Pure.

Only the whole file's digest is known, so one source is asked to stand for all of it: what others
gave is read again from that one. Right then: those whose bytes changed had lied. Wrong still: it is
the liar itself, and the next stands. At most one extra copy for each source that lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgecdn.spans import UNIT_BYTES, Span

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do: `liar` is dropped (if named); `truth` gives `again` (None: nobody is left to ask)."""

    liar: str | None
    truth: str | None
    again: tuple[Span, ...]


def judge(size: int, givers: Mapping[int, set[str]], standing: str | None, candidates: Sequence[str]) -> Verdict:
    """Decide after a mismatch.

    `givers`: who gave each unit; `standing`: the source that stood for the file in this round (None
    in the first); `candidates`: sources still able to give it, the most trusted first.
    """
    liar = standing
    everyone = set().union(*givers.values()) if givers else set()
    if liar is None and len(everyone) == 1 and everyone & set(candidates):
        liar = next(iter(everyone))  # one source gave all of it
    truth = next((name for name in candidates if name != liar), None)
    if truth is None:
        return Verdict(liar, None, ())
    again: list[Span] = []
    for unit, names in sorted(givers.items()):
        if names != {truth}:
            span = Span(unit * UNIT_BYTES, min((unit + 1) * UNIT_BYTES, size))
            if again and again[-1].stop == span.start:
                span = Span(again.pop().start, span.stop)
            again.append(span)
    return Verdict(liar, truth, tuple(again))
