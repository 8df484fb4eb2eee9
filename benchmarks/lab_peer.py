"""One bare libtorrent process of a measured swarm: `python -m benchmarks.lab_peer '{...}'`.

Prints `ready`, waits for a line on stdin, connects to its peers, and prints `done` once all bytes
are verified and flushed. It goes on serving until stdin ends.
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path
from typing import Any

import libtorrent as lt

__all__ = ["PIECE_BYTES", "make_torrent", "serve"]

PIECE_BYTES = 256 * 1024
_LIMIT_S = 600.0
_OWN, _ORDINARY = 7, 4
"""Priorities of the pieces a taker asks for first, so that no two ask the holder for the same ones, and the rest."""
QUIET: dict[str, Any] = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "allow_multiple_connections_per_ip": True,
    "ssrf_mitigation": False,
    "announce_crypto_support": False,
}


def make_torrent(data: Path, piece_bytes: int = PIECE_BYTES) -> bytes:
    """A v2 torrent of one file."""
    made = lt.create_torrent(
        [lt.create_file_entry(data.name, data.stat().st_size)], piece_bytes, lt.create_torrent.v2_only
    )
    lt.set_piece_hashes(made, str(data.parent))
    return bytes(lt.bencode(made.generate()))


def serve(asked: dict[str, Any]) -> None:
    """Hold or take one file, as `asked` says."""
    settings: Any = {
        **QUIET,
        "listen_interfaces": f"{asked['address']}:{asked['port']}",
        "alert_mask": lt.alert_category.status | lt.alert_category.storage | lt.alert_category.error,
        **asked["settings"],
    }
    session = lt.session(settings)
    handle = session.add_torrent(_parameters(asked))
    if asked.get("striped") and not asked["holds"]:
        number, count = asked["number"]
        torrent = handle.torrent_file()
        assert torrent is not None
        own = [piece % count == number for piece in range(torrent.num_pieces())]
        handle.prioritize_pieces([_OWN if mine else _ORDINARY for mine in own])
    print("ready", flush=True)
    sys.stdin.readline()
    for address in asked["peers"]:
        handle.connect_peer((address, asked["port"]))
    if not asked["holds"]:
        _take(session, handle)
    _linger(session, handle)


def _parameters(asked: dict[str, Any]) -> Any:
    parameters = lt.load_torrent_file(asked["torrent"])
    parameters.save_path = asked["folder"]
    flags = lt.torrent_flags
    parameters.flags &= ~(flags.auto_managed | flags.paused)
    if asked["holds"]:
        parameters.flags |= flags.seed_mode
        if not asked.get("no_upload_mode"):
            parameters.flags |= flags.upload_mode
        if asked.get("super_seeding"):
            parameters.flags |= flags.super_seeding
    elif asked.get("sequential"):
        parameters.flags |= flags.sequential_download
    return parameters


def _take(session: Any, handle: Any) -> None:
    started = time.monotonic()
    deadline = started + _LIMIT_S
    finished = 0.0
    while time.monotonic() < deadline:
        session.wait_for_alert(1000)
        for alert in session.pop_alerts():
            if isinstance(alert, lt.torrent_finished_alert) and not finished:
                finished = time.monotonic() - started
                handle.flush_cache()
            elif isinstance(alert, lt.cache_flushed_alert) and finished:
                print(f"done {finished:.3f} {time.monotonic() - started:.3f}", flush=True)
                return
            elif isinstance(alert, (lt.file_error_alert, lt.torrent_error_alert, lt.listen_failed_alert)):
                raise SystemExit(alert.message())
    raise SystemExit(f"not done in {_LIMIT_S} s: {handle.status().progress:.3f}")


def _linger(session: Any, handle: Any) -> None:
    while not select.select([sys.stdin], [], [], 0.5)[0]:
        session.pop_alerts()
    status = handle.status()
    print(
        f"sent {status.total_payload_upload} got {status.total_payload_download} redundant {status.total_redundant_bytes}",
        flush=True,
    )


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
