"""A folder of the lab as a source: a hub cache or plain model folders, local or on a network mount.

In a hub cache a blob's name is its digest. Elsewhere a file is a candidate when name and size
agree. Either is only a claim: as with every source, the digest of what was read decides. A mount
that hangs costs its time limit and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from edgecdn.digest import Digest
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.sources import Offer
from edgecdn.sources.faults import Broken, Missing
from edgecdn.sources.own_thread import in_own_thread
from edgecdn.spans import UNIT_BYTES, Span

__all__ = ["FolderSource"]

_MOST_ENTRIES = 500_000
"""Folder entries looked at before the search ends."""

_LOOK_S = 60.0
_READ_S = 20.0
_READ_BYTES = 4 * UNIT_BYTES


@dataclass(frozen=True, slots=True)
class _FolderOffer:
    entry: FileEntry
    path: Path


class FolderSource:
    """Files below `folder`, read only. Its bytes count as cache: they cross no line."""

    kind = Kind.CACHE
    connections = 2

    def __init__(self, folder: Path) -> None:
        self.name = f"folder {folder}"
        self._folder = folder

    async def offer(self, manifest: Manifest, wanted: Sequence[FileEntry]) -> Mapping[Digest, Offer]:
        """What looks like one of `wanted`; raises Broken when the folder cannot be read in time."""
        stop = Event()
        try:
            return await in_own_thread(lambda: self._look(manifest, wanted, stop), _LOOK_S)
        except TimeoutError as error:
            raise Broken(f"does not answer within {_LOOK_S:.0f} s") from error
        except OSError as error:
            raise Broken(f"cannot be read ({error.strerror or error})") from error
        finally:
            stop.set()  # a search that nobody waits for ends

    async def read(self, offer: Offer, span: Span) -> AsyncGenerator[bytes, None]:
        """The bytes of `span`; see `Source.read`."""
        assert isinstance(offer, _FolderOffer)
        for start in range(span.start, span.stop, _READ_BYTES):
            count = min(_READ_BYTES, span.stop - start)
            try:
                piece = await in_own_thread(partial(_read, offer, start, count), _READ_S)
            except TimeoutError as error:
                raise Broken(f"gave no byte for {_READ_S:.0f} s") from error
            except OSError as error:
                raise Missing(f"cannot read {offer.path.name} ({error.strerror or error})") from error
            yield piece

    async def close(self) -> None:
        """Nothing is kept open."""

    def _look(self, manifest: Manifest, wanted: Sequence[FileEntry], stop: Event) -> dict[Digest, Offer]:
        """One walk: files named by a digest, and for the others the longest common end of path, at equal size."""
        by_digest = {entry.digest.hex: entry for entry in wanted if entry.size}
        names = {entry.path.name for entry in by_digest.values()}
        deepest = max((len(_full(manifest, entry)) for entry in by_digest.values()), default=0)
        exact: dict[Digest, Offer] = {}
        by_tail: dict[tuple[int, tuple[str, ...]], Path] = {}
        for path in self._files(stop):
            named = by_digest.get(path.name)
            if named is not None and _size(path) == named.size:
                exact.setdefault(named.digest, _FolderOffer(named, path))
            if path.name in names:
                size, parts = _size(path), tuple(part.lower() for part in path.parts[-deepest:])
                for length in range(1, len(parts) + 1):
                    by_tail.setdefault((size, parts[-length:]), path)
        found: dict[Digest, Offer] = dict(exact)
        for entry in by_digest.values():
            full = _full(manifest, entry)
            tails = ((entry.size, full[-length:]) for length in range(len(full), 0, -1))
            alike = next((by_tail[tail] for tail in tails if tail in by_tail), None)
            if alike is not None:
                found.setdefault(entry.digest, _FolderOffer(entry, alike))
        return found

    def _files(self, stop: Event) -> Iterator[Path]:
        seen = 0
        for base, folders, files in os.walk(self._folder, onerror=_raise_for_base(self._folder)):
            folders[:] = [name for name in folders if name not in (".locks", ".git", "refs", "trees", ".no_exist")]
            seen += len(files) + 1
            if seen > _MOST_ENTRIES or stop.is_set():
                return
            for name in files:
                yield Path(base, name)


def _raise_for_base(base: Path) -> Callable[[OSError], None]:
    def raise_if_base(error: OSError) -> None:
        if error.filename == str(base):
            raise error

    return raise_if_base


def _full(manifest: Manifest, entry: FileEntry) -> tuple[str, ...]:
    """`owner/name/path/in/repo`, in lower case: what a file's path may end with."""
    return (*manifest.repo.name.lower().split("/"), *(part.lower() for part in entry.path.parts))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _read(offer: _FolderOffer, start: int, count: int) -> bytes:
    with offer.path.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), count, start)
    if len(data) != count:
        raise OSError(0, "it is shorter than it was")
    return data
