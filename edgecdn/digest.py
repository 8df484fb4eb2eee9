"""Digest: the identity of a file's bytes, as the hub publishes it. Pure; no I/O.

LFS and Xet files are named by their SHA-256, all others by their git blob id, which is
SHA-1 over `"blob " + size + NUL + bytes` (git's object format). Both are what the Hugging
Face cache names its blobs by.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from edgecdn.errors import BadInput

__all__ = ["Digest", "DigestKind", "Hasher", "lfs_pointer_oid"]


class DigestKind(StrEnum):
    """Which hash a digest is made by."""

    SHA256 = "sha256"
    GIT_SHA1 = "git-sha1"


_HEX_LENGTH = {DigestKind.SHA256: 64, DigestKind.GIT_SHA1: 40}
_KIND_OF_LENGTH = {length: kind for kind, length in _HEX_LENGTH.items()}
_HEX = re.compile(r"[0-9a-f]+\Z")


class Hasher(Protocol):
    """The part of `hashlib` objects that verification uses; releases the GIL on large updates."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A parsed digest. Made by `parse` or `of`, never from an unchecked string."""

    kind: DigestKind
    hex: str

    def __post_init__(self) -> None:
        if len(self.hex) != _HEX_LENGTH[self.kind] or not _HEX.match(self.hex):
            raise BadInput(f"{self.hex[:80]!r} is not a {self.kind} digest in lower-case hex")

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse a bare hex digest; its length tells the kind (40: git-sha1, 64: sha256).

        Raises BadInput for anything else, upper case included: one digest, one spelling.
        """
        kind = _KIND_OF_LENGTH.get(len(text))
        if kind is None:
            raise BadInput(f"{text[:80]!r} is neither a sha256 nor a git-sha1 digest in lower-case hex")
        return cls(kind, text)

    @classmethod
    def of(cls, kind: DigestKind, data: bytes) -> Digest:
        """The digest of `data`."""
        hasher = _new_hasher(kind, len(data))
        hasher.update(data)
        return cls(kind, hasher.hexdigest())

    def hasher(self, size: int) -> Hasher:
        """A fresh hasher for a file of `size` bytes; feed it the bytes, compare `hexdigest()`."""
        return _new_hasher(self.kind, size)

    def __str__(self) -> str:
        return self.hex


def _new_hasher(kind: DigestKind, size: int) -> Hasher:
    if kind is DigestKind.SHA256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def lfs_pointer_oid(digest: Digest, size: int) -> Digest:
    """The git id of the LFS pointer text for a file, as a hub lists it beside the SHA-256 (git-lfs spec v1)."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest.hex}\nsize {size}\n"
    return Digest.of(DigestKind.GIT_SHA1, text.encode())
