"""A question that several ask at the same time is asked once; who leaves does not end it for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from edgecdn_agent.gateway.errors import NoAnswer

__all__ = ["SingleFlight"]

_T = TypeVar("_T")


class SingleFlight:
    """Questions under way. `run` is its service; they end with it."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._asked: dict[Hashable, asyncio.Future[Any]] = {}

    async def run(self) -> None:
        """Keep them; until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self.ready.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self._group = None
                    self.ready.clear()
        finally:
            for future in self._asked.values():
                _settle(future, error=NoAnswer("The agent is stopping."))
            self._asked.clear()

    async def once(self, key: Hashable, ask: Callable[[], Awaitable[_T]]) -> _T:
        """The outcome of `ask`, whoever began it. Raises what it raises, NoAnswer when the agent stops."""
        future: asyncio.Future[_T] | None = self._asked.get(key)
        if future is None:
            if self._group is None:
                raise NoAnswer("The agent is starting or stopping.")
            future = self._asked[key] = asyncio.get_running_loop().create_future()
            self._group.create_task(self._answer(key, ask, future), name="gateway question")
        return await asyncio.shield(future)

    async def _answer(self, key: Hashable, ask: Callable[[], Awaitable[_T]], future: asyncio.Future[_T]) -> None:
        try:
            _settle(future, result=await ask())
        except Exception as error:  # noqa: BLE001 - carried over to those who wait
            _settle(future, error=error)
        finally:
            if self._asked.get(key) is future and future.done():
                del self._asked[key]


def _settle(future: asyncio.Future[Any], *, result: object = None, error: Exception | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()  # nobody may be waiting any more
