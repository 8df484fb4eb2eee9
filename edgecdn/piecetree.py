"""PieceTree: the Merkle tree of a blob as BitTorrent v2 has it (BEP 52). Pure; no I/O.

Leaves are the SHA-256 of 16 KiB blocks (the last one as short as it is). Missing leaves count as
32 zero bytes, so above the blob's end every node is the hash of a subtree of zeros. What is kept is
the piece layer, one node a piece: from it follows the root, and against it each piece can be
checked alone. With the size it is all a torrent of the blob is made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from edgecdn.errors import BadInput
from edgecdn.manifest import MAX_FILE_BYTES

__all__ = ["HASH_BYTES", "LEAF_BYTES", "PieceTree", "TreeBuilder", "part_layer", "part_node", "piece_bytes"]

LEAF_BYTES = 16 << 10
"""The block of BEP 52."""

HASH_BYTES = 32
"""Of a SHA-256: each node."""

_LEAST_PIECE_BYTES = 64 << 10
"""Measured with short request queues: pieces of 64 KiB spread a blob to a crowd faster than larger ones."""

_MOST_PIECES = 32768
"""At the smallest size; larger blobs have larger pieces, so that a layer stays within 1 MiB."""

Data: TypeAlias = bytes | bytearray | memoryview


def piece_bytes(size: int) -> int:
    """How long the pieces of a blob of `size` bytes are: 64 KiB up to 2 GiB, doubling beyond."""
    length = _LEAST_PIECE_BYTES
    while length * _MOST_PIECES < size:
        length *= 2
    return length


def piece_count(size: int) -> int:
    """How many pieces it has; the last may be short."""
    return -(-size // piece_bytes(size))


@dataclass(frozen=True, slots=True)
class PieceTree:
    """The tree of one blob: `layer` has 32 bytes a piece.

    A blob of one piece at most has its root there; BEP 52 writes no piece layer for such a file.
    Made by `parse` from what others say, by `TreeBuilder` from the bytes.
    """

    size: int
    layer: bytes
    _root: bytes = field(default=b"", init=False, repr=False, compare=False)

    @classmethod
    def parse(cls, size: int, layer: bytes) -> PieceTree:
        """A tree from outside; raises BadInput when it cannot be one of a blob of `size` bytes."""
        _check_size(size)
        if len(layer) != HASH_BYTES * piece_count(size):
            raise BadInput(f"{len(layer)} bytes are no piece layer of {size} bytes")
        return cls(size, bytes(layer))

    @property
    def pieces(self) -> int:
        """How many there are."""
        return len(self.layer) // HASH_BYTES

    @property
    def root(self) -> bytes:
        """The node all others hang from, 32 bytes; computed once."""
        if not self._root:
            depth = _depth(piece_bytes(self.size) // LEAF_BYTES)
            root = _climb(self.layer, _depth(self.pieces), _ZEROS[depth:])
            object.__setattr__(self, "_root", root)  # frozen towards everybody else
        return self._root

    def node(self, index: int) -> bytes:
        """The hash of piece `index`; raises IndexError."""
        if not 0 <= index < self.pieces:
            raise IndexError(index)
        return self.layer[index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def matches(self, index: int, data: Data) -> bool:
        """Whether `data`, a whole piece, is piece `index`. False for an index or length it cannot have."""
        length = piece_bytes(self.size)
        if not 0 <= index < self.pieces or len(data) != min(length, self.size - index * length):
            return False
        return _piece_node(self.size, b"".join(_leaves(memoryview(data)))) == self.node(index)


class TreeBuilder:
    """Builds a tree while a blob is read from front to end, in chunks of any size."""

    def __init__(self, size: int) -> None:
        """Raises BadInput for a size that no blob with a tree has; an empty one has none."""
        _check_size(size)
        self.size = size
        self._piece = piece_bytes(size)
        self._taken = 0
        self._part = hashlib.sha256()  # the leaf that is not whole yet
        self._leaves: list[bytes] = []  # of the piece that is not whole yet
        self._layer = bytearray()

    def update(self, data: Data) -> None:
        """Take the next bytes; raises BadInput when there are more than the size says."""
        view = memoryview(data).cast("B")
        if self._taken + len(view) > self.size:
            raise BadInput(f"more than {self.size} bytes came")
        while view:
            room = LEAF_BYTES - self._taken % LEAF_BYTES
            self._part.update(view[:room])  # frees the interpreter from 2 KiB on
            self._taken += min(room, len(view))
            view = view[room:]
            if self._taken % LEAF_BYTES == 0 or self._taken == self.size:
                self._end_leaf()

    def finish(self) -> PieceTree:
        """The tree; raises BadInput when bytes are missing."""
        if self._taken != self.size:
            raise BadInput(f"{self._taken} of {self.size} bytes came")
        return PieceTree(self.size, bytes(self._layer))

    def _end_leaf(self) -> None:
        self._leaves.append(self._part.digest())
        self._part = hashlib.sha256()
        if self._taken % self._piece == 0 or self._taken == self.size:
            self._layer += _piece_node(self.size, b"".join(self._leaves))
            self._leaves.clear()


def part_layer(size: int, data: Data) -> bytes:
    """The piece layer of a part of a blob of `size` bytes: 32 bytes for each piece of `data`.

    The part begins and ends where pieces do (the last piece may be short), in a blob of several pieces.
    """
    view, length = memoryview(data).cast("B"), piece_bytes(size)
    return b"".join(_piece_node(size, b"".join(_leaves(view[at : at + length]))) for at in range(0, len(view), length))


def part_node(size: int, layer: bytes, part_bytes: int) -> bytes:
    """The node over a part's piece layer, in a blob that is cut into parts of `part_bytes`: 2^n pieces."""
    length = piece_bytes(size)
    return _climb(layer, _depth(part_bytes // length), _ZEROS[_depth(length // LEAF_BYTES) :])


def _check_size(size: int) -> None:
    if not 0 < size <= MAX_FILE_BYTES:
        raise BadInput(f"{size} is no size of a blob with a piece tree")


def _leaves(data: memoryview) -> Iterable[bytes]:
    for start in range(0, len(data), LEAF_BYTES):
        yield hashlib.sha256(data[start : start + LEAF_BYTES]).digest()


def _piece_node(size: int, leaves: bytes) -> bytes:
    """The node over the leaves of a piece: a full subtree, but only as large as needed where there is one piece."""
    length = piece_bytes(size)
    spread = length // LEAF_BYTES if size > length else len(leaves) // HASH_BYTES
    return _climb(leaves, _depth(spread), _ZEROS)


def _depth(nodes: int) -> int:
    """How many levels lie above so many nodes."""
    return (nodes - 1).bit_length()


def _climb(nodes: bytes, levels: int, zeros: list[bytes]) -> bytes:
    """The node `levels` above; what is missing to the right is a zero subtree, one of `zeros` for each level."""
    for level in range(levels):
        if len(nodes) % (2 * HASH_BYTES):
            nodes += zeros[level]
        nodes = b"".join(
            hashlib.sha256(nodes[at : at + 2 * HASH_BYTES]).digest() for at in range(0, len(nodes), 2 * HASH_BYTES)
        )
    return nodes


def _zero_nodes(levels: int) -> list[bytes]:
    nodes = [bytes(HASH_BYTES)]
    for _ in range(levels):
        nodes.append(hashlib.sha256(nodes[-1] * 2).digest())
    return nodes


_ZEROS = _zero_nodes(_depth(MAX_FILE_BYTES // LEAF_BYTES))
"""The root of a subtree of zero leaves, by its depth."""
