"""The court of one transfer: what each source answered, who lied, who is used no more, and what to tell the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgecdn import errors
from edgecdn.digest import Digest
from edgecdn.events import Kind, Listener, Note, SourceDropped
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.plan.board import Board
from edgecdn.sources import Offer
from edgecdn.sources.faults import Denied, Missing, SourceFault
from edgecdn.transfer.dispute import Verdict, judge
from edgecdn.transfer.incoming import Incoming
from edgecdn.transfer.outcome import no_source_left

__all__ = ["Court"]

_MOST_NAMED = 4


class Court:
    """Keeps the record; drops sources from the board. `offers` is the engine's own, by source name."""

    def __init__(self, board: Board, offers: Mapping[str, Mapping[Digest, Offer]], listener: Listener) -> None:
        self._board = board
        self._offers = offers
        self._listener = listener
        self._faults: dict[Digest, dict[str, SourceFault]] = {}
        self._liars: set[str] = set()

    def record(self, name: str, entry: FileEntry, fault: SourceFault) -> None:
        """Remember the last fault of a source for a file."""
        self._faults.setdefault(entry.digest, {})[name] = fault

    def drop(self, name: str, reason: str, *, quiet: bool = False) -> None:
        """Use a source no more in this job, and say so once."""
        state = self._board.sources[name]
        if state.dropped is None:
            self._board.drop(state, reason)
            if not quiet:
                self._listener(SourceDropped(name, reason))

    def is_liar(self, name: str) -> bool:
        """Whether a source gave wrong bytes in this job."""
        return name in self._liars

    def accuse(self, name: str) -> None:
        """Remember, for the message should nobody else be left, that bytes of a source were part of a wrong file."""
        self._liars.add(name)

    def lied(self, name: str, entry: FileEntry) -> None:
        """A source gave wrong bytes for a file."""
        if self._board.sources[name].kind is Kind.CACHE:  # a folder's file of that name and size: stale, no lie
            fault = Missing(f"has other bytes for {entry.path}")
            self.record(name, entry, fault)
            self._listener(Note(f"{name} {fault}; they are not used."))
        else:
            self._liars.add(name)
            self.drop(name, f"gave wrong bytes for {entry.path}")

    def witnesses(self, incoming: Incoming) -> list[str]:
        """Sources that can still stand for a file, the most trusted first."""
        digest = incoming.entry.digest
        lacking = {name for name, fault in self._faults.get(digest, {}).items() if isinstance(fault, Missing)}
        able = [
            name
            for name, offers in self._offers.items()
            if digest in offers and self._board.sources[name].dropped is None
        ]
        left = [name for name in able if name not in lacking | incoming.stood]
        return sorted(left, key=lambda name: (self._board.sources[name].kind is not Kind.ORIGIN, name))

    def judge(self, incoming: Incoming) -> Verdict:
        """Decide after a mismatch; raises IntegrityFailure when nobody is left to ask."""
        entry = incoming.entry
        verdict = judge(entry.size, incoming.givers, incoming.standing, self.witnesses(incoming))
        if verdict.liar is not None:
            self.lied(verdict.liar, entry)
        if verdict.truth is None:
            who = ", ".join(sorted(self._liars)) or "earlier downloads"
            raise errors.IntegrityFailure(f"wrong bytes from {who}", path=entry.path)
        return verdict

    def hopeless(self, manifest: Manifest, entry: FileEntry, page: str) -> errors.EdgecdnError:
        """The error for a file that no source can give."""
        dropped = {name: state.dropped for name, state in self._board.sources.items() if state.dropped}
        refusals = {n: f for by_name in self._faults.values() for n, f in by_name.items() if isinstance(f, Denied)}
        faults = {**refusals, **self._faults.get(entry.digest, {})}
        return no_source_left(manifest, entry, faults, dropped, self._liars, page)

    def out_of_patience(self, waited_s: float) -> errors.EdgecdnError:
        """The error when nothing came for too long."""
        said = self.last_said(list(self._board.sources)) or "no byte came"
        return errors.Unreachable(f"nothing came for {waited_s:.0f} s ({said})")

    def last_said(self, names: Sequence[str]) -> str:
        """What went wrong with some sources, a fragment each."""
        said = {f"{n} {f}" for by_name in self._faults.values() for n, f in by_name.items() if n in names}
        return "; ".join(sorted(said)[:_MOST_NAMED])
