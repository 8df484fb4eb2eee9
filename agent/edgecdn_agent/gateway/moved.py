"""A repo that has another name now: hubs send to it by a relative redirect, and so do we. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from edgecdn.errors import BadInput
from edgecdn.names import RepoId
from edgecdn_agent.gateway.hubs import HubAnswer
from edgecdn_agent.gateway.paths import Other, Quiet, parse_target

__all__ = ["local_location", "moved_to"]


def local_location(answer: HubAnswer) -> str | None:
    """Where a redirect leads, as a path of ours; None when it leads to another server, or to no path of a hub."""
    location = answer.headers.get("location", "")
    if location.startswith(answer.endpoint + "/"):
        location = location[len(answer.endpoint) :]
    try:
        if urlsplit(location).netloc or not location.startswith("/"):
            return None
        parse_target(location)
    except (BadInput, ValueError):
        return None
    return location


def moved_to(answer: HubAnswer, repo: RepoId) -> RepoId | None:
    """The repo's new name, if an answer sends there."""
    location = local_location(answer) if 300 <= answer.status < 400 else None
    if location is None:
        return None
    asked = parse_target(location)[2]
    return None if isinstance(asked, Other | Quiet) or asked.repo == repo else asked.repo
