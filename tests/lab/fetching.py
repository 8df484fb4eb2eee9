"""A fetch asked of a machine's agent, as `edgecdn fetch` asks, with every event seen by the test as it comes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from edgecdn.control import API
from tests.lab.asking import session_in
from tests.lab.machine import Machine
from tests.lab.processes import RUN_LIMIT_S

__all__ = ["Fetching", "asked", "filled", "holds", "met", "until"]

_LOOK_S = 0.05
_SAME_BYTES = 1000
"""Models of the test hub have a small file in common, which is counted once."""


class Fetching:
    """What came so far: `by_kind` and `by_source` count bytes, `seen` is when (monotonic) a source gave any."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.by_kind: Counter[str] = Counter()
        self.by_source: Counter[str] = Counter()
        self.seen: dict[str, list[float]] = {}
        self.notes: list[str] = []
        self.began = time.monotonic()
        self.result: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self._ended = False
        self._changed = asyncio.Event()

    async def came(self, size: int, kind: str = "", limit_s: float = 20.0) -> None:
        """Until so many bytes came, of one kind or of all."""
        await self.until(lambda: (self.by_kind[kind] if kind else self.by_kind.total()) >= size, limit_s)

    async def until(self, holds: Callable[[], bool], limit_s: float = 20.0) -> None:
        """Until something holds of what came; it is looked at after each event."""
        try:
            async with asyncio.timeout(limit_s):
                while not holds():
                    assert not self._ended, f"the fetch ended before\n{self._said()}"
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {limit_s} s\n{self._said()}") from None

    async def done(self, limit_s: float = RUN_LIMIT_S) -> dict[str, Any]:
        """Its result, which must be one; what came is the model, each byte counted once."""
        await self.until(lambda: self.result is not None, limit_s)
        assert self.result is not None
        assert sum(self.result["bytes_by_source"].values()) == self.result["bytes_total"], self._said()
        return self.result

    def longest_silence_s(self, since: float) -> float:
        """The longest time in which nothing came, from `since` to the last byte."""
        at = sorted(moment for moments in self.seen.values() for moment in moments if moment > since)
        return max(later - earlier for earlier, later in zip([since, *at], at, strict=False))

    def first_s(self, source: str, since: float) -> float:
        """When the first byte of a source came, after `since`."""
        return min(moment for moment in self.seen[source] if moment >= since) - since

    async def read(self, answer: aiohttp.ClientResponse) -> None:
        """Take line by line, until the end."""
        try:
            async for line in answer.content:
                self._take(json.loads(line))
                self._changed.set()
        finally:
            self._ended = True
            self._changed.set()

    def _take(self, line: dict[str, Any]) -> None:
        self.result = line.get("result", self.result)
        self.error = line.get("error", self.error)
        match line.get("event"):
            case "BytesReceived":
                self.by_kind[line["kind"]] += line["count"]
                self.by_source[line["source"]] += line["count"]
                self.seen.setdefault(line["source"], []).append(time.monotonic())
            case "BytesDiscarded":
                self.by_kind[line["kind"]] -= line["count"]
                self.by_source[line["source"]] -= line["count"]
            case "Note" | "Waiting" | "SourceDropped":
                self.notes.append(json.dumps(line))

    def _said(self) -> str:
        agent = self.machine.agent
        said = "" if agent is None else agent.said()
        notes = "\n".join(self.notes)
        return (
            f"{self.machine.name}: {dict(self.by_source)}, result {self.result}, error {self.error}\n{notes}\n"
            f"its agent:\n{said}"
        )


@asynccontextmanager
async def asked(machine: Machine, model: str) -> AsyncIterator[Fetching]:
    """Ask, and read until the end of the block: who leaves does not stop the fetch."""
    fetching = Fetching(machine)
    async with session_in(machine.node.space, None) as session:
        token = (machine.home / "api-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        body = {"model": model, "cache_dir": str(machine.cache)}
        async with session.post(f"{machine.control_url}{API}/jobs", json=body, headers=headers) as answer:
            answer.raise_for_status()
            reading = asyncio.create_task(fetching.read(answer))
            try:
                yield fetching
            finally:
                reading.cancel()
                await asyncio.wait([reading])


async def filled(machine: Machine, *models: str) -> None:
    """Start the agent of a machine and have it fetch these, from wherever, until others can have them of it."""
    await machine.start_agent()
    size = 0
    for model in models:
        async with asked(machine, model) as fetching:
            size += (await fetching.done())["bytes_total"]
    await holds(machine, size)


async def holds(machine: Machine, size: int) -> None:
    """Until the agent knows that it has so many bytes, moments after they were published."""
    await until(machine, "status", lambda status: status["cache"]["bytes"] >= size - _SAME_BYTES)


async def met(*machines: Machine, limit_s: float = 15.0) -> None:
    """Until each of these agents has seen all the others."""
    names = {machine.name for machine in machines}

    def sees_all(machine: Machine) -> Callable[[Any], bool]:
        return lambda peers: names - {machine.name} <= {peer["name"] for peer in peers}

    await asyncio.gather(*(until(machine, "peers", sees_all(machine), limit_s) for machine in machines))


async def until(machine: Machine, what: str, holds: Callable[[Any], bool], limit_s: float = 15.0) -> Any:
    """Look at `peers`, `status` or `jobs` of an agent until it is so; returns the answer."""
    deadline = time.monotonic() + limit_s
    while not holds(answer := await machine.get(f"{API}/{what}")):
        assert time.monotonic() < deadline, f"{what} of {machine.name}: {answer}"
        await asyncio.sleep(_LOOK_S)
    return answer
