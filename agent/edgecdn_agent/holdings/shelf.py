"""What this machine has verified and may give away: the cache's files, seen together with the catalog.

Nothing is held because a file is there: the catalog must know this very file (size, time, inode) as
verified, or the indexer must just have read it. A peer can be given what is held, and whose repo
may be shared.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.scan import cached_repos
from edgecdn.digest import Digest
from edgecdn.errors import EdgecdnError
from edgecdn.names import RepoId
from edgecdn.piecetree import PieceTree
from edgecdn.settings import Settings
from edgecdn.sources.own_thread import in_own_thread
from edgecdn_agent.holdings.held_files import Holding, blob_files, open_held
from edgecdn_agent.holdings.held_table import Counts, HeldTable
from edgecdn_agent.holdings.priority import step_back
from edgecdn_agent.holdings.rot import recheck_file
from edgecdn_agent.listeners import Listeners

__all__ = ["Counts", "Holding", "Holdings"]

_log = logging.getLogger(__name__)

_SCAN_LIMIT_S = 300.0
"""A cache that takes longer to look through is on a disk that hangs."""

_SLOWEST_BYTES_S = 1e6
"""A disk that reads less than this (per second, with the lowest priority) counts as hanging."""

_GONE_S = 290.0
"""A piece tree is kept so long without its blob: about the time from one look at the whole cache to the next."""


class Holdings:
    """The verified blobs of one cache. Used on one event loop; `open` and `withdraw` from any thread.

    `allows`: whether peers may have a repo; `is_public`: whether everybody may.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        allows: Callable[[RepoId], bool],
        clock: Callable[[], float] = time.monotonic,
        *,
        is_public: Callable[[RepoId], bool] = lambda _repo: False,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.table = HeldTable()
        self._allows = allows
        self._is_public = is_public
        self._listeners: Listeners[None] = Listeners()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scanning = asyncio.Lock()
        self._rechecking = asyncio.Lock()
        self._clock = clock
        self._gone_since: dict[str, float] = {}

    @property
    def counts(self) -> Counts:
        """How much is held."""
        return self.table.counts()

    def repos(self) -> list[RepoId]:
        """The repos of which something is held: those the sharing rule has to know."""
        return self.table.repos()

    def get(self, digest: Digest) -> Holding | None:
        """A verified file with these bytes, whoever may have it."""
        return next(iter(self.table.copies(digest)), None)

    def shared(self, digest: Digest) -> Holding | None:
        """A verified file with these bytes that peers may have: one of the repos it lies in may be shared."""
        return next((copy for copy in self.table.copies(digest) if self._allows(copy.repo)), None)

    def get_for(self, repo: RepoId, digest: Digest) -> Holding | None:
        """A verified file with these bytes for who may see `repo` and perhaps no other: it lies there, or is public.

        For listings that no hub vouches for: who made one up must not get by it what is held of another repo.
        """
        copies = self.table.copies(digest)
        return next((copy for copy in copies if copy.repo == repo or self._is_public(copy.repo)), None)

    async def tree(self, digest: Digest) -> PieceTree | None:
        """The piece tree of a held blob; None when it is not held, or not indexed yet."""
        holding = self.get(digest)
        if holding is None or not holding.has_tree or self.table.lacks_tree(holding):
            return None
        tree = await asyncio.to_thread(self.catalog.tree, digest)
        return tree if tree is not None and tree.size == holding.size else None

    def open(self, holding: Holding) -> int:
        """Open exactly that file; the caller closes. Blocks.

        Raises FileNotFoundError when it is gone, another file, or cannot be read: it is no longer held then.
        """
        try:
            return open_held(self.settings.cache_dir, holding)
        except (OSError, EdgecdnError) as error:
            self._suspect(holding)
            if isinstance(error, FileNotFoundError):
                raise
            raise FileNotFoundError(str(error)) from error

    def withdraw(self, digest: Digest) -> None:
        """Something is wrong with it: nobody gets it until it was read again and found right."""
        for holding in self.table.copies(digest):
            self._suspect(holding)

    async def rescan(self, repo: RepoId | None = None) -> None:
        """Look at the files of a repo, or of the whole cache, again."""
        self._loop = asyncio.get_running_loop()
        async with self._scanning:
            try:
                await in_own_thread(lambda: self._scan(repo), _SCAN_LIMIT_S)
            except TimeoutError:
                _log.warning("the cache does not answer folder=%s", self.settings.cache_dir)

    async def recheck(self, digest: Digest) -> bool:
        """Hash it again now, every copy that was held; one that rotted is set aside if edgecdn brought it.

        Whether a right one is left. Files that were never held, whatever their names, are not looked at.
        """
        stop = Event()
        async with self._rechecking:
            copies = tuple({*self.table.copies(digest), *self.table.suspects(digest)})
            limit_s = 60.0 + sum(copy.size for copy in copies) * 2 / _SLOWEST_BYTES_S
            try:
                return await in_own_thread(lambda: self._recheck(copies, stop), limit_s)
            except TimeoutError:
                self.withdraw(digest)
                return False
            finally:
                stop.set()

    def confirm(self, holding: Holding) -> bool:
        """It was read to its end and is right; False when it went away meanwhile."""
        confirmed = self.table.confirm(holding)
        self.touch()
        return confirmed

    def reject(self, holding: Holding) -> None:
        """It was read and is wrong, or cannot be read: it is left alone as long as it is this file."""
        self.table.reject(holding)
        self.touch()

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called on the loop after something changed; returns what ends that."""
        return self._listeners.subscribe(lambda _: callback())

    def touch(self) -> None:
        """Tell the subscribers (what may be shared may change too). From any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._listeners.tell, None)

    def _suspect(self, holding: Holding) -> None:
        if self.table.suspect(holding):
            _log.info("a blob is no longer held path=%s", holding.path)
            self.touch()

    def _scan(self, repo: RepoId | None) -> None:
        """In the thread."""
        cache_dir, additions = self.settings.cache_dir, self.table.additions
        repos = {repo} if repo else {*cached_repos(cache_dir), *self.table.known_repos()}
        self.table.add_trees(self.catalog.tree_digests())
        verified = self.catalog.verified_under(cache_dir / repo.folder if repo else cache_dir)
        changes = [self.table.replace(one, blob_files(cache_dir, one), verified) for one in repos]
        if any(changes) or self.table.additions != additions:
            self.touch()
        if repo is None:
            self._prune_trees()

    def _prune_trees(self) -> None:
        """Forget the trees of blobs that have been gone for a while: one may be published just now."""
        there, now = self.table.all_digests(), self._clock()
        known = self.catalog.tree_digests() if there else set()  # an empty cache is perhaps a disk that is not there
        self._gone_since = {digest: self._gone_since.get(digest, now) for digest in known - there}
        gone = {digest for digest, since in self._gone_since.items() if now - since >= _GONE_S}
        if gone:
            self.table.drop_trees(self.catalog.forget_trees(gone, besides=self.settings.cache_dir))

    def _recheck(self, copies: tuple[Holding, ...], stop: Event) -> bool:
        step_back()
        right = [self._is_right(copy, stop) for copy in copies]
        return any(right)

    def _is_right(self, holding: Holding, stop: Event) -> bool:
        try:
            right = recheck_file(self.settings, self.catalog, holding, stop)
        except (OSError, EdgecdnError) as error:
            if not stop.is_set():
                _log.warning("a blob cannot be read path=%s reason=%s", holding.path, error)
            right = False
        known = right and not self.table.lacks_tree(holding)  # the indexer need not read it again
        if (known and self.table.confirm(holding)) or (not right and not stop.is_set() and self.table.reject(holding)):
            self.touch()
        return right
