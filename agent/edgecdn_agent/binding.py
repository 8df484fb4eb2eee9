"""Listening where the settings say, or where that is taken, near it."""

from __future__ import annotations

import errno
import socket

from edgecdn.settings_values import Listen

__all__ = ["bind_near"]

_TRIES = 20
_STEP = 10
"""The next port is ten on: the neighbours are our own other listeners (8377, 8378, 8379)."""


def bind_near(listen: Listen) -> socket.socket:
    """A socket that listens at `listen`, or where that is taken at the next free port; any, if need be."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    ports = [p for p in range(listen.port, listen.port + _TRIES * _STEP, _STEP) if p < 1 << 16] if listen.port else []
    for port in [*ports, 0]:
        try:
            return socket.create_server((listen.host, port), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == 0:
                raise
    raise AssertionError("unreachable")
