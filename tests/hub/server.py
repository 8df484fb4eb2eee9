"""The test hub: listeners that hand parsed requests to the handlers and send their answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from aiohttp import web

from tests.hub.answers import Answer, Asked
from tests.hub.dispatch import Dispatcher
from tests.hub.faults import (
    ANSWER_KINDS,
    BODY_KINDS,
    HEADER_KINDS,
    Active,
    Fault,
    FaultBook,
    Kind,
    Target,
)
from tests.hub.listeners import Listener
from tests.hub.modelscope import ModelScope, Quirks
from tests.hub.pacing import Pacer
from tests.hub.repos import HubRepo
from tests.hub.sending import Sending
from tests.hub.shaping import PORTAL_PAGE, shape
from tests.hub.state import HubState, Signer, Tokens
from tests.hub.stats import Seen, Stats


class TestHub:
    """Hub, CDN and (if asked for) ModelScope listeners on loopback."""

    __test__ = False  # not a test case

    def __init__(
        self,
        repos: Iterable[HubRepo] = (),
        *,
        tokens: Tokens = None,
        aliases: Mapping[str, str] | None = None,
        cdn: bool = True,
        cdn_host: str = "127.0.0.1",
        modelscope: bool | Iterable[HubRepo] = False,
        quirks: Quirks | None = None,
        page_size: int = 1000,
        signer: Signer | None = None,
        faults: Iterable[Fault] = (),
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        signer = signer or Signer()
        self.state = HubState.of(repos, aliases or {}, tokens, page_size=page_size, cdn=cdn, signer=signer)
        self.stats = Stats()
        self.faults = FaultBook(faults)
        self._released = asyncio.Event()
        self._pacers: dict[int, Pacer] = {}
        self._listeners = {
            "hub": Listener(partial(self._serve, "hub"), host, port),
            "cdn": Listener(partial(self._serve, "cdn"), cdn_host),
            "modelscope": Listener(partial(self._serve, "modelscope"), host),
        }
        self._scope_enabled = modelscope is not False
        self._scope_state = (
            self.state if isinstance(modelscope, bool) else HubState.of(modelscope, {}, tokens, signer=signer)
        )
        scope = ModelScope(self._scope_state, quirks or Quirks())
        self._dispatcher = Dispatcher(self.state, scope)

    @property
    def url(self) -> str:
        """Endpoint for clients."""
        return self._listeners["hub"].url

    @property
    def cdn_url(self) -> str:
        """Where large files are redirected to."""
        return self._listeners["cdn"].url

    @property
    def modelscope_url(self) -> str:
        """Endpoint for ModelScope clients; empty unless enabled."""
        return self._listeners["modelscope"].url

    def add(self, repo: HubRepo) -> None:
        """Publish one more repository."""
        self.state.repos[repo.type, repo.id] = repo

    def inject(self, *faults: Fault) -> None:
        """Put rules in force."""
        for fault in faults:
            self.faults.inject(fault)

    def clear(self) -> None:
        """Lift every rule: answers that are stalled, late or slow go on as if there had been none."""
        self.faults.clear()
        self._pacers.clear()
        self._released.set()
        self._released = asyncio.Event()

    async def go_down(self, role: str) -> None:
        """Stop one listener (hub, cdn or modelscope): its port refuses connections."""
        await self._listeners[role].go_down()

    async def come_back(self, role: str) -> None:
        """Start a stopped listener again on its port."""
        await self._listeners[role].start()

    async def __aenter__(self) -> Self:
        for role, listener in self._listeners.items():
            if role != "modelscope" or self._scope_enabled:
                await listener.start()
        self.state.cdn_url = self._scope_state.cdn_url = self.cdn_url
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for listener in self._listeners.values():
            await listener.stop()

    async def _serve(self, role: str, request: web.BaseRequest) -> web.StreamResponse:
        headers = dict(request.headers)
        seen = Seen(role, request.method, request.raw_path, headers.get("Range"), headers)
        self.stats.requests.append(seen)
        asked = await _read(request)
        target, answer = self._dispatcher.dispatch(asked, seen)
        early = self.faults.take(target, ANSWER_KINDS)
        if Kind.DELAY_FIRST_BYTE in early:
            await _wait(self._released, early[Kind.DELAY_FIRST_BYTE].seconds)
        return await self._send(request, seen, target, _replacement(early) or answer)

    async def _send(self, request: web.BaseRequest, seen: Seen, target: Target, answer: Answer) -> web.StreamResponse:
        active = self.faults.take(target, HEADER_KINDS)
        if request.method != "HEAD" and 200 <= answer.status < 300:
            active |= self.faults.take(target, BODY_KINDS)
        shaped = shape(answer, seen.range, seen.headers.get("If-Range"), active)
        seen.status = shaped.status
        pacers = self._pacers_of(active)
        sending = Sending(request, shaped, active, pacers, self._released, self.stats, seen)
        return await sending.run()

    def _pacers_of(self, active: Active) -> tuple[Pacer, ...]:
        pacers = []
        if (own := active.get(Kind.SLOW_PER_CONNECTION)) is not None:
            pacers.append(Pacer(own.bytes_per_s))
        if (shared := active.get(Kind.SLOW_TOTAL)) is not None:
            pacers.append(self._pacers.setdefault(id(shared), Pacer(shared.bytes_per_s)))
        return tuple(pacers)


async def _wait(released: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await released.wait()


def _replacement(early: Active) -> Answer | None:
    if (fault := early.get(Kind.STATUS)) is not None:
        body = (fault.text or json.dumps({"error": f"injected {fault.status}"})).encode()
        return Answer(fault.status, body, headers=fault.headers)
    if Kind.CAPTIVE_PORTAL in early:
        return Answer(200, PORTAL_PAGE, "text/html")
    if (fault := early.get(Kind.REDIRECT_TO)) is not None:
        return Answer(302, b"", "text/plain", {**fault.headers, "Location": fault.url})
    return None


async def _read(request: web.BaseRequest) -> Asked:
    is_json = request.content_type == "application/json"
    form = await request.post() if request.method == "POST" and not is_json else None
    posted = await request.json() if request.method == "POST" and is_json else {}
    paths = [str(value) for value in form.getall("paths", [])] if form else []
    query = dict(request.rel_url.query)
    if form and "expand" in form:
        query["expand"] = str(form["expand"])
    raw_path = request.raw_path.partition("?")[0]
    base = f"{request.scheme}://{request.host}"
    return Asked(request.method, raw_path, query, request.headers, base, paths, posted)
