"""The guard of the local listener, where an answer is under way when its handler fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from edgecdn.errors import BadInput
from edgecdn_agent.control.guard import GATEWAY_ROUTE, local_guard

LIMIT_S = 20.0
BEGUN = b"begun"


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    """The port of a listener with one gateway route."""
    app = web.Application(middlewares=[local_guard("token")])
    app.router.add_get("/file", handler, name=GATEWAY_ROUTE)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def received(port: int) -> bytes:
    """Head and body, up to the end of the connection, which must come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = bytearray()
        async with asyncio.timeout(LIMIT_S):
            try:
                while data := await reader.read(1 << 16):
                    got += data
            except ConnectionError:
                pass
        return bytes(got)
    finally:
        writer.close()


async def fail(error: Exception | None) -> web.Response:
    if error is not None:
        raise error
    return web.Response(status=503, text="why there is no file")


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), BadInput("no"), web.HTTPNotFound(), None])
async def test_an_error_never_becomes_bytes_of_the_file(error: Exception | None) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.content_length = 1000
        await answer.prepare(request)
        await answer.write(BEGUN)
        return await fail(error)

    async with listening(handler) as port:
        head, _, body = (await received(port)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") or not head
    assert BEGUN.startswith(body)
