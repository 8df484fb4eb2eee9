"""The HTTP client under huggingface_hub, guarded: for programs of ours, which own their process.

Its own client has no time limits, follows redirects anywhere and unpacks answers of any size. The
guard sets limits, refuses compressed and endless answers, and lets a redirect go only where
`edgecdn.sources.reach` does. It is set through the library's public client factory, which is global
to the process; so the programs do it, and `import edgecdn` in somebody's script does not.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from edgecdn.sources.faults import Broken, Misbehaved
from edgecdn.sources.reach import Reach, may_redirect, reach_of

__all__ = ["HUB_TIMEOUT", "guard_hub_client", "next_page"]

HUB_TIMEOUT = httpx2.Timeout(20.0, connect=10.0)
_MOST_BYTES = 256 << 20
"""No page of a listing comes near this."""


def guard_hub_client() -> None:
    """Let every request huggingface_hub makes in this process be guarded."""
    set_client_factory(_guarded_client)


def _guarded_client() -> httpx2.Client:
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks.get("request", []), _prepare],
        "response": [*hooks.get("response", []), _inspect],
    }
    return client


def _prepare(request: httpx2.Request) -> None:
    request.headers["Accept-Encoding"] = "identity"
    limits = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {k: limits.get(k) or v for k, v in HUB_TIMEOUT.as_dict().items()}


def _inspect(response: httpx2.Response) -> None:
    """Runs before the body is read and before a redirect or the address of a next page is followed."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Misbehaved("answers with a compressed body where a plain one was asked for")
    if response.has_redirect_location:
        hub = response.request.url
        _check_redirect(hub, hub.join(response.headers["Location"]))
    next_page(response)
    response.stream = _Bounded(response.stream)


def next_page(response: httpx2.Response) -> str | None:
    """Where a listing goes on (`Link: rel="next"`), None at its end; raises Misbehaved for another origin.

    The library would send the token there with it: unlike a redirect, it is a new request.
    """
    following = response.links.get("next", {}).get("url")
    if following is None:
        return None
    asked = response.request.url
    try:
        target = asked.join(following)
    except (httpx2.InvalidURL, ValueError) as error:
        raise Misbehaved("continues its listing at something that is no URL") from error
    if _origin(target) != _origin(asked):
        raise Misbehaved("continues its listing at another host")
    return str(target)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _check_redirect(hub: httpx2.URL, target: httpx2.URL) -> None:
    if (hub.host, hub.port) == (target.host, target.port):
        return
    if hub.scheme == "https" and target.scheme != "https":
        raise Misbehaved(f"redirects from https to plain http at {target.host}")
    if not may_redirect(_reach(hub), _reach(target)):
        raise Misbehaved(f"redirects to an address of {target.host}, which is refused")


def _reach(url: httpx2.URL) -> list[Reach]:
    try:
        return [reach_of(url.host)]
    except ValueError:
        pass
    try:
        return [reach_of(str(found[4][0])) for found in socket.getaddrinfo(url.host, url.port)]
    except (OSError, UnicodeError) as error:
        raise Broken(f"the name {url.host[:80]} does not resolve") from error


class _Bounded(httpx2.SyncByteStream):
    """A body that ends in a fault when it is endless."""

    def __init__(self, stream: httpx2.SyncByteStream | httpx2.AsyncByteStream) -> None:
        assert isinstance(stream, httpx2.SyncByteStream)
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        left = _MOST_BYTES
        for piece in self._stream:
            left -= len(piece)
            if left < 0:
                raise Misbehaved("answers with more than a listing can be")
            yield piece

    def close(self) -> None:
        self._stream.close()
