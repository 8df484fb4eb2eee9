"""The listener through which another process reads counters and sets faults."""

from __future__ import annotations

import base64
from typing import Any

from aiohttp import web

from tests.hub.faults import Fault
from tests.hub.listeners import Listener
from tests.hub.server import TestHub


class Control:
    """GET/DELETE /stats, GET /requests, POST/DELETE /faults, POST /commits."""

    def __init__(self, hub: TestHub) -> None:
        self._hub = hub
        self.listener = Listener(self._serve)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        body: Any = await request.json() if request.can_read_body else None
        match request.method, request.path:
            case "GET", "/stats":
                return web.json_response(self._hub.stats.to_json())
            case "GET", "/requests":
                return web.json_response(self._requests())
            case "DELETE", "/stats":
                self._hub.stats.reset()
            case "POST", "/faults":
                self._hub.inject(*(Fault.from_json(fault) for fault in body))
            case "DELETE", "/faults":
                self._hub.clear()
            case "POST", "/commits":
                return web.json_response({"commit": self._commit(body)})
            case _:
                return web.json_response({"error": "not found"}, status=404)
        return web.json_response({})

    def _requests(self) -> list[dict[str, Any]]:
        return [
            {
                "listener": seen.listener,
                "method": seen.method,
                "path": seen.path,
                "range": seen.range,
                "status": seen.status,
                "sent": seen.sent,
                "headers": dict(seen.headers),
            }
            for seen in self._hub.stats.requests
        ]

    def _commit(self, body: dict[str, Any]) -> str:
        repo = self._hub.state.repos[body.get("type", "model"), body["repo"]]
        files = {path: base64.b64decode(data) for path, data in body["files"].items()}
        return repo.add_commit(files, branch=body.get("branch", "main"))
