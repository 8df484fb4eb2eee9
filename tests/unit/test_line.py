"""The line: which source a carrier is given, and what becomes of its failures; how requests wind down before it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from random import Random

import pytest

from edgecdn.digest import Digest
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.plan.board import Board
from edgecdn.plan.state import Blob, SourceState
from edgecdn.sources import Offer
from edgecdn.sources.faults import Broken, Busy, SourceFault
from edgecdn.spans import Span
from edgecdn.transfer.carrier import Giver
from edgecdn.transfer.line import SourceLine
from tests.unit.made import MIB, add, grant_all, new_board, sized


class _Source:
    """Gives as many bytes as it is asked for, `short` of them less; or fails."""

    connections = 1

    def __init__(self, name: str, kind: Kind, short: int = 0, fault: SourceFault | None = None) -> None:
        self.name, self.kind = name, kind
        self._short, self._fault = short, fault

    async def offer(self, manifest: Manifest, wanted: Sequence[FileEntry]) -> Mapping[Digest, Offer]:
        raise NotImplementedError

    async def read(self, offer: Offer, span: Span) -> AsyncGenerator[bytes, None]:
        if self._fault is not None:
            raise self._fault
        for at in range(span.start, span.stop - self._short, 1000):
            yield bytes(min(1000, span.stop - self._short - at))

    async def close(self) -> None:
        """Nothing to close."""


class _Offer:
    def __init__(self, entry: FileEntry) -> None:
        self.entry = entry


class _Lines:
    """A file that some sources offer."""

    def __init__(self, *sources: _Source) -> None:
        self.now = 10.0
        self.answering = False
        self.faults: list[tuple[str, SourceFault]] = []
        self.board = Board(Random(1))
        for source in sources:
            self.board.add_source(source.name, source.kind, 1)
        self.blob = self.board.add_blob(sized("a", 4 * MIB), (), [source.name for source in sources])
        entry = self.blob.entry
        offers = {source.name: {entry.digest: _Offer(entry)} for source in sources}
        self.line = SourceLine(
            self.board, self.blob, {source.name: source for source in sources}, offers, self._faulted,
            lambda: self.answering, lambda: self.now,
        )  # fmt: skip

    def _faulted(self, source: SourceState, blob: Blob, fault: SourceFault) -> None:
        assert blob is self.blob
        self.faults.append((source.name, fault))
        self.board.broken(source, self.now)

    async def read(self, name: str, kind: Kind, span: Span) -> int:
        return sum([len(piece) async for piece in self.line.read(Giver(name, kind), span)])


HUB, MIRROR, PEER = Giver("hub", Kind.ORIGIN), Giver("mirror", Kind.MIRROR), Giver("peer", Kind.LAN)


def test_a_peer_that_has_it_comes_before_hubs_and_is_waited_for_a_little() -> None:
    lines = _Lines(_Source("hub", Kind.ORIGIN), _Source("peer", Kind.LAN))
    assert lines.line.giver() == PEER
    peer = lines.board.sources["peer"]
    lines.board.busy(peer, 3.0, lines.now)
    assert lines.line.giver() is None, "it comes back in a moment"
    peer.failures, peer.blocked_until = 3, lines.now + 60
    assert lines.line.giver() == HUB
    lines.board.drop(peer, "gone")
    assert lines.line.giver() == HUB


def test_hubs_are_not_asked_while_peers_have_yet_to_say_what_they_have() -> None:
    lines = _Lines(_Source("hub", Kind.ORIGIN))
    lines.answering = True
    assert lines.line.giver() is None
    lines.answering = False
    assert lines.line.giver() == HUB


def test_of_hubs_the_one_that_failed_least() -> None:
    lines = _Lines(_Source("hub", Kind.ORIGIN), _Source("mirror", Kind.MIRROR))
    lines.board.broken(lines.board.sources["hub"], lines.now)
    assert lines.line.giver() == MIRROR
    lines.board.whole_only(lines.board.sources["mirror"], lines.blob)
    lines.now += 3600
    assert lines.line.giver() == HUB, "one that gives only whole files is no line"


async def test_what_it_reads_counts_for_the_source() -> None:
    lines = _Lines(_Source("hub", Kind.ORIGIN))
    assert await lines.read("hub", Kind.ORIGIN, Span(5, 4005)) == 4000
    assert lines.board.sources["hub"].good_bytes == 4000
    assert not lines.faults


@pytest.mark.parametrize(
    "source", [_Source("hub", Kind.ORIGIN, short=1), _Source("hub", Kind.ORIGIN, fault=Busy("no"))]
)
async def test_what_fails_counts_against_it(source: _Source) -> None:
    lines = _Lines(source)
    with pytest.raises((Broken, Busy)):
        await lines.read("hub", Kind.ORIGIN, Span(0, 4000))
    assert [name for name, _ in lines.faults] == ["hub"]
    lines.board.drop(lines.board.sources["hub"], "no more")
    assert lines.line.giver() is None


def test_requests_wind_down_to_the_ends_of_units() -> None:
    """What a carrier takes over comes in whole units: what is under way ends with one, the rest is not begun."""
    board = new_board(hub=(Kind.ORIGIN, 3))
    blob = add(board, "a", 100 * MIB)
    begun, at_its_end, waiting = grant_all(board, 0.0)
    board.received(begun, 2 * MIB + 5, 1.0)
    board.received(at_its_end, 3 * MIB, 1.0)
    board.wind_down(blob)
    assert (begun.stop, begun.revoked) == (begun.start + 3 * MIB, False)
    assert at_its_end.stop <= at_its_end.start + 4 * MIB
    assert waiting.revoked
    assert board.grant(1.0) is None
    for lease in (begun, at_its_end, waiting):
        board.end(lease, lease.position)
    assert not blob.free
    board.restart(blob, [Span(0, MIB)])
    assert board.grant(2.0) is not None
