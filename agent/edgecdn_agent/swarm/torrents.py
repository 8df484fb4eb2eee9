"""A blob as a BitTorrent v2 torrent: a pure function of digest, size and piece tree (BEP 52).

The torrent's name is the digest, so all agents make the same info-hash of the same blob.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecdn.digest import Digest
from edgecdn.piecetree import PieceTree, piece_bytes

__all__ = ["torrent_dict"]


def torrent_dict(digest: Digest, tree: PieceTree) -> Mapping[bytes, Any]:
    """The metainfo of a blob, to be bencoded: keys and values are bytes, numbers and dictionaries."""
    name = digest.hex.encode()
    info = {
        b"file tree": {name: {b"": {b"length": tree.size, b"pieces root": tree.root}}},
        b"meta version": 2,
        b"name": name,
        b"piece length": piece_bytes(tree.size),
    }
    layers = {tree.root: tree.layer} if tree.pieces > 1 else {}  # BEP 52: none for a file of one piece
    return {b"info": info, b"piece layers": layers}
