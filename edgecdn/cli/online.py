"""What a command does before it speaks to hubs."""

from __future__ import annotations

import logging

__all__ = ["go_online", "guard_hubs", "log_to_stderr"]


def go_online(*, verbose: bool = False) -> None:
    """Guard the hub library's client in this process, and keep its own warnings to itself: ours say more."""
    log_to_stderr(verbose=verbose)
    guard_hubs()


def log_to_stderr(*, verbose: bool) -> None:
    """What goes to the log of a command."""
    # Never the root logger at DEBUG: HTTP libraries log headers there, and with them the token.
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("edgecdn").setLevel(logging.DEBUG if verbose else logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.WARNING if verbose else logging.ERROR)


def guard_hubs() -> None:
    """Guard the hub library's client; imports it, so only where hubs are spoken to."""
    from edgecdn.sources.hub_client import guard_hub_client

    guard_hub_client()
