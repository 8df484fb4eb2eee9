"""The torrent of a blob: the same everywhere, as BEP 52 has it, and as libtorrent itself would make it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest

from edgecdn.piecetree import PieceTree, piece_bytes
from edgecdn_agent.swarm.torrents import torrent_dict
from tests.agent.cache_machine import sha256, tree_of

PIECE = piece_bytes(1)


def _info(data: bytes) -> Any:
    return lt.torrent_info(lt.bencode(dict(torrent_dict(sha256(data), tree_of(data)))))


@pytest.mark.parametrize(
    "size", [1, 16 << 10, (16 << 10) + 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 5, 16 * PIECE]
)
def test_it_is_what_libtorrent_makes_of_the_file(size: int, tmp_path: Path) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    name = sha256(data).hex
    (tmp_path / name).write_bytes(data)
    made = lt.create_torrent([lt.create_file_entry(name, size)], PIECE, lt.create_torrent.v2_only)
    lt.set_piece_hashes(made, str(tmp_path))
    theirs, ours = lt.torrent_info(lt.bencode(made.generate())), _info(data)
    assert ours.info_hashes().v2 == theirs.info_hashes().v2
    assert not ours.info_hashes().has_v1()
    assert ours.name() == name


def test_it_names_no_tracker_and_nobody() -> None:
    given = torrent_dict(sha256(b"x"), tree_of(b"x"))
    assert set(given) == {b"info", b"piece layers"}
    assert set(given[b"info"]) == {b"file tree", b"meta version", b"name", b"piece length"}


def test_layers_belong_to_files_of_more_than_one_piece() -> None:
    one, two = bytes(PIECE), bytes(PIECE + 1)
    assert torrent_dict(sha256(one), tree_of(one))[b"piece layers"] == {}
    assert list(torrent_dict(sha256(two), tree_of(two))[b"piece layers"]) == [tree_of(two).root]


def test_another_tree_is_another_torrent() -> None:
    """Who claims another tree for a digest is in another swarm: its bytes never meet those of the true one."""
    data, other = bytes(2 * PIECE), bytes(2 * PIECE - 1) + b"x"
    true = _info(data).info_hashes().v2
    claimed = lt.torrent_info(lt.bencode(dict(torrent_dict(sha256(data), tree_of(other))))).info_hashes().v2
    assert true != claimed


def test_6_a_layer_that_does_not_belong_to_its_root_is_refused() -> None:
    """Our trees always agree with their root; libtorrent refuses what does not, so that neither could be fooled."""
    data = bytes(3 * PIECE)
    given = dict(torrent_dict(sha256(data), tree_of(data)))
    given[b"piece layers"] = {tree_of(data).root: bytes(32 * 3)}
    with pytest.raises(RuntimeError):
        lt.torrent_info(lt.bencode(given))


def test_6_large_files_have_large_pieces_and_torrents_of_bounded_size() -> None:
    size = 1 << 40
    layer = bytes(32 * -(-size // piece_bytes(size)))
    tree = PieceTree.parse(size, layer)
    assert len(lt.bencode(dict(torrent_dict(sha256(b""), tree)))) < 4 << 20
