"""Reading the raw request path: quoted revisions and folders must stay one segment."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
VERBS = frozenset(["revision", "tree", "paths-info", "refs", "commits", "discussions", "auth-check", "xet-read-token"])


@dataclass(frozen=True, slots=True)
class Route:
    """Where a path leads: `kind` is api, resolve or unknown."""

    kind: str
    repo_type: str = "model"
    repo: str = ""
    verb: str = ""
    revision: str = ""
    path: str = ""


UNKNOWN = Route("unknown")


def parse(raw_path: str) -> Route:
    """Split a path of the hub listener."""
    segments = raw_path.strip("/").split("/")
    if segments[0] == "api" and len(segments) > 1:
        return _parse_api(segments[1:])
    repo_type = "model"
    if segments[0] in ("datasets", "spaces"):
        repo_type = TYPES[segments.pop(0)]
    if "resolve" not in segments[1:3]:
        return UNKNOWN
    at = segments.index("resolve", 1)
    repo, rest = "/".join(segments[:at]), segments[at + 1 :]
    if len(rest) < 2:
        return UNKNOWN
    return Route("resolve", repo_type, unquote(repo), "", unquote(rest[0]), _join(rest[1:]))


def _parse_api(segments: list[str]) -> Route:
    if segments[0] not in TYPES:
        return Route("api", verb=segments[0])
    repo_type, rest = TYPES[segments[0]], segments[1:]
    at = next((i for i in (1, 2) if i < len(rest) and rest[i] in VERBS), len(rest))
    repo = unquote("/".join(rest[:at]))
    if not repo:
        return Route("api", repo_type, verb="search")
    if at == len(rest):
        return Route("api", repo_type, repo, "info", "main")
    revision = unquote(rest[at + 1]) if len(rest) > at + 1 else "main"
    return Route("api", repo_type, repo, rest[at], revision, _join(rest[at + 2 :]))


def _join(segments: list[str]) -> str:
    return unquote("/".join(segments))
