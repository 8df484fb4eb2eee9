"""Piece trees: as libtorrent makes them, however the bytes come."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Any

import libtorrent as lt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecdn.errors import BadInput
from edgecdn.manifest import MAX_FILE_BYTES
from edgecdn.piecetree import HASH_BYTES, LEAF_BYTES, PieceTree, TreeBuilder, part_layer, part_node, piece_bytes

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES = [
    1,
    16383,
    16384,
    16385,
    32769,
    49153,
    65535,
    65536,
    65537,
    262143,
    262144,
    262145,
    524289,
    3 * MIB + 7,
    9 * MIB,
]


def _data(size: int) -> bytes:
    return Random(size).randbytes(size)


def _tree(data: bytes, chunk: int = MIB) -> PieceTree:
    builder = TreeBuilder(len(data))
    for start in range(0, len(data), chunk):
        builder.update(data[start : start + chunk])
    return builder.finish()


@pytest.mark.parametrize("size", SIZES)
def test_the_same_as_libtorrent_makes(size: int, tmp_path: Path) -> None:
    data = _data(size)
    (tmp_path / "blob").write_bytes(data)
    made = lt.create_torrent([lt.create_file_entry("blob", size)], piece_bytes(size), lt.create_torrent.v2_only)
    lt.set_piece_hashes(made, str(tmp_path))
    torrent: Any = lt.bdecode(lt.bencode(made.generate()))
    theirs = torrent[b"info"][b"file tree"][b"blob"][b""][b"pieces root"]
    tree = _tree(data)
    assert tree.root == theirs
    layers = torrent[b"piece layers"]
    if size > piece_bytes(size):
        assert layers == {theirs: tree.layer}
    else:
        assert layers == {}
        assert tree.layer == theirs


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_chunks_of_any_size_make_the_same_tree(draw: st.DataObject) -> None:
    size = draw.draw(st.sampled_from([1, LEAF_BYTES, LEAF_BYTES + 1, 64 * KIB, 64 * KIB + 1, 700 * KIB + 3]))
    data = memoryview(_data(size))
    builder, at = TreeBuilder(size), 0
    while at < size:
        step = draw.draw(st.one_of(st.integers(1, size), st.sampled_from([LEAF_BYTES, 3 * LEAF_BYTES, 100 * KIB])))
        builder.update(data[at : at + step])
        at += step
    assert builder.finish() == _tree(bytes(data))


@pytest.mark.parametrize("size", SIZES)
def test_each_piece_is_told_from_a_wrong_one(size: int) -> None:
    data, length = _data(size), piece_bytes(size)
    tree = _tree(data)
    assert tree.pieces == -(-size // length)
    for index in range(tree.pieces):
        piece = bytearray(data[index * length : (index + 1) * length])
        assert tree.matches(index, piece)
        assert tree.matches(index, memoryview(piece))
        assert not tree.matches(index, piece[:-1])
        assert not tree.matches(index, piece + b"\0")
        assert not tree.matches(index + 1, piece)
        piece[len(piece) // 2] ^= 1
        assert not tree.matches(index, piece)
    for index in (-1, tree.pieces, 1 << 70):
        assert not tree.matches(index, data[:length])


def test_parsed_from_what_others_say() -> None:
    tree = _tree(_data(3 * MIB + 7))
    again = PieceTree.parse(tree.size, tree.layer)
    assert again == tree
    assert again.root == tree.root == again.root
    assert tree.node(1) == tree.layer[32:64]
    with pytest.raises(IndexError):
        tree.node(tree.pieces)
    for size, layer in (
        (tree.size, tree.layer[:-1]),
        (tree.size, tree.layer + bytes(HASH_BYTES)),
        (tree.size, b""),
        (0, b""),
        (-1, bytes(HASH_BYTES)),
        (MAX_FILE_BYTES + 1, bytes(HASH_BYTES)),
        (1 << 200, b""),
    ):
        with pytest.raises(BadInput):
            PieceTree.parse(size, layer)


def test_pieces_grow_with_the_blob() -> None:
    assert {piece_bytes(size) for size in (1, 64 * KIB, 64 * KIB + 1, MIB, 2 * GIB)} == {64 * KIB}
    assert piece_bytes(2 * GIB + 1) == 128 * KIB
    assert piece_bytes(4 * GIB) == 128 * KIB
    assert piece_bytes(4 * GIB + 1) == 256 * KIB
    assert piece_bytes(MAX_FILE_BYTES) == 512 * MIB


def test_a_builder_takes_exactly_the_size() -> None:
    builder = TreeBuilder(10)
    builder.update(b"12345")
    with pytest.raises(BadInput):
        builder.finish()
    with pytest.raises(BadInput):
        builder.update(b"123456")
    for size in (0, -1, MAX_FILE_BYTES + 1):
        with pytest.raises(BadInput):
            TreeBuilder(size)


def test_one_leaf_is_its_own_root() -> None:
    assert _tree(b"x").root == hashlib.sha256(b"x").digest()


@pytest.mark.parametrize("size", [MIB + 1, 3 * MIB + 7, 9 * MIB, 4 * MIB])
def test_parts_make_the_tree_of_the_whole(size: int) -> None:
    """Their layers are its layer, and over their nodes, with nothing beyond the end, hangs its root."""
    data = _data(size)
    builder = TreeBuilder(size)
    builder.update(data)
    tree = builder.finish()
    layers = [part_layer(size, data[at : at + MIB]) for at in range(0, size, MIB)]
    assert b"".join(layers) == tree.layer
    nodes = [part_node(size, layer, MIB) for layer in layers]
    assert len(set(nodes)) == len(nodes)
    nothing = bytes(HASH_BYTES)
    for _ in range((MIB // LEAF_BYTES).bit_length() - 1):
        nothing = hashlib.sha256(nothing + nothing).digest()
    nodes += [nothing] * ((1 << (len(nodes) - 1).bit_length()) - len(nodes))
    while len(nodes) > 1:
        nodes = [hashlib.sha256(left + right).digest() for left, right in zip(nodes[::2], nodes[1::2], strict=True)]
    assert nodes == [tree.root]
