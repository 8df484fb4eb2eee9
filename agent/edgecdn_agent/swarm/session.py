"""The swarm: the one place that knows libtorrent. Torrents in, plain objects and events out.

Every torrent is of one complete blob (`edgecdn_agent.swarm.torrents`). A `Seed` gives a blob where it lies
and never writes: `upload_mode` sees to that, since seed mode alone was seen to fetch a rotten or a
deleted file anew under its final name. A `Download` writes into a partial file; which of its pieces
are in the file (and not only in memory of the session) is told after a flush, because a finished
piece is not yet a written one. Peers are only those we connect to, or who are in reach.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import libtorrent as lt

from edgecdn.digest import Digest
from edgecdn.errors import SystemFailed
from edgecdn.piecetree import PieceTree
from edgecdn_agent.swarm.torrents import torrent_dict

__all__ = ["Download", "PeerTraffic", "Seed", "Swarm", "Trouble"]

_log = logging.getLogger(__name__)

_FLUSH_S = 15.0
"""A flush that is not answered for so long is not waited for: the disk hangs, or the torrent is gone."""

_PAUSE_S = 3.0
_RELEASE_S = 120.0
"""How long a file may take to be let go; nobody else may write into it before."""

_END_S = 2.0
"""How long downloads may take to be flushed when the agent stops."""

_PORTS_TRIED = 16
_LISTEN_S = 5.0

_ALERTS = (
    lt.alert.category_t.error_notification
    | lt.alert.category_t.status_notification
    | lt.alert.category_t.storage_notification
    | lt.alert.category_t.piece_progress_notification
    | lt.alert.category_t.peer_notification
)

_RINGS_BYTES = 4096  # the session writes a byte when there are alerts; how many does not matter

_COMMON_FLAGS = lt.torrent_flags.disable_pex | lt.torrent_flags.apply_ip_filter | lt.torrent_flags.duplicate_is_error

_NO_OTHER_PORT: dict[str, Any] = {"listen_system_port_fallback": False, "max_retry_port_bind": 0}
"""libtorrent moves to another port silently when its own is taken; we choose, and announce the real one."""

_EVERYWHERE = (("0.0.0.0", "255.255.255.255"), ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))  # noqa: S104 - ranges

_SETTINGS: dict[str, Any] = {
    "user_agent": "edgecdn",
    "alert_mask": _ALERTS,
    # Peers come from the lab's own look-ups; nothing is asked of, or told to, anybody outside.
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    "out_enc_policy": int(lt.enc_policy.disabled),
    "in_enc_policy": int(lt.enc_policy.disabled),
    # A lab is few machines on a fast link: everybody is served, connections come up at once.
    "unchoke_slots_limit": -1,
    "allow_multiple_connections_per_ip": True,  # several users' agents on one machine; loopback labs
    "listen_queue_size": 128,
    "connection_speed": 200,
    "tick_interval": 100,  # ms; connections are made at ticks: at the usual 500 a small file waits longer than it takes
    "connections_limit": 800,
    "min_reconnect_time": 1,
    "peer_connect_timeout": 5,
    "peer_timeout": 30,
    "request_timeout": 10,
    "piece_timeout": 10,
    "active_downloads": -1,
    "active_seeds": -1,
    "active_limit": -1,
    "auto_manage_interval": 600,
    # Short queues: what a taker has asked for long ago, others have given it meanwhile. Measured with 8 takers of
    # one holder: the holder sent 1.2 copies instead of 1.7, and the last taker was done after 1.26 x bytes / link,
    # not 1.7 x.
    "max_allowed_in_request_queue": 4,
    "request_queue_time": 1,
    "alert_queue_size": 20_000,
    "rate_limit_ip_overhead": False,
    "close_redundant_connections": True,
    "no_atime_storage": True,
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something went wrong with a torrent: `disk` (a file cannot be read or written) or `bytes` (a piece was wrong)."""

    kind: str
    reason: str
    piece: int | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerTraffic:
    """One connection of a torrent: bytes in all and bytes per second now, both ways."""

    address: str
    port: int
    down_bytes: int
    up_bytes: int
    down_bytes_s: int
    up_bytes_s: int


@dataclass(eq=False, slots=True)
class _Torrent:
    """What seeds and downloads share: a handle, the wish to be told of trouble, the way to close it."""

    swarm: Swarm
    handle: Any
    on_trouble: Callable[[Trouble], None]
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    removed: asyncio.Event = field(default_factory=asyncio.Event)

    def traffic(self) -> list[PeerTraffic]:
        """Its connections now; none where it is gone. Asks the session: call it in a thread."""
        try:
            peers = self.handle.get_peer_info()
        except RuntimeError:  # what libtorrent says of a torrent that was removed meanwhile
            return []
        return [
            PeerTraffic(
                str(p.ip[0]), int(p.ip[1]), p.total_download, p.total_upload, p.payload_down_speed, p.payload_up_speed
            )
            for p in peers
        ]

    def finished_piece(self, index: int) -> None:
        """A piece has arrived and is right; only a download has use for that."""

    def flushed(self) -> None:
        """All that had arrived when the flush was asked for is in the file."""

    async def stopped(self) -> None:
        """No peer gives it anything any more; a seed takes nothing anyway."""

    async def drain(self) -> None:
        """Have all that arrived written; a seed has nothing to write."""

    def abandon(self) -> None:
        """The session ends: nobody waits any more for what it would have told."""
        self.paused.set()
        self.removed.set()

    async def close(self) -> None:
        """Take it out of the session, which does not touch its file after this."""
        await self.swarm.remove(self)


_T = TypeVar("_T", bound=_Torrent)


class Seed(_Torrent):
    """A complete blob being given."""


@dataclass(eq=False, slots=True)
class Download(_Torrent):
    """A blob being received. `on_written` is told of the pieces that are in the file now."""

    on_written: Callable[[Sequence[int]], None] = lambda _pieces: None
    have: set[int] = field(default_factory=set)
    pieces: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)
    _arrived: list[int] = field(default_factory=list)
    _flushing: list[int] | None = None
    _flushed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def complete(self) -> bool:
        """Whether every piece has arrived and was right (written or not)."""
        return len(self.have) == self.pieces

    def connect(self, host: str, port: int) -> None:
        """Ask a peer for it."""
        _log.debug("swarm: %s:%d is asked", host, port)
        with suppress(RuntimeError):
            self.handle.connect_peer((host, port))

    def set_sequential(self, wanted: bool) -> None:
        """From the front (a lone taker, whose hashing then follows), or rarest first (a crowd, who share)."""
        with suppress(RuntimeError):
            change = self.handle.set_flags if wanted else self.handle.unset_flags
            change(lt.torrent_flags.sequential_download)

    def finished_piece(self, index: int) -> None:
        if index in self.have:  # libtorrent tells also of those that were there from the start
            return
        self.have.add(index)
        self._arrived.append(index)
        if self.complete:
            self.done.set()

    def flushed(self) -> None:
        written, self._flushing = self._flushing or [], None
        self._flushed.set()
        if written:
            self.on_written(written)

    def start_flush(self) -> bool:
        """Have what arrived written, and told by `on_written`; one flush at a time, else False."""
        if self._flushing is not None or not self._arrived:
            return False
        try:
            self.handle.flush_cache()
        except RuntimeError:
            return False
        self._flushing, self._arrived = self._arrived, []
        self._flushed.clear()
        return True

    async def flush(self) -> None:
        """Have everything that arrived written and told; gives up silently on a disk that hangs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await self.drain()

    async def stopped(self) -> None:
        with suppress(TimeoutError):  # one that met an error was paused by that, and tells nothing now
            async with asyncio.timeout(_PAUSE_S):
                await self.paused.wait()

    async def drain(self) -> None:
        for _ in range(2):  # a flush that is under way may be older than the last pieces
            self.start_flush()
            if self._flushing is not None:
                await self._flushed.wait()

    def abandon(self) -> None:
        _Torrent.abandon(self)  # slots: the class this was written in is not the one that is
        self._flushing = None  # not told as written: nobody knows
        self._flushed.set()


class Swarm:
    """A libtorrent session. Its threads are its own; alerts are read on the loop, when it says there are some."""

    def __init__(self) -> None:
        self.port = 0
        self._session: Any = None
        self._torrents: dict[Any, _Torrent] = {}
        self._listening: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        self._closed = False
        self._bell: socket.socket | None = None
        self._ring: socket.socket | None = None

    async def start(self, host: str, port: int) -> None:
        """Begin to listen at exactly `port`, or the first free one after it; raises SystemFailed when none is."""
        loop = asyncio.get_running_loop()
        self._closed = False
        self._session = lt.session(cast("Any", {**_SETTINGS, "listen_interfaces": ""}))
        # By a descriptor, not by a callback: that would need the interpreter in a thread of the session,
        # which may be what the caller who holds the interpreter waits for (seen: both waited for ever).
        self._bell, ring = socket.socketpair()
        self._bell.setblocking(False)
        ring.setblocking(False)
        self._ring = ring
        loop.add_reader(self._bell, self._read_alerts)
        self._session.set_alert_fd(ring.fileno())
        # Ten on, as for the other listeners: the neighbouring ports are theirs.
        tried = [n for n in range(port, port + 10 * _PORTS_TRIED, 10) if n < 1 << 16] if port else [0]
        reason = ""
        for number in tried:
            shown = f"[{host}]" if ":" in host else host
            self._session.apply_settings({**_NO_OTHER_PORT, "listen_interfaces": f"{shown}:{number}"})
            try:
                async with asyncio.timeout(_LISTEN_S):
                    bound, reason = await self._listened(number)
            except TimeoutError:
                reason = "the session does not answer"
                break
            if bound is not None:
                self.port = bound
                return
        await self.close()
        raise SystemFailed(f"no port for the swarm from {port} on ({reason})")

    async def _listened(self, wanted: int) -> tuple[int | None, str]:
        """The port that is listened at (None and why: it is not). An address that is "all" is told of many times."""
        while True:
            number, failure = await self._listening.get()
            if wanted in (0, number):
                return (None, failure) if failure else (number, "")

    def set_reach(self, ranges: Iterable[tuple[str, str]]) -> None:
        """Let only these ranges of addresses connect, or be connected to."""
        allowed = lt.ip_filter()
        for first, last in _EVERYWHERE:
            allowed.add_rule(first, last, 1)
        for first, last in ranges:
            allowed.add_rule(first, last, 0)
        self._session.set_ip_filter(allowed)

    def set_limits(self, upload_bytes_s: int | None, download_bytes_s: int | None) -> None:
        """Limits for all torrents together; None: none. They hold on local networks too."""
        everywhere = lt.ip_filter()  # libtorrent exempts local addresses from limits unless told otherwise
        for first, last in _EVERYWHERE:
            everywhere.add_rule(first, last, 1 << self._session.global_peer_class_id)
        self._session.set_peer_class_filter(everywhere)
        self._session.apply_settings(
            {"upload_rate_limit": upload_bytes_s or 0, "download_rate_limit": download_bytes_s or 0}
        )

    def seed(self, digest: Digest, tree: PieceTree, folder: Path, on_trouble: Callable[[Trouble], None]) -> Seed:
        """Give the blob `folder/<digest>` where it lies."""
        wanted = self._params(digest, tree, folder)
        wanted.flags = lt.torrent_flags.seed_mode | lt.torrent_flags.upload_mode | _COMMON_FLAGS
        torrent = Seed(self, None, on_trouble)
        return self._add(torrent, wanted)

    def download(
        self,
        digest: Digest,
        tree: PieceTree,
        partial: Path,
        have: Sequence[bool],
        on_written: Callable[[Sequence[int]], None],
        on_trouble: Callable[[Trouble], None],
    ) -> Download:
        """Receive the pieces of a blob that `have` lacks, into the file `partial`, which is as long as the blob."""
        wanted = self._params(digest, tree, partial.parent)
        wanted.renamed_files = {0: partial.name}
        wanted.have_pieces = list(have)
        # The file is ours and sparse: looking through it for pieces would hash its holes.
        wanted.flags = lt.torrent_flags.no_verify_files | _COMMON_FLAGS
        torrent = Download(self, None, on_trouble, on_written=on_written, pieces=tree.pieces)
        torrent.have.update(index for index, there in enumerate(have) if there)
        return self._add(torrent, wanted)

    async def remove(self, torrent: _Torrent) -> None:
        """Take a torrent out, its peers first: when this returns, the session writes nothing more into its file.

        Raises SystemFailed when the disk does not let it go within two minutes.
        """
        handle = torrent.handle
        if self._closed or torrent.removed.is_set() or handle not in self._torrents:
            return
        with suppress(RuntimeError):
            handle.unset_flags(lt.torrent_flags.auto_managed)
            handle.pause()
        try:
            async with asyncio.timeout(_RELEASE_S):
                await torrent.stopped()
                await torrent.drain()
                with suppress(RuntimeError):
                    self._session.remove_torrent(handle)
                await torrent.removed.wait()
        except TimeoutError as error:
            raise SystemFailed("the disk does not let go of a file that was being received") from error
        finally:
            self._torrents.pop(handle, None)

    async def run(self, host: str, port: int, bound: Callable[[int], None]) -> None:
        """Be there until cancelled; `bound` is told the port. Downloads have a moment to end in order."""
        try:
            await self.start(host, port)
            bound(self.port)
            await asyncio.Event().wait()
        finally:
            try:
                async with asyncio.timeout(_END_S):
                    while any(isinstance(t, Download) for t in self._torrents.values()):  # noqa: ASYNC110 - as it is
                        await asyncio.sleep(0.02)
            except TimeoutError:
                _log.warning("downloads did not end in time")
            await self.close()

    @property
    def torrents(self) -> int:
        """How many there are."""
        return len(self._torrents)

    def traffic(self) -> list[tuple[int, PeerTraffic]]:
        """Every connection, with a number for its torrent. Asks the session: call it in a thread."""
        return [(id(torrent), t) for torrent in list(self._torrents.values()) for t in torrent.traffic()]

    def given(self) -> dict[int, int]:
        """Bytes each torrent gave in all, also over connections that have ended; numbers as in `traffic`."""
        given: dict[int, int] = {}
        for torrent in list(self._torrents.values()):
            with suppress(RuntimeError):  # removed meanwhile
                given[id(torrent)] = int(torrent.handle.status().total_payload_upload)
        return given

    def bytes_moved(self) -> tuple[int, int]:
        """Bytes sent and received per second now, all torrents."""
        traffic = [t for torrent in list(self._torrents.values()) for t in torrent.traffic()]
        return sum(t.up_bytes_s for t in traffic), sum(t.down_bytes_s for t in traffic)

    async def close(self) -> None:
        """End the session; what downloads had in memory is written first."""
        self._closed = True
        session, self._session = self._session, None
        if session is None:
            return
        self.port = 0
        if self._bell is not None:
            asyncio.get_running_loop().remove_reader(self._bell)
        for torrent in self._torrents.values():
            torrent.abandon()
        self._torrents.clear()
        session.pause()
        # The destructor waits for the session's threads.
        held = [session]
        del session
        await asyncio.to_thread(held.clear)
        for end in (self._bell, self._ring):
            if end is not None:
                end.close()
        self._bell = self._ring = None

    def _params(self, digest: Digest, tree: PieceTree, folder: Path) -> Any:
        encoded = lt.bencode(dict(torrent_dict(digest, tree)))
        if self._session is None:
            raise SystemFailed("the swarm is not running")
        wanted = lt.add_torrent_params()
        wanted.ti = lt.torrent_info(encoded)
        wanted.save_path = str(folder)
        wanted.storage_mode = lt.storage_mode_t.storage_mode_sparse
        return wanted

    def _add(self, torrent: _T, wanted: Any) -> _T:
        """Two of one blob would be one to libtorrent, and write where nobody looks: the second is refused."""
        try:
            torrent.handle = self._session.add_torrent(wanted)
        except RuntimeError as error:
            raise SystemFailed(f"the swarm has this blob already ({error})") from error
        self._torrents[torrent.handle] = torrent
        return torrent

    # Alerts

    def _read_alerts(self) -> None:
        if self._session is None or self._bell is None:
            return
        with suppress(BlockingIOError):
            self._bell.recv(_RINGS_BYTES)
        for alert in self._session.pop_alerts():
            try:
                self._take(alert)
            except Exception:  # noqa: BLE001 - one alert that we misread must not cost us the others
                _log.exception("an alert of the swarm was not understood: %s", type(alert).__name__)

    def _take(self, alert: Any) -> None:
        match alert:
            case lt.listen_succeeded_alert():
                if alert.socket_type == lt.socket_type_t.tcp:
                    self._listening.put_nowait((int(alert.port), ""))
            case lt.listen_failed_alert():
                if alert.socket_type == lt.socket_type_t.tcp:
                    self._listening.put_nowait((int(alert.port), alert.error.message() or "refused"))
            case lt.torrent_removed_alert():
                torrent = self._torrents.pop(alert.handle, None)
                if torrent is not None:
                    torrent.removed.set()
            case lt.torrent_alert():
                torrent = self._torrents.get(alert.handle)
                if torrent is not None:
                    _tell(torrent, alert)
            case _:
                _log.debug("swarm: %s", alert.message())


def _tell(torrent: _Torrent, alert: Any) -> None:
    match alert:
        case lt.piece_finished_alert():
            torrent.finished_piece(alert.piece_index)
        case lt.cache_flushed_alert():
            torrent.flushed()
        case lt.torrent_paused_alert():
            torrent.paused.set()
        case lt.hash_failed_alert():
            torrent.on_trouble(Trouble("bytes", "a piece was wrong", alert.piece_index))
        case lt.peer_ban_alert():
            torrent.on_trouble(Trouble("bytes", "a peer gave wrong pieces", addresses=(str(alert.endpoint[0]),)))
        case lt.file_error_alert() | lt.torrent_error_alert() | lt.fastresume_rejected_alert():
            if not isinstance(alert, lt.fastresume_rejected_alert):  # gone before it was opened: that pauses nothing
                torrent.paused.set()
            torrent.on_trouble(Trouble("disk", alert.message()))
        case _:
            _log.debug("swarm: %s", alert.message())
