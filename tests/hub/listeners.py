"""One HTTP listener on loopback."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from aiohttp import web

STOP_LIMIT_S = 0.05  # answers still running are cut when the hub stops
BACKLOG = 1024


class Listener:
    """Starts and stops a server; `url` is known once it listens."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._handler, self._host, self._port = handler, host, port
        self._runner: web.ServerRunner | None = None
        self._kept: socket.socket | None = None
        self.url = ""

    async def start(self) -> None:
        """Bind and listen."""
        server = web.Server(self._handler, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=STOP_LIMIT_S)
        await runner.setup()
        self._runner = runner
        kept, self._kept = self._kept, None
        if kept is None:
            await web.TCPSite(runner, self._host, self._port, backlog=BACKLOG).start()
        else:
            await web.SockSite(runner, kept, backlog=BACKLOG).start()
        self._port = runner.addresses[0][1]
        self.url = f"http://{self._host}:{self._port}"

    async def go_down(self) -> None:
        """As `stop`, but nobody else gets the port meanwhile: bound and not listened at, it refuses connections."""
        await self.stop()
        self._kept = socket.socket()
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._kept.bind((self._host, self._port))

    async def stop(self) -> None:
        """Close the socket and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._kept is not None:
            self._kept.close()
            self._kept = None
