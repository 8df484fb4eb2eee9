"""A hub as a source of bytes: any server with the Hugging Face API, by ranged HTTP (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from urllib.parse import quote

from yarl import URL

from edgecdn.digest import Digest
from edgecdn.events import Kind
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.sources import Offer
from edgecdn.sources.http import ByteClient
from edgecdn.sources.ranged import RangedOffer, read_ranged
from edgecdn.spans import Span

__all__ = ["HubSource"]


class HubSource:
    """Bytes from one endpoint. `kind` is ORIGIN for the hub that is believed, MIRROR for others."""

    def __init__(self, endpoint: str, kind: Kind, client: ByteClient, *, connections: int) -> None:
        self.endpoint = endpoint
        self.name = endpoint.partition("://")[2]
        self.kind = kind
        self.connections = connections
        self._client = client

    async def offer(self, manifest: Manifest, wanted: Sequence[FileEntry]) -> Mapping[Digest, Offer]:
        """All of them, by commit: a hub that lacks one says so when it is read, which costs no question now."""
        base = f"{self.endpoint}/{manifest.repo.url_path}/resolve/{manifest.commit}/"
        return {e.digest: RangedOffer(e, manifest.commit, URL(base + quote(str(e.path)), encoded=True)) for e in wanted}

    def read(self, offer: Offer, span: Span) -> AsyncGenerator[bytes, None]:
        """The bytes of `span`; see `Source.read`."""
        assert isinstance(offer, RangedOffer)
        return read_ranged(self._client, offer, span)

    async def close(self) -> None:
        """The client belongs to the job; nothing here."""
