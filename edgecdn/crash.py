"""Named crash points: `EDGECDN_CRASH=publish.3` kills the process there, as `kill -9` would.

They stand between the steps whose order keeps the store whole, so that tests can stop at each one.
Without the variable a point costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal

__all__ = ["CRASH_POINTS", "crash_point"]

CRASH_POINTS = (
    "partial.created",
    "partial.written",
    "partial.journaled",
    "publish.1",  # verified, not yet synced
    "publish.2",  # synced, not yet renamed
    "publish.3",  # renamed, directory not yet synced
    "publish.4",  # blob durable, journal still there
    "publish.5",  # all blobs durable, tree not yet written
    "publish.6",  # tree written, no link yet
    "publish.7",  # links made, ref not yet written
    "publish.8",  # ref temporary written, not yet renamed
    "publish.9",  # ref renamed
    "rm.1",  # links of a commit removed, blobs still there
    "quarantine.1",  # a rotten blob recorded, not yet moved
    "swarm.finished",  # the last piece has arrived, not all are written
    "swarm.flushed",  # all pieces written and told, the whole not yet verified
)
"""Every point, in the order a fetch passes them, but for those of `rm` and of agents; tests enumerate this."""


def crash_point(name: str) -> None:
    """Kill this process with SIGKILL when EDGECDN_CRASH names the point."""
    if os.environ.get("EDGECDN_CRASH") == name:
        os.kill(os.getpid(), signal.SIGKILL)
