"""huggingface_hub 1.x (httpx) and 2.x (httpx2): clients whose transport asks the agent first."""

from __future__ import annotations

from edgecdn.plugin.hook.agent import ANSWER_S, Answer, Asked
from edgecdn.plugin.hook.guide import guide
from edgecdn.plugin.hook.library import below_endpoint, is_read
from edgecdn.plugin.hook.offline import before_refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Any

__all__ = ["register_httpx"]


def register_httpx(http: Any) -> None:
    """Have the library make its clients with ours in front of the stock ones. A user's own factory stays."""
    lib = http.__dict__.get("httpx2") or http.httpx
    transport, async_transport = _transports(lib, _stream_class(lib))

    def offline(request: Any) -> None:
        before_refusal(str(request.url))

    async def async_offline(request: Any) -> None:
        await _in_thread(before_refusal, str(request.url))

    stock, async_stock = http.default_client_factory, http.default_async_client_factory
    if http._GLOBAL_CLIENT_FACTORY is stock:
        http.set_client_factory(lambda: _in_front(lib.Client, transport, stock(), offline))
    if http._GLOBAL_ASYNC_CLIENT_FACTORY is async_stock:
        http.set_async_client_factory(lambda: _in_front(lib.AsyncClient, async_transport, async_stock(), async_offline))


def _in_front(kind: Any, transport: Any, stock: Any, hook: Any) -> Any:
    """A client that does as `stock`, by our transport, which has the stock client behind it."""
    hooks = {name: list(found) for name, found in stock.event_hooks.items()}
    hooks["request"] = [hook, *hooks.get("request", ())]
    return kind(
        transport=transport(stock),
        event_hooks=hooks,
        headers=stock.headers,
        cookies=stock.cookies,
        timeout=stock.timeout,
        follow_redirects=stock.follow_redirects,
        max_redirects=stock.max_redirects,
    )


def _asked(request: Any) -> Asked | None:
    """What is to be asked of the agent; None for what goes elsewhere. The body is not in it yet."""
    url = request.url
    target = below_endpoint(f"{url.scheme}://{url.netloc.decode()}{url.raw_path.decode()}")
    if target is None:
        return None
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
    read_s = (request.extensions.get("timeout") or {}).get("read") or ANSWER_S
    asked = Asked(request.method, target, headers, b"", read_s)
    return asked if is_read(asked) else None


def _stream_class(lib: Any) -> Any:
    class Stream(lib.SyncByteStream, lib.AsyncByteStream):  # type: ignore[misc]
        """The body of an answer; what breaks it is said as the library expects it, so that it resumes."""

        def __init__(self, answer: Answer, request: Any) -> None:
            self._answer, self._request = answer, request

        def __iter__(self) -> Iterator[bytes]:
            import http.client
            import socket

            try:
                yield from self._answer.chunks()
            except socket.timeout as error:
                raise lib.ReadTimeout(str(error), request=self._request) from error
            except (OSError, http.client.HTTPException) as error:
                text = f"The agent's answer ended early: {error}"
                raise lib.RemoteProtocolError(text, request=self._request) from error

        async def __aiter__(self) -> AsyncIterator[bytes]:
            chunks = iter(self)
            while chunk := await _in_thread(next, chunks, b""):
                yield chunk

        def close(self) -> None:
            self._answer.close()

        async def aclose(self) -> None:
            self._answer.close()

    return Stream


def _transports(lib: Any, stream: Any) -> tuple[Any, Any]:
    def response(answer: Answer, request: Any) -> Any:
        return lib.Response(answer.status, headers=answer.headers, stream=stream(answer, request), request=request)

    class Transport(lib.BaseTransport):  # type: ignore[misc]
        def __init__(self, stock: Any) -> None:
            self._stock = stock

        def handle_request(self, request: Any) -> Any:
            asked = _asked(request)
            if asked is not None:
                asked.body = request.read()
                answer = guide.ask(asked)
                if answer is not None:
                    return response(answer, request)
            return self._stock._transport_for_url(request.url).handle_request(request)

        def close(self) -> None:
            self._stock.close()

    class AsyncTransport(lib.AsyncBaseTransport):  # type: ignore[misc]
        def __init__(self, stock: Any) -> None:
            self._stock = stock

        async def handle_async_request(self, request: Any) -> Any:
            asked = _asked(request)
            if asked is not None:
                asked.body = await request.aread()
                answer = await _in_thread(guide.ask, asked)
                if answer is not None:
                    return response(answer, request)
            return await self._stock._transport_for_url(request.url).handle_async_request(request)

        async def aclose(self) -> None:
            await self._stock.aclose()

    return Transport, AsyncTransport


async def _in_thread(call: Callable[..., Any], *args: Any) -> Any:
    import importlib

    threads: Any = importlib.import_module("anyio.to_thread")  # httpx needs anyio, so it is there
    return await threads.run_sync(lambda: call(*args))
