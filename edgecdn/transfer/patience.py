"""How long a transfer goes on without a byte, and what the user is told meanwhile."""

from __future__ import annotations

from edgecdn.events import Listener, Waiting
from edgecdn.plan.board import Board
from edgecdn.transfer.court import Court

__all__ = ["LONGEST_TOLD_S", "Patience"]

LONGEST_TOLD_S = 900.0
"""A hub may ask for a pause of at most this (seconds); beyond, it is not waited for."""

_HOPELESS = 5
"""So many failures in a row, some 10 s, of sources that never gave a byte end a fetch before its patience does."""

_SILENCE_S = 3.0
"""Without a byte for this long, the user is told why."""


class Patience:
    """Of one transfer; `limit_s` without a byte end it. Times are those of the board."""

    def __init__(self, board: Board, court: Court, listener: Listener, limit_s: float, now: float) -> None:
        self._board = board
        self._court = court
        self._listener = listener
        self._limit_s = limit_s
        self._progress_at = now
        self._told_until = 0.0
        self._said_waiting = False

    def arrived(self, now: float) -> None:
        """A source gave something."""
        self._progress_at, self._told_until, self._said_waiting = now, 0.0, False

    def carried(self, now: float) -> None:
        """A carrier brought something: what hubs asked for still holds."""
        self._progress_at = now

    def asked_to_wait(self, seconds: float, now: float) -> None:
        """A pause that was asked for is no silence; but not for ever, however often it is asked for."""
        asked_until = min(now + seconds, self._progress_at + LONGEST_TOLD_S)
        self._told_until = max(self._told_until, asked_until)  # another hub's pause still holds

    def check(self, now: float, *, idle: bool, carried: bool = False) -> None:
        """Raise Unreachable when nothing came for too long; say so before.

        `idle`: nobody is being asked. `carried`: a carrier is at work, so sources that fail are not all there is.
        """
        if now > max(self._progress_at + self._limit_s, self._told_until):
            raise self._court.out_of_patience(self._limit_s)
        if now > self._told_until and not carried and self._all_fail():
            raise self._court.out_of_patience(now - self._progress_at)
        next_try = self._board.next_try_at(now)
        if not self._said_waiting and next_try is not None and next_try - now > _SILENCE_S and idle:
            self._said_waiting = True
            said = self._court.last_said([n for n, s in self._board.sources.items() if s.blocked_until > now])
            limit = max(self._progress_at + self._limit_s, self._told_until) - now
            self._listener(Waiting(f"Waiting up to {limit:.0f} s: {said}."))

    def _all_fail(self) -> bool:
        """Whether no source ever gave a byte, and each failed again and again: waiting is for lines that worked."""
        asked = [s for s in self._board.sources.values() if s.dropped is None and s.offered]
        return bool(asked) and all(s.failures >= _HOPELESS and not s.ever_gave for s in asked)
