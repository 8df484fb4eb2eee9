"""Whole files for one caller alone where this machine cannot keep them: from the origin, hashed on the way.

A full or read-only disk of the agent must not keep anybody from a file that comes without us. What holds for
files that are kept holds here too: the last mebibyte is given only once the digest is right.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from edgecdn.digest import Digest, Hasher
from edgecdn.errors import CacheRefused, EdgecdnError, IntegrityFailure, NoSpace, ReadOnlyStore, SystemFailed
from edgecdn.lately import Lately
from edgecdn.sources.faults import Broken, SourceFault
from edgecdn.spans import Span
from edgecdn.token_owner import token_key
from edgecdn_agent.deliver.delivery import Wanted
from edgecdn_agent.gateway.feed import TAIL_BYTES
from edgecdn_agent.gateway.outgoing import Outgoing
from edgecdn_agent.gateway.stream import Origin

__all__ = ["VerifiedRelay", "is_of_the_disk"]

_log = logging.getLogger(__name__)

_OF_THE_DISK = (NoSpace, ReadOnlyStore, CacheRefused, SystemFailed)

_HASH_HERE_BYTES = 64 << 10
"""Up to this is hashed at once (a fraction of a millisecond), more in a thread."""

_SPARE_BYTES = 32
"""Kept back with the end, and given one by one while it comes ..."""

_SPARE_EACH_S = 5.0
""" ... each so long after the last: clients give up a connection on which nothing comes for 10 s."""

_TRIES = 4
"""In a row without a byte, once it has begun: who is cut must begin anew."""

_AGAIN_S = 1.0

_WRONG_S = 600.0
"""A file that the origin gave wrong is not asked for again at once: each try may cost its bytes on a metered line."""

_BROKE_OFF_S = 3.0
"""Clients come back a second after they were cut, and are told why then."""

_WRONG = "the hub's bytes are not those that it lists"


def is_of_the_disk(error: EdgecdnError) -> bool:
    """Whether a file could not be brought for a reason of this machine's storage, not of those who have it."""
    return isinstance(error, _OF_THE_DISK)


class VerifiedRelay:
    """Gives them. On one event loop. `again_s`: before an origin that broke off is asked for the rest."""

    def __init__(self, origin: Origin, again_s: float = _AGAIN_S) -> None:
        self._origin = origin
        self._again_s = again_s
        self._wrong: Lately[IntegrityFailure] = Lately(_WRONG_S)
        self._broke_off: Lately[bool] = Lately(_BROKE_OFF_S)

    async def give(self, out: Outgoing, wanted: Wanted, why: EdgecdnError) -> None:
        """The whole file, of which `out` has given nothing. `why` it is not brought into the cache.

        Raises IntegrityFailure when the bytes are wrong, `why` itself when the origin does not give them, and what a
        connection raises. Where `out` has begun by then, the connection must be cut.
        """
        digest, caller = wanted.entry.digest, token_key(wanted.token)
        known = self._wrong.get(digest)
        if known is not None:
            raise known.with_traceback(None)
        if self._broke_off.get((digest, caller)):
            raise why.with_traceback(None)
        _log.warning("a file is relayed, for it cannot be kept path=%s digest=%s reason=%s",
                     wanted.entry.path, digest.hex[:12], why)  # fmt: skip
        try:
            await self._pass_on(out, wanted)
        except IntegrityFailure as error:
            self._wrong.put(digest, error)
            raise
        except SourceFault as fault:
            if out.has_begun:
                self._broke_off.put((digest, caller), True)
            raise why.with_traceback(None) from fault

    async def _pass_on(self, out: Outgoing, wanted: Wanted) -> None:
        size, digest, clock = wanted.entry.size, wanted.entry.digest, asyncio.get_running_loop().time
        hasher, end, told_s = digest.hasher(size), bytearray(), clock()
        freely = size - TAIL_BYTES - _SPARE_BYTES
        async with aclosing(self._chunks(wanted)) as chunks:
            async for chunk in chunks:
                await _hash(hasher, chunk)
                now = chunk[: max(0, freely - out.at)]
                end += chunk[len(now) :]
                if now:
                    await out.write(now)
                elif clock() - told_s < _SPARE_EACH_S:
                    continue
                elif 0 < out.at < size - TAIL_BYTES:
                    await out.write(bytes(end[:1]))
                    del end[:1]
                else:
                    await out.begin()
                told_s = clock()
        if not _is(digest, hasher):
            raise IntegrityFailure(_WRONG, path=wanted.entry.path)
        await out.write(bytes(end))

    async def _chunks(self, wanted: Wanted) -> AsyncGenerator[bytes, None]:
        """Exactly its size of bytes; an origin that breaks off is asked for the rest. Raises SourceFault."""
        at, size, tries = 0, wanted.entry.size, 0
        while at < size:
            try:
                async with self._origin.open(wanted, Span(at, size) if at else None) as chunks:
                    async for chunk in chunks:
                        piece = chunk[: size - at]
                        at, tries = at + len(piece), 0
                        yield piece
                if at < size:
                    raise Broken("ended early")
            except SourceFault:
                tries += 1
                if not at or tries == _TRIES:
                    raise
                await asyncio.sleep(self._again_s)


async def _hash(hasher: Hasher, chunk: bytes) -> None:
    if len(chunk) <= _HASH_HERE_BYTES:
        hasher.update(chunk)
    else:
        await asyncio.to_thread(hasher.update, chunk)


def _is(digest: Digest, hasher: Hasher) -> bool:
    return hasher.hexdigest() == digest.hex
