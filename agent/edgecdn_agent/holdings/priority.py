"""Background work that nobody waits for takes what is left of processor and disk."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

import psutil

__all__ = ["step_back"]

_NICENESS = 10
"""Not 19: hashing holds the interpreter's lock for moments, and a thread that never gets a core would hold it on."""


def step_back() -> None:
    """Let everything else go first. On Linux priorities belong to threads; elsewhere to the process: left alone."""
    if hasattr(psutil.Process, "ionice") and hasattr(os, "setpriority"):
        thread = threading.get_native_id()
        with suppress(OSError, psutil.Error):
            os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)
            psutil.Process(thread).ionice(psutil.IOPRIO_CLASS_IDLE)
