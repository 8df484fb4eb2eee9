"""Following what other programs do in the cache: what they bring and what they remove.

The kernel's notices (inotify) and the times of the blob folders only tell where to look; what is
true is what a rescan finds. Notices are fast and may be had for local disks only, and for a limited
number of folders; the times are compared every few seconds in any case.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from watchfiles import watch
from watchfiles._rust_notify import WatchfilesRustInternalError

from edgecdn.cache.scan import cached_repos
from edgecdn.digest import Digest
from edgecdn.errors import BadInput
from edgecdn.names import RepoId
from edgecdn.sources.own_thread import in_own_thread
from edgecdn_agent.holdings.shelf import Holdings

__all__ = ["CacheWatch"]

_log = logging.getLogger(__name__)

_FULL_S = 300.0
"""Between rescans of everything: for what neither notices nor folder times tell."""

_LOOK_S = 4.0
"""Between looks at folder times: a blob removed must be withdrawn within 5 s."""

_LOOK_SHARE = 50
"""A look that takes long (a network file system) is followed by a pause so many times longer."""

_AGAIN_S = 1.0
"""Until it is tried again to follow a folder that is not there."""

_NO_NOTICES_S = 300.0
"""Until it is tried again to have notices where the kernel refused them."""

_DEBOUNCE_MS = 400
"""What happens within this time is looked at once."""

_MANY_REPOS = 20
"""More repos than this in one go are cheaper to look through all at once."""

_STAT_LIMIT_S = 60.0
_DAY_S = 86400.0

_Identity = tuple[int, int] | None

_Times = dict[RepoId | None, tuple[tuple[str, int, int], ...]]
"""Inode and time of the folders that have a repo's blobs; None: of the shared store's."""


class CacheWatch:
    """Rescans `holdings` when something changed below its cache folder, which may come and go."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._folder = holdings.settings.cache_dir
        self._noticed: set[RepoId | None] = set()
        self._wake = asyncio.Event()
        self._moved = threading.Event()
        self._warned = False

    async def run(self) -> None:
        """Follow the cache until cancelled; begins with a rescan of everything."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._look())

    async def _follow(self) -> None:
        """Keep a thread reading notices, of the folder that is there now."""
        loop = asyncio.get_running_loop()
        while True:
            self._moved = moved = threading.Event()
            pause_s = _AGAIN_S
            try:
                await in_own_thread(partial(self._read_notices, loop, moved), _DAY_S)
            except (FileNotFoundError, TimeoutError):
                pass
            except (OSError, WatchfilesRustInternalError) as error:
                pause_s = _NO_NOTICES_S
                self._warn(error)
            finally:
                moved.set()
            await asyncio.sleep(pause_s)

    def _read_notices(self, loop: asyncio.AbstractEventLoop, moved: threading.Event) -> None:
        """In the thread, for a large or hanging cache takes its time to be watched; until `moved` is set."""
        real = Path(os.path.realpath(self._folder))
        for changes in watch(
            real,
            watch_filter=lambda _, path: _is_telling(Path(path).relative_to(real)),
            debounce=_DEBOUNCE_MS,
            stop_event=moved,
            force_polling=False,
            ignore_permission_denied=False,  # true would also hide that there are no watches left
        ):
            loop.call_soon_threadsafe(self._notice, {_repo_of(Path(path).relative_to(real)) for _, path in changes})

    def _notice(self, repos: set[RepoId | None]) -> None:
        self._noticed |= repos
        self._wake.set()

    async def _look(self) -> None:
        """Rescan what notices and folder times tell, and everything now and then."""
        full_at = time.monotonic() + _FULL_S
        identity, times = await self._folder_times(None, {})
        await self._rescan({None})
        pause_s = _LOOK_S
        while True:
            await self._wait_for_notices(pause_s)
            started = time.monotonic()
            before, old = identity, times
            identity, times = await self._folder_times(before, old)
            if identity != before:
                self._moved.set()
            if started >= full_at:
                full_at = started + _FULL_S
                await self._rescan({None})
            else:
                await self._rescan({repo for repo in old.keys() | times.keys() if old.get(repo) != times.get(repo)})
            took_s = time.monotonic() - started
            pause_s = max(_LOOK_S - took_s, took_s * _LOOK_SHARE)

    async def _wait_for_notices(self, pause_s: float) -> None:
        """Rescan what is noticed, for so long."""
        end = time.monotonic() + pause_s
        while (left_s := end - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._wake.wait()
            self._wake.clear()
            noticed, self._noticed = self._noticed, set()
            await self._rescan(noticed)

    async def _folder_times(self, identity: _Identity, times: _Times) -> tuple[_Identity, _Times]:
        """As they are now; as they were where the disk does not answer."""
        try:
            return await in_own_thread(lambda: (_identity(self._folder), _times(self._folder)), _STAT_LIMIT_S)
        except TimeoutError:
            return identity, times

    async def _rescan(self, repos: set[RepoId | None]) -> None:
        for repo in {None} if None in repos or len(repos) > _MANY_REPOS else repos:
            await self._holdings.rescan(repo)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "no word of changes in the cache from the kernel; it is looked through instead folder=%s: %s",
                self._folder,
                str(error)[:200],
            )


def _is_telling(path: Path) -> bool:
    """Whether a change of this path may mean that a complete blob came, went or changed."""
    match path.parts:
        case (first,):
            return first == "blobs" or _is_repo(first)
        case ("blobs", _, *rest):
            return all(_is_digest(name) for name in rest)
        case (first, "blobs", *rest):
            return _is_repo(first) and all(_is_digest(name) for name in rest)
    return False


def _repo_of(path: Path) -> RepoId | None:
    try:
        return RepoId.from_folder(path.parts[0])
    except (BadInput, IndexError):
        return None


def _is_repo(name: str) -> bool:
    return name.startswith(("models--", "datasets--", "spaces--"))


def _is_digest(name: str) -> bool:
    try:
        Digest.parse(name)
    except BadInput:
        return False
    return True


def _identity(folder: Path) -> _Identity:
    try:
        seen = folder.stat()
    except OSError:
        return None
    return seen.st_dev, seen.st_ino


def _times(folder: Path) -> _Times:
    found: _Times = {repo: _stamps([folder / repo.folder / "blobs"]) for repo in cached_repos(folder)}
    with suppress(OSError):
        found[None] = _stamps(sorted((folder / "blobs").iterdir()))
    return found


def _stamps(folders: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    stamps = []
    for folder in folders:
        with suppress(OSError):
            seen = folder.stat()
            stamps.append((folder.name, seen.st_ino, seen.st_mtime_ns))
    return tuple(stamps)
