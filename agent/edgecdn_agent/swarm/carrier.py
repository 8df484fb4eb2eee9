"""Bringing a blob over the swarm: who has it, which piece tree, when to go on without it.

`SwarmCarrier` is what a transfer tries first for a large file. Who takes a blob alone is served faster by ranges
over HTTP (measured on 1 Gbit/s: 0.97 of iperf3, by the swarm 0.81), so it steps in when others take it too.
It gives up early rather than late: what it has brought stays, and the transfer asks peers by HTTP and then
the hubs for the rest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from edgecdn.crash import crash_point
from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import EdgecdnError, NoSpace, ReadOnlyStore
from edgecdn.events import Kind
from edgecdn.lan_wire import BlobState
from edgecdn.manifest import FileEntry
from edgecdn.names import RepoId
from edgecdn.piecetree import PieceTree, piece_bytes
from edgecdn.to_its_end import to_its_end
from edgecdn.transfer.carrier import Cargo
from edgecdn_agent.holdings.downloads import Downloads
from edgecdn_agent.lab.peers import Peer, Peers
from edgecdn_agent.lan.client import LanClient
from edgecdn_agent.swarm.pieces import check_earlier, join_pieces, pieces_within, right_pieces
from edgecdn_agent.swarm.session import Download, Swarm, Trouble
from edgecdn_agent.swarm.watch import Watch

__all__ = ["SwarmCarrier"]

_log = logging.getLogger(__name__)

_LEAST_BYTES = 4 << 20
"""Smaller files are asked of peers by HTTP: a torrent takes longer to begin than they take to come."""

_FLUSH_BYTES = 32 << 20
_FLUSH_S = 2.0
"""What arrived is written, and so can be hashed and kept, after so much or so long."""

_COUNT_S = 0.5
"""How often connections are counted."""

_LOOKS_S = (0.2, 0.5, 1.0, 2.0)
"""When it is asked again who else has the blob or takes it, seconds after the last time; the last one for ever.

Those who begin together find each other at once: until then all would take the same from the holder.
"""

_PREPARE_S = 4.0
"""How long peers may take to say who has a blob and to give its tree; then the sources go on without."""

_ROOTS_TRIED = 3
_ASKED_FOR_TREE = 4

_TOGETHER_S = 0.25
"""How long a taker that sees no other waits before it counts as alone."""

_CROWD_S = 10.0
"""How often one that is alone looks whether it still is, when no peer says that something changed."""

_WAKE_S = 0.2


@dataclass(slots=True)
class _Carry:
    """One blob on its way: what was written and is not told yet, what went wrong, whom we are connected to."""

    cargo: Cargo
    tree: PieceTree
    watch: Watch
    written: list[int] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    connected: dict[str, Peer] = field(default_factory=dict)
    told: int = 0
    bad_piece: int | None = None
    woken: set[str] = field(default_factory=set)
    crowd: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_written(self, pieces: Sequence[int]) -> None:
        self.written += pieces
        self.changed.set()

    def on_trouble(self, trouble: Trouble) -> None:
        self.troubles.append(trouble)
        self.changed.set()


class SwarmCarrier:
    """The swarm as a carrier. `may_share` tells whether the repo's bytes may be given away: a swarm takes and gives."""

    name = "peers (swarm)"
    kind = Kind.LAN

    def __init__(
        self,
        swarm: Swarm,
        lan: LanClient,
        peers: Peers,
        downloads: Downloads,
        may_share: Callable[[RepoId], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._swarm = swarm
        self._lan = lan
        self._peers = peers
        self._downloads = downloads
        self._may_share = may_share
        self._clock = clock
        self._claims: dict[Digest, dict[str, list[Peer]]] = {}
        self._doubtful: set[tuple[Digest, str]] = set()
        self._closed_to_us: dict[str, float] = {}
        self._lone: dict[Digest, PieceTree] = {}
        self._checked: dict[Digest, tuple[bytes, set[int]]] = {}
        self.proven: dict[Digest, PieceTree] = {}
        """Trees of blobs that were verified here, until they are taken from here."""

    def takes(self, entry: FileEntry) -> bool:
        """Large files; small ones carry no piece tree."""
        return entry.digest.kind is DigestKind.SHA256 and entry.size >= _LEAST_BYTES and self._swarm.port > 0

    def built(self, entry: FileEntry, tree: PieceTree) -> None:
        """Remember the tree, for peers that will want the file; who claimed another one is banned."""
        self.proven[entry.digest] = tree
        claims = self._claims.pop(entry.digest, {})
        for root, claimers in claims.items():
            if root != tree.root.hex():
                self._doubtful.add((entry.digest, root))
                for peer in claimers:
                    self._peers.ban(peer, f"claimed a false piece tree for {entry.digest.hex[:12]}")

    async def holders(self, entry: FileEntry) -> int:
        """How many machines claim to have all of it, and can give it by the swarm."""
        return len({peer.machine for peer, state in await self._look(entry) if state.complete})

    async def carry(self, cargo: Cargo) -> bool:
        """See `edgecdn.transfer.carrier.Carrier`."""
        entry = cargo.entry
        if not self._may_share(cargo.manifest.repo):
            return False
        try:
            async with asyncio.timeout(_PREPARE_S):
                found = await self._look(entry)
                tree = await self._choose_tree(entry, found)
        except TimeoutError:
            _log.info("peers take too long to say what they have of %s", entry.digest.hex[:12])
            return False
        if tree is None:
            return False
        self._downloads.add(entry.digest, tree)
        try:
            if cargo.alternatives() and await self._is_alone(entry, found):
                self._lone[entry.digest] = tree
                return True
            await self._bring(cargo, tree, found)
        finally:
            self._downloads.remove(entry.digest)
        return False

    async def called_for(self, cargo: Cargo) -> None:
        """When others take the blob too; until then they are told that we do."""
        digest = cargo.entry.digest
        tree = self._lone.pop(digest)
        self._downloads.add(digest, tree)
        changed = asyncio.Event()
        unsubscribe = self._peers.subscribe(lambda _event: changed.set())
        try:
            while not _is_crowd(await self._look(cargo.entry)):
                changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CROWD_S):
                        await changed.wait()
                await asyncio.sleep(_TOGETHER_S)
            # While the sources still give: then nothing has to wait for all of it to be hashed.
            here = pieces_within(cargo.have(), tree.size)
            self._checked[digest] = (tree.root, await asyncio.to_thread(right_pieces, cargo, tree, here))
        finally:
            unsubscribe()
            self._downloads.remove(digest)

    async def _is_alone(self, entry: FileEntry, found: Sequence[tuple[Peer, BlobState]]) -> bool:
        """Whether nobody else takes it, also a moment later: those who begin together see each other."""
        if _is_crowd(found):
            return False
        await asyncio.sleep(_TOGETHER_S)
        return not _is_crowd(await self._look(entry))

    async def _bring(self, cargo: Cargo, tree: PieceTree, found: Sequence[tuple[Peer, BlobState]]) -> None:
        entry = cargo.entry
        root, known = self._checked.pop(entry.digest, (b"", set()))
        try:
            have = await check_earlier(cargo, tree, known if root == tree.root else frozenset())
            if have is None:
                _log.warning("what is here of %s is not as its claimed piece tree says", entry.digest.hex[:12])
                return
            carry = _Carry(cargo, tree, Watch(self._clock()))
            download = self._swarm.download(entry.digest, tree, cargo.path, have, carry.on_written, carry.on_trouble)
        except (NoSpace, ReadOnlyStore):
            raise
        except (EdgecdnError, OSError) as error:  # it has it already, or starts again: the sources go on
            _log.info("the swarm does not take %s: %s", entry.digest.hex[:12], error)
            return
        try:
            await self._connect(carry, download, found)
            await self._drive(carry, download)
        finally:
            await to_its_end(self._finish(carry, download, sum(have)))

    async def _drive(self, carry: _Carry, download: Download) -> None:
        """Until all is there, or others had better go on."""
        looked_at = flushed_at = counted_at = self._clock()
        unflushed = len(download.have)
        looks = 0
        length = piece_bytes(carry.tree.size)
        carry.watch.arrived(unflushed * length, looked_at)  # what was there before is no sign of life
        while not download.complete:
            await _wait(download.done, carry.changed)
            now = self._clock()
            carry.watch.arrived(len(download.have) * length, now)
            await self._tell_written(carry)
            if now - counted_at >= _COUNT_S:
                counted_at = now
                carry.watch.connections(len(await asyncio.to_thread(download.traffic)), now)
            if self._gives_up(carry, now):
                return
            fresh = (len(download.have) - unflushed) * length
            if fresh and (fresh >= _FLUSH_BYTES or now - flushed_at >= _FLUSH_S) and download.start_flush():
                flushed_at, unflushed = now, len(download.have)
            if now - looked_at >= _LOOKS_S[min(looks, len(_LOOKS_S) - 1)]:
                looked_at = now
                looks += 1
                if not self._may_share(carry.cargo.manifest.repo):
                    return
                await self._connect(carry, download, await self._look(carry.cargo.entry))
                download.set_sequential(looks >= len(_LOOKS_S) and not carry.crowd)

    def _gives_up(self, carry: _Carry, now: float) -> bool:
        troubles, carry.troubles = carry.troubles, []
        for trouble in troubles:
            self._note(carry, trouble)
        reason = carry.watch.verdict(now, alternatives=carry.cargo.alternatives())
        if any(trouble.kind == "disk" for trouble in troubles):
            reason = "the file cannot be written"
        if reason is None:
            return False
        _log.info("the swarm gives up %s: %s", carry.cargo.entry.digest.hex[:12], reason)
        if carry.watch.never_connected:
            for peer in carry.connected.values():  # a firewall: not tried again for a while, by HTTP they still give
                self._closed_to_us[peer.id] = now + 60.0
        return True

    async def _finish(self, carry: _Carry, download: Download, before: int) -> None:
        if download.complete:
            crash_point("swarm.finished")
        await download.flush()
        await download.close()
        await self._tell_written(carry)
        if before + carry.told == carry.tree.pieces:
            carry.cargo.whole(carry.tree)
        crash_point("swarm.flushed")
        for trouble in carry.troubles:
            self._note(carry, trouble)
        if carry.bad_piece is not None:
            suspects = carry.connected.values()
            digest, piece = carry.cargo.entry.digest, carry.bad_piece
            await asyncio.gather(*(self._lan.rotten(peer, digest, piece) for peer in suspects))

    async def _tell_written(self, carry: _Carry) -> None:
        carry.changed.clear()
        if carry.written:
            pieces, carry.written = carry.written, []
            carry.told += len(pieces)
            await carry.cargo.landed(join_pieces(pieces, carry.tree.size))

    def _note(self, carry: _Carry, trouble: Trouble) -> None:
        entry = carry.cargo.entry
        _log.warning("the swarm, %s: %s", entry.digest.hex[:12], trouble.reason)
        if trouble.piece is not None:
            carry.bad_piece = trouble.piece
        for address in trouble.addresses:
            names = {p.name for p in carry.connected.values() if address in (p.host, *p.addresses)}
            carry.cargo.tell(
                f"{' or '.join(sorted(names)) or address} gave wrong pieces of {entry.path}; they are not used."
            )

    # Who has it

    async def _look(self, entry: FileEntry) -> list[tuple[Peer, BlobState]]:
        """Peers with a swarm that have the blob, or a part of it, by their own word."""
        now = self._clock()
        able = [p for p in self._peers.all() if p.swarm_port and self._closed_to_us.get(p.id, 0.0) <= now]
        found = await self._lan.who_has(able, entry.digest)
        return [
            (peer, state)
            for peer, state in found
            if state.root and state.size == entry.size and (entry.digest, state.root) not in self._doubtful
        ]

    async def _choose_tree(self, entry: FileEntry, found: Sequence[tuple[Peer, BlobState]]) -> PieceTree | None:
        """The tree most machines with the whole blob claim. A claim, no more: the blob's own digest decides.

        A machine counts once, however many agents it runs.
        """
        whole = [(peer, state.root) for peer, state in found if state.complete]
        machines = Counter(root for root, _ in {(root, peer.machine) for peer, root in whole})
        for root, _ in machines.most_common(_ROOTS_TRIED):
            claimers = [peer for peer, claimed in whole if claimed == root]
            for peer in claimers[:_ASKED_FOR_TREE]:
                tree = await self._lan.tree(peer, entry.digest, entry.size)
                if tree is not None and tree.root.hex() == root:
                    self._claims.setdefault(entry.digest, {})[root] = claimers
                    return tree
        return None

    async def _connect(self, carry: _Carry, download: Download, found: Sequence[tuple[Peer, BlobState]]) -> None:
        """Ask all of them; one that is connected already, or again, costs nothing."""
        root = carry.tree.root.hex()
        usable = [(peer, state) for peer, state in found if state.root == root]
        asleep = [peer for peer, state in usable if state.complete and peer.id not in carry.woken]
        carry.woken.update(peer.id for peer in asleep)
        await asyncio.gather(*(self._lan.wake(peer, carry.cargo.entry.digest) for peer in asleep))
        for peer, _ in usable:
            carry.connected[peer.id] = peer
            download.connect(peer.host, peer.swarm_port)
        carry.crowd = carry.crowd or _is_crowd(found)


def _is_crowd(found: Sequence[tuple[Peer, BlobState]]) -> bool:
    return any(not state.complete for _, state in found)


async def _wait(*events: asyncio.Event) -> None:
    """Until one of them is set, a fifth of a second at most: pieces come by the thousand, and wake nobody."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=_WAKE_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
