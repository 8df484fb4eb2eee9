"""A hub's Xet storage as a source, through `hf_xet`: for files that plain HTTP may refuse (over 50 GB).

The access token for the storage is asked of the hub here, not by `hf_xet`: the user's own token
never leaves the hub it belongs to, and the address the hub names is checked like a redirect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yarl import URL

from edgecdn.digest import Digest
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.sources import Offer
from edgecdn.sources.faults import Broken, Misbehaved
from edgecdn.sources.http import STALL_S, ByteClient
from edgecdn.sources.own_thread import in_own_thread
from edgecdn.sources.ranged import HTTP_LIMIT_BYTES
from edgecdn.spans import Span

__all__ = ["XetSource"]

_RENEW_S = 60.0
"""A storage token is renewed when it has less than this left."""

_OPEN_S = 30.0


@dataclass(frozen=True, slots=True)
class _XetOffer:
    entry: FileEntry
    token_url: URL


@dataclass(frozen=True, slots=True)
class _Access:
    """Where the storage is, and the token for it until `expires` (Unix seconds)."""

    cas_url: str
    token: str
    expires: float


class XetSource:
    """Bytes of large files from the content-addressed storage of one hub. `larger_than` in bytes.

    `local_storage`: the hub may name a folder (`local://`), which only tests want.
    """

    connections = 4

    def __init__(
        self,
        endpoint: str,
        kind: Kind,
        client: ByteClient,
        *,
        larger_than: int = HTTP_LIMIT_BYTES,
        local_storage: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.name = f"{endpoint.partition('://')[2]} (Xet)"
        self.kind = kind
        self._client = client
        self._larger_than = larger_than
        self._local_storage = local_storage
        self._session: Any = None
        self._group: Any = None
        self._access: dict[URL, _Access] = {}
        self._opening = asyncio.Lock()

    async def offer(self, manifest: Manifest, wanted: Sequence[FileEntry]) -> Mapping[Digest, Offer]:
        """Files above the limit whose Xet hash the hub's listing names."""
        repo = manifest.repo
        path = f"api/{repo.type.plural}/{repo.name}/xet-read-token/{manifest.commit}"
        token_url = URL(f"{self.endpoint}/{path}")
        return {e.digest: _XetOffer(e, token_url) for e in wanted if e.size > self._larger_than and e.xet_hash}

    async def read(self, offer: Offer, span: Span) -> AsyncGenerator[bytes, None]:
        """The bytes of `span`; see `Source.read`."""
        assert isinstance(offer, _XetOffer)
        if not len(span):
            return
        stream = await self._open(offer, span)
        pieces = iter(stream)
        left = len(span)
        try:
            while left:
                piece = await self._next(pieces)
                if not piece:
                    raise Broken("ended its answer early")
                if len(piece) > left:
                    raise Misbehaved("sent more bytes than were asked for")
                left -= len(piece)
                yield piece
        finally:
            stream.cancel()

    async def close(self) -> None:
        """Stop what runs."""
        group, self._group, self._session = self._group, None, None
        if group is not None:
            await in_own_thread(group.abort, _OPEN_S)

    async def _open(self, offer: _XetOffer, span: Span) -> Any:
        from hf_xet import XetFileInfo  # noqa: PLC0415 - 80 ms to import, for a rare need

        async with self._opening:
            group = await self._current_group(offer.token_url)
        info = XetFileInfo(offer.entry.xet_hash, offer.entry.size)
        return await self._call(lambda: group.download_stream(info, start=span.start, end=span.stop))

    async def _current_group(self, token_url: URL) -> Any:
        access = self._access.get(token_url)
        if access is None or access.expires - time.time() < _RENEW_S or self._group is None:
            access = await self._ask_access(token_url)
            self._access = {token_url: access}
            self._group = await self._call(lambda: self._new_group(access))
        return self._group

    def _new_group(self, access: _Access) -> Any:
        from hf_xet import XetSession  # noqa: PLC0415 - as in `_open`

        self._session = self._session or XetSession()
        return self._session.new_download_stream_group(
            endpoint=access.cas_url, token=access.token, token_expiry_unix_secs=int(access.expires)
        )

    async def _ask_access(self, token_url: URL) -> _Access:
        try:
            answer = await self._client.get_json(token_url)
            access = _Access(str(answer["casUrl"]), str(answer["accessToken"]), float(answer["exp"]))
        except (KeyError, TypeError, ValueError) as error:
            raise Misbehaved("answers something that is no storage token") from error
        except TimeoutError as error:
            raise Broken("does not answer in time") from error
        if not (self._local_storage and access.cas_url.startswith("local://")):
            await self._check_storage(token_url, access.cas_url)
        return access

    async def _check_storage(self, token_url: URL, cas_url: str) -> None:
        try:
            storage = URL(cas_url)
            is_web = storage.scheme in ("http", "https") and bool(storage.host)
        except ValueError as error:
            raise Misbehaved("names a storage that is no URL") from error
        if not is_web:
            raise Misbehaved("names a storage that is no web address")
        if token_url.scheme == "https" and storage.scheme != "https":
            raise Misbehaved(f"names a storage at plain http ({storage.host})")
        await self._client.check_reach(token_url, storage)

    async def _next(self, pieces: Iterator[bytes]) -> bytes:
        return bytes(await self._call(lambda: next(pieces, b""), STALL_S))

    async def _call(self, call: Any, limit_s: float = _OPEN_S) -> Any:
        try:
            return await in_own_thread(call, limit_s)
        except TimeoutError as error:
            raise Broken(f"gave no byte for {limit_s:.0f} s") from error
        except Exception as error:
            raise Broken(f"failed ({type(error).__name__}: {str(error)[:120]})") from error
