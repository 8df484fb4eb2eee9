"""The supervisor: runs services, starts again what fails, stops all in time.

A service is a name and a coroutine function that runs until it is cancelled. What it raises decides:
any exception - started again after 1 s, 2 s, .. 30 s (from 1 s again once it ran for a minute);
`NoRestart` - it stays down, the others go on; `Fatal` - all stop and `run` raises it.
A service that returns has done its work.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Fatal", "NoRestart", "Service", "State", "Supervisor"]

_log = logging.getLogger(__name__)

_STOP_S = 4.0
"""How long services may take to clean up (seconds); with the rest of the exit it stays below 5 s."""


class NoRestart(Exception):
    """What a service raises when starting it again would not help."""


class Fatal(Exception):
    """What a service raises when the agent is of no use without it."""


class State(StrEnum):
    """Where a service is in its life."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    FAILED = "failed"
    DONE = "done"


@dataclass(slots=True)
class Service:
    """A service. It sets `ready` itself; where it was made without, it is ready once it runs."""

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]
    ready: asyncio.Event | None = None
    state: State = State.STARTING
    restarts: int = 0
    detail: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether others can count on it now."""
        if self.state is State.STARTING and self.ready is not None and self.ready.is_set():
            self.state = State.READY
        return self.state in (State.READY, State.DONE)

    @property
    def is_failing(self) -> bool:
        """Whether it is down, for good or until it is tried again, or was and is not ready again yet."""
        return not self.is_ready and (self.state is not State.STARTING or self.restarts > 0)


@dataclass(slots=True)
class Supervisor:
    """Runs services side by side. `backoff_s`: first and longest pause; `healthy_s`: after which it counts anew."""

    backoff_s: tuple[float, float] = (1.0, 30.0)
    healthy_s: float = 60.0
    stop_s: float = _STOP_S
    clock: Callable[[], float] = time.monotonic
    services: list[Service] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _fatal: Fatal | None = None

    def add(
        self, name: str, run: Callable[[], Coroutine[Any, Any, None]], ready: asyncio.Event | None = None
    ) -> Service:
        """Have it run; before `run` is called."""
        service = Service(name, run, ready)
        self.services.append(service)
        return service

    def stop(self) -> None:
        """Have `run` end; safe from a signal handler of the loop, and twice."""
        self._stop.set()

    async def wait_ready(self, limit_s: float) -> bool:
        """Whether within the limit all services got ready or failed: those that work are not kept waiting for them."""
        try:
            async with asyncio.timeout(limit_s):
                # Asked again and again: what sets `ready` is the service, what fails it is its end.
                while not self.is_ready:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        return True

    @property
    def is_ready(self) -> bool:
        """Whether none is on its first way up any more."""
        return all(service.is_ready or service.is_failing for service in self.services)

    @property
    def failing(self) -> list[str]:
        """The services that are down."""
        return [service.name for service in self.services if service.is_failing]

    async def run(self) -> None:
        """Run until `stop`, a Fatal or cancellation; then nothing runs any more (or was given up after 4 s)."""
        # Not a TaskGroup: that would wait for a service that does not end, and the agent must.
        tasks = [asyncio.create_task(self._keep(service), name=service.name) for service in self.services]
        try:
            await self._stop.wait()
        finally:
            await self._end(tasks)
        if self._fatal is not None:
            raise self._fatal

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        _, slow = await asyncio.wait(tasks, timeout=self.stop_s)
        for task in slow:
            _log.error("service did not stop in time service=%s limit_s=%s", task.get_name(), self.stop_s)

    async def _keep(self, service: Service) -> None:
        """One service's life."""
        pause_s = self.backoff_s[0]
        while True:
            began = self.clock()
            service.state = State.STARTING if service.ready is not None else State.READY
            if not await self._once(service):
                return
            if service.ready is not None:
                service.ready.clear()
            if self.clock() - began >= self.healthy_s:
                pause_s = self.backoff_s[0]
            service.state = State.WAITING
            service.restarts += 1
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, self.backoff_s[1])

    async def _once(self, service: Service) -> bool:
        """Run it; whether it is to be started again."""
        try:
            await service.run()
        except NoRestart as fault:
            service.state, service.detail = State.FAILED, str(fault)
            _log.error("service stays down service=%s reason=%s", service.name, fault)
        except Fatal as fault:
            service.state, service.detail = State.FAILED, str(fault)
            self._fatal = self._fatal or fault
            self._stop.set()
        except Exception as error:  # noqa: BLE001 - one failing service does not stop the others
            service.detail = f"{type(error).__name__}: {error}"
            _log.exception("service failed and is started again service=%s", service.name)
            return True
        else:
            service.state = State.DONE
        return False
