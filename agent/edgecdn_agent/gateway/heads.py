"""The heads of answers about a file: what clients read of them, with and without its bytes."""

from __future__ import annotations

import re

from aiohttp import web

from edgecdn.digest import DigestKind
from edgecdn.spans import Span
from edgecdn_agent.deliver.delivery import Wanted

__all__ = [
    "about", "appends_whole_files", "etag_of", "head_of", "hub_client", "sizeless_head", "takes_no_size",
    "whole_answer",
]  # fmt: skip

_HUB_CLIENT = re.compile(r"\bhf_hub/(\d{1,4})\.(\d{1,4})", re.ASCII)
_TAKES_NO_SIZE = (1, 31)
"""The first huggingface_hub that downloads a file whose size a HEAD did not tell."""


def etag_of(wanted: Wanted) -> str:
    """The tag of its bytes: the digest, which clients name their blobs by."""
    return f'"{wanted.entry.digest.hex}"'


def about(wanted: Wanted) -> dict[str, str]:
    """What every answer about the file says, whichever bytes it has."""
    headers = {"X-Repo-Commit": wanted.manifest.commit.hex, "ETag": etag_of(wanted), "Accept-Ranges": "bytes"}
    if wanted.entry.digest.kind is DigestKind.SHA256:
        headers["X-Linked-Etag"] = headers["ETag"]
        headers["X-Linked-Size"] = str(wanted.entry.size)
    return headers


def head_of(wanted: Wanted, span: Span | None = None) -> web.StreamResponse:
    """The head of an answer whose body is written piece by piece: 206 for a `span`, 200 for all."""
    head = web.StreamResponse(status=_status(span), headers=_part(wanted, span))
    head.content_length = wanted.entry.size if span is None else len(span)
    return head


def whole_answer(wanted: Wanted, span: Span | None, data: bytes) -> web.Response:
    """An answer with its bytes, which are few."""
    return web.Response(status=_status(span), headers=_part(wanted, span), body=data)


def sizeless_head(wanted: Wanted) -> web.StreamResponse:
    """The answer to a HEAD that does not say how long the file is."""
    headers = _part(wanted, None)
    headers.pop("X-Linked-Size", None)
    return web.StreamResponse(headers=headers)


def _status(span: Span | None) -> int:
    return 200 if span is None else 206


def _part(wanted: Wanted, span: Span | None) -> dict[str, str]:
    headers = {**about(wanted), "Content-Type": "application/octet-stream"}
    if span is not None:
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{wanted.entry.size}"
    return headers


def hub_client(user_agent: str | None) -> tuple[int, int] | None:
    """The version of huggingface_hub that asks; None where it is another program."""
    match = _HUB_CLIENT.search(user_agent or "")
    return (int(match[1]), int(match[2])) if match else None


def appends_whole_files(version: tuple[int, int] | None) -> bool:
    """Whether a client that resumes and gets the whole file (200) puts it behind what it has."""
    return version is not None and version < (0, 36)


def takes_no_size(version: tuple[int, int]) -> bool:
    """Whether it downloads files whose size it is not told."""
    return version >= _TAKES_NO_SIZE
