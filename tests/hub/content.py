"""Bytes the test hub can serve, and the identity the Hub would give them."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PAGE_BYTES = 4096  # every page of generated content carries its own number
PATTERN_BYTES = 1 << 20  # period of the generated pattern, page numbers apart
HASH_CHUNK_BYTES = 4 << 20
LFS_THRESHOLD_BYTES = 10 << 20  # the Hub's own limit for regular files
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".parquet", ".h5", ".npz")


@dataclass(frozen=True, slots=True)
class Generated:
    """Deterministic content of any size that is computed when read; no two pages are equal."""

    seed: int
    size: int


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A file whose size was looked up once, so that serving it needs no further stat."""

    path: Path
    size: int


Source = bytes | OnDisk | Generated
"""Where bytes come from: memory, a file on disk, or a formula."""

Content = Source | Path
"""What callers may give for a file."""


def as_source(content: Content) -> Source:
    """Look up the size of a file on disk; anything else is a source already."""
    return OnDisk(content, content.stat().st_size) if isinstance(content, Path) else content


@lru_cache(maxsize=16)
def _pattern(seed: int) -> bytes:
    return hashlib.shake_128(b"test-hub-%d" % seed).digest(PATTERN_BYTES)


def _generated_block(seed: int, number: int) -> bytes:
    words = array("Q", _pattern(seed))
    pages = PATTERN_BYTES // PAGE_BYTES
    words[:: PAGE_BYTES // 8] = array("Q", range(number * pages, (number + 1) * pages))
    return words.tobytes()


def _generated_range(source: Generated, start: int, end: int) -> bytes:
    first, last = start // PATTERN_BYTES, (end - 1) // PATTERN_BYTES
    blocks = b"".join(_generated_block(source.seed, number) for number in range(first, last + 1))
    return blocks[start - first * PATTERN_BYTES : end - first * PATTERN_BYTES]


def size_of(source: Source) -> int:
    """Return how many bytes the source holds."""
    return len(source) if isinstance(source, bytes) else source.size


def read_range(source: Source, start: int, end: int) -> bytes:
    """Return the bytes [start, end), cut at the end of the source."""
    if isinstance(source, bytes):
        return source[start:end]
    if isinstance(source, Generated):
        end = min(end, source.size)
        return _generated_range(source, start, end) if start < end else b""
    descriptor = os.open(source.path, os.O_RDONLY)
    try:
        return os.pread(descriptor, max(0, end - start), start)
    finally:
        os.close(descriptor)


def chunks_of(source: Source) -> Iterator[bytes]:
    """Yield the whole source in pieces of a few MiB."""
    size = size_of(source)
    for start in range(0, size, HASH_CHUNK_BYTES):
        yield read_range(source, start, min(size, start + HASH_CHUNK_BYTES))


def git_sha1(data: bytes) -> str:
    """Return the object id `git hash-object` prints for these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer_text(sha256: str, size: int) -> bytes:
    """Return the LFS pointer that git stores instead of the file."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
        sha256.encode(),
        size,
    )


@dataclass(frozen=True, slots=True)
class HubFile:
    """One entry of a listing; tests may make its claims differ from the source on purpose."""

    path: str
    size: int
    source: Source
    oid: str
    sha256: str
    lfs: bool

    @classmethod
    def of(cls, path: str, content: Content, *, lfs: bool | None = None) -> HubFile:
        """Describe content as the Hub would, hashing it once."""
        source = as_source(content)
        size = size_of(source)
        if lfs is None:
            lfs = size > LFS_THRESHOLD_BYTES or path.endswith(LFS_SUFFIXES)
        sha256, oid = _digests(source, size)
        if lfs:
            oid = git_sha1(pointer_text(sha256, size))
        return cls(path, size, source, oid, sha256, lfs)

    @property
    def etag(self) -> str:
        """The digest the Hub names the blob by."""
        return self.sha256 if self.lfs else self.oid

    @property
    def pointer_size(self) -> int:
        """Size of the LFS pointer text."""
        return len(pointer_text(self.sha256, self.size))

    @property
    def xet_hash(self) -> str:
        """A stable stand-in for the Xet hash; no CAS knows it."""
        return hashlib.sha256(b"xet" + self.sha256.encode()).hexdigest()


@lru_cache(maxsize=256)
def _generated_digests(source: Generated) -> tuple[str, str]:
    return _hash_chunks(source, source.size)


def _digests(source: Source, size: int) -> tuple[str, str]:
    return _generated_digests(source) if isinstance(source, Generated) else _hash_chunks(source, size)


def _hash_chunks(source: Source, size: int) -> tuple[str, str]:
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    large = size > LFS_THRESHOLD_BYTES and not isinstance(source, bytes)
    for chunk in chunks_of(source):
        sha256.update(chunk)
        if not large:  # the git digest of a large file is that of its pointer
            git.update(chunk)
    return sha256.hexdigest(), git.hexdigest()
