"""HTTP from inside a namespace, without a process for it."""

from __future__ import annotations

import socket
from typing import Any

import aiohttp

from tests.lab.namespaces import Namespace

__all__ = ["session_in"]

_LIMIT_S = 10.0


def session_in(space: Namespace, limit_s: float | None = _LIMIT_S) -> aiohttp.ClientSession:
    """Make a client whose connections leave from `space`; addresses are literal, so nothing is looked up outside."""

    def make(info: Any) -> socket.socket:
        made = space.socket(info[1])
        made.setblocking(False)
        return made

    connector = aiohttp.TCPConnector(socket_factory=make)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=limit_s), trust_env=False)
