"""The Hugging Face cache on disk, as documented in docs/protocol.md: one repo's folder, read and written safely."""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from edgecdn.cache.safedir import SafeDir, cut_name, disk_errors
from edgecdn.cache.trees import decode_tree, encode_tree
from edgecdn.digest import Digest
from edgecdn.errors import BadInput, CacheRefused, ReadOnlyStore
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, RepoId, Revision

__all__ = ["RepoStore", "open_repo"]

_SHARED_BLOB = re.compile(r"(?:\.\./)+blobs/(?P<shard>[0-9a-f]{2})/(?P<name>[0-9a-f]{40,64})\Z")
_MOST_REF_BYTES = 256
_MOST_TRIES = 20
"""Times a name is looked at again when another client made or took it meanwhile."""
_CACHEDIR_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache; backups may skip it.\n"


def open_repo(cache_dir: Path, repo: RepoId, *, create: bool = False) -> RepoStore:
    """Open a repo's folder; raises FileNotFoundError when it is not there (and not to be created)."""
    with SafeDir.at(cache_dir, create=create) as root:
        if create and root.lstat("CACHEDIR.TAG") is None and not root.names():
            root.write_whole("CACHEDIR.TAG", _CACHEDIR_TAG, sync=False)
        return RepoStore(repo, cache_dir, root.sub(repo.folder, create=create))


class RepoStore:
    """One repo in the cache. Close it, or use it as a context manager."""

    def __init__(self, repo: RepoId, cache_dir: Path, folder: SafeDir) -> None:
        self.repo = repo
        self.cache_dir = cache_dir
        self.folder = folder

    @property
    def path(self) -> Path:
        """For messages and for handing to the user."""
        return self.folder.path

    def is_current(self) -> bool:
        """Whether the open folder is still the one in the cache."""
        try:
            return self.path.stat().st_ino == os.fstat(self.folder.fd).st_ino
        except FileNotFoundError:
            return False

    def remove_if_empty(self) -> None:
        """Take the repo's folder away again when nothing came of it: an empty one is odd to hub clients."""
        if self.folder.rmdir("blobs") or not self.folder.names():
            with SafeDir.at(self.cache_dir) as root:
                root.rmdir(self.repo.folder)

    def snapshot_path(self, commit: CommitId) -> Path:
        """Where a user finds a commit's files."""
        return self.path / "snapshots" / commit.hex

    # Blobs

    def blobs(self, *, create: bool = False) -> SafeDir:
        """The folder of blobs; raises FileNotFoundError."""
        return self.folder.sub("blobs", create=create)

    def open_blob(self, digest: Digest) -> int | None:
        """Open a complete blob for reading (the caller closes); None when there is none.

        A link is followed for one hop into the cache's own shared store (`blobs/<xx>/`, clients of
        huggingface_hub 2.x put Xet downloads there) and refused otherwise.
        """
        try:
            with self.blobs() as blobs:
                target = blobs.readlink(digest.hex)
                if target is None:
                    fd = blobs.open(digest.hex, os.O_RDONLY)
                else:
                    fd = self._open_shared(blobs.path / digest.hex, target)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CacheRefused("it is not a regular file", where=self.path / "blobs" / digest.hex)
        return fd

    def _open_shared(self, where: Path, target: str) -> int:
        match = _SHARED_BLOB.match(target)
        if match is None:
            raise CacheRefused(f"it is a link to {target[:120]!r}, outside the cache's own blobs", where=where)
        with SafeDir.at(self.cache_dir) as root, root.sub("blobs", match["shard"]) as shared:
            return shared.open(match["name"], os.O_RDONLY)

    # Commits

    def read_tree(self, commit: CommitId) -> Manifest | None:
        """The listing kept for a commit; None when there is none or it cannot be trusted."""
        data = self._read(("trees",), f"{commit.hex}.json", 1 << 30)
        try:
            return None if data is None else decode_tree(data, self.repo, commit)
        except BadInput:
            return None

    def tree_stamp(self, commit: CommitId) -> tuple[int, int, int] | None:
        """Inode, size and time of a commit's listing, equal while nobody writes another; None: there is none."""
        try:
            with self.folder.sub("trees") as trees:
                seen = trees.lstat(f"{commit.hex}.json")
        except FileNotFoundError:
            return None
        return None if seen is None else (seen.st_ino, seen.st_size, seen.st_mtime_ns)

    def write_tree(self, manifest: Manifest) -> None:
        """Keep a commit's whole listing."""
        with self.folder.sub("trees", create=True) as trees:
            trees.write_whole(f"{manifest.commit.hex}.json", encode_tree(manifest))
            trees.sync()

    def commits(self) -> list[CommitId]:
        """Commits that have a snapshot folder."""
        try:
            with self.folder.sub("snapshots") as snapshots:
                names = snapshots.names()
        except FileNotFoundError:
            return []
        return [CommitId(n) for n in names if len(n) == 40 and set(n) <= set("0123456789abcdef")]

    def has_link(self, commit: CommitId, entry: FileEntry) -> bool:
        """Whether the snapshot already leads to this file's blob."""
        try:
            with self.folder.sub("snapshots", commit.hex, *entry.path.parents) as folder:
                return folder.readlink(entry.path.name) == _link_target(entry)
        except FileNotFoundError:
            return False

    def link(self, commit: CommitId, entry: FileEntry, aside: SafeDir | None = None) -> Path | None:
        """Make the snapshot lead to this file's blob.

        What else stands under that name is never overwritten: it is moved to `aside` (or, without
        one, refused); returns where it is now. Other clients may do the same at the same time: a link
        is replaced in one step, and one they made first is taken as it is.
        """
        with self.folder.sub("snapshots", commit.hex, *entry.path.parents, create=True) as folder:
            name, target = entry.path.name, _link_target(entry)
            moved = None
            for _ in range(_MOST_TRIES):
                there = folder.lstat(name)
                if there is None:
                    with suppress(FileExistsError):
                        folder.symlink(target, name)
                        return moved
                elif folder.readlink(name) == target:
                    return moved
                elif stat.S_ISLNK(there.st_mode):
                    self._replace_link(folder, name, target)  # a stale one of the cache; what it pointed to stays
                    return moved
                elif aside is not None:
                    with suppress(FileNotFoundError):
                        moved = self._move_aside(folder, name, aside)
                else:
                    raise CacheRefused("a file stands where a link into the cache belongs", where=folder.path / name)
            raise CacheRefused("other programs make and remove it again and again", where=folder.path / name)

    def unlink(self, commit: CommitId, entry: FileEntry) -> None:
        """Take a snapshot's link to this file's blob away, if it is that; the blob stays."""
        if self.has_link(commit, entry):
            with self.folder.sub("snapshots", commit.hex, *entry.path.parents) as folder:
                folder.unlink(entry.path.name)

    def _replace_link(self, folder: SafeDir, name: str, target: str) -> None:
        begun = f"link.{os.getpid():x}-{os.urandom(4).hex()}.tmp"
        self.folder.symlink(target, begun)
        try:
            self.folder.rename(begun, name, to=folder)
        except BaseException:
            self.folder.unlink(begun)
            raise

    def sync_snapshot(self, commit: CommitId, entries: tuple[FileEntry, ...]) -> None:
        """Make the links of a commit durable."""
        depths = {e.path.parents[:n] for e in entries for n in range(len(e.path.parents) + 1)}
        for parents in sorted(depths, key=len, reverse=True):
            with self.folder.sub("snapshots", commit.hex, *parents) as folder:
                folder.sync()
        with self.folder.sub("snapshots") as snapshots:
            snapshots.sync()

    # Refs

    def read_ref(self, revision: Revision) -> CommitId | None:
        """The commit a branch or tag was last seen at; None when not known."""
        *parents, name = revision.text.split("/")
        data = self._read(("refs", *parents), name, _MOST_REF_BYTES)
        try:
            return None if data is None else CommitId(data.decode("ascii").strip())
        except (BadInput, UnicodeDecodeError):
            return None

    def write_ref(self, revision: Revision, commit: CommitId) -> None:
        """Let a branch or tag name a commit: exactly 40 characters, no newline (readers do not strip)."""
        *parents, name = revision.text.split("/")
        with self.folder.sub("refs", *parents, create=True) as refs:
            refs.write_whole(name, commit.hex.encode(), begun_in=self.folder)
            refs.sync()

    def refs(self) -> dict[str, CommitId]:
        """All branches and tags known here."""
        found: dict[str, CommitId] = {}
        base = self.path / "refs"
        for path in sorted(base.rglob("*")):
            name = path.relative_to(base).as_posix()
            try:
                commit = self.read_ref(Revision(name)) if path.is_file() else None
            except (BadInput, CacheRefused):
                continue
            if commit is not None:
                found[name] = commit
        return found

    def locks(self) -> SafeDir:
        """The hub client's folder of locks for this repo; a closed one where it may not be made (`client_lock`)."""
        with SafeDir.at(self.cache_dir) as root:
            try:
                return root.sub(".locks", self.repo.folder, create=True)
            except ReadOnlyStore:
                return SafeDir(-1, self.cache_dir / ".locks" / self.repo.folder)

    def close(self) -> None:
        """Close the folder."""
        self.folder.close()

    def __enter__(self) -> RepoStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, parents: tuple[str, ...], name: str, most_bytes: int) -> bytes | None:
        try:
            with self.folder.sub(*parents) as folder:
                fd = folder.open(name, os.O_RDONLY)
        except (FileNotFoundError, IsADirectoryError):
            return None
        with os.fdopen(fd, "rb") as file, disk_errors(self.path / name):
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return file.read(most_bytes)

    def _move_aside(self, folder: SafeDir, name: str, aside: SafeDir) -> Path:
        kept = f"{cut_name(name, 180)}.{os.urandom(4).hex()}"
        try:
            folder.rename(name, kept, to=aside)
            return aside.path / kept
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        with self.folder.sub("set-aside", create=True) as beside:  # the cache is another disk: where no client looks
            folder.rename(name, kept, to=beside)
            return beside.path / kept


def _link_target(entry: FileEntry) -> str:
    return "../" * (len(entry.path.parents) + 2) + f"blobs/{entry.digest.hex}"
