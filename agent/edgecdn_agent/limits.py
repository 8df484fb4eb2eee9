"""The limits of the settings, applied: to the hour, to the link, to HTTP and the swarm together."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable

from edgecdn.pace import Pace
from edgecdn.settings import Settings
from edgecdn.settings_values import Rate
from edgecdn_agent.swarm.session import Swarm

__all__ = ["Limits", "bytes_s"]

_TICK_S = 1.0

_HTTP_SHARE = 0.1
"""What HTTP may send of a limit at least, however much the swarm sends: small files must come through."""

_NO_LIMIT_BYTES_S = 1_000_000_000
"""A limit no machine of a lab reaches is none, and costs nothing."""


def bytes_s(rate: Rate, link_bytes_s: int | None) -> int | None:
    """A rate in bytes per second on a link of that speed; None: no limit, also for a share of an unknown link."""
    if rate.bytes_s is not None:
        return rate.bytes_s
    if rate.share is None or link_bytes_s is None:
        return None
    limit = int(rate.share * link_bytes_s)
    return limit if limit < _NO_LIMIT_BYTES_S else None


class Limits:
    """Keeps paces and swarm at what the settings say. `upload`, `download` and `wan` are for HTTP."""

    def __init__(
        self,
        settings: Settings,
        swarm: Swarm,
        link_bytes_s: Callable[[], int | None],
        local_time: Callable[[], dt.time] = lambda: dt.datetime.now().time(),  # noqa: DTZ005 - local is meant
    ) -> None:
        self.upload = Pace()
        self.download = Pace()
        self.wan = Pace()
        self._settings = settings
        self._swarm = swarm
        self._link_bytes_s = link_bytes_s
        self._local_time = local_time
        self._applied: tuple[int | None, int | None] | None = None

    async def run(self) -> None:
        """Look at the clock and the swarm once a second, until cancelled."""
        while True:
            await self.apply()
            await asyncio.sleep(_TICK_S)

    async def apply(self) -> None:
        """What holds at this moment."""
        settings, link = self._settings, self._link_bytes_s()
        if settings.limits_hours.covers(self._local_time()):
            up, down = bytes_s(settings.limits_upload, link), bytes_s(settings.limits_download, link)
            wan = bytes_s(settings.limits_wan, link)
        else:
            up = down = wan = None
        if not self._swarm.port:
            self._applied = None  # one that is started anew knows of no limits
        elif (up, down) != self._applied:
            self._swarm.set_limits(up, down)
            self._applied = (up, down)
        sent, received = (0, 0) if up is None and down is None else await asyncio.to_thread(self._swarm.bytes_moved)
        _set(self.upload, _beside(up, sent))
        _set(self.download, _beside(down, received))
        _set(self.wan, wan)


def _beside(limit: int | None, swarm_bytes_s: int) -> int | None:
    """What is left for HTTP beside the swarm."""
    return None if limit is None else max(limit - swarm_bytes_s, int(limit * _HTTP_SHARE), 1)


def _set(pace: Pace, rate: int | None) -> None:
    if pace.rate_bytes_s != rate:
        pace.set_rate(rate)
