"""What a hub client asks for: the raw path and query, parsed into a typed request or refused. Pure.

The raw path, because a revision arrives as one quoted segment (`refs%2Fpr%2F1`), and so does a folder
below `tree`. What is safe and not known here is `Other`: the hub is asked for the same path. Nothing but
a path ever leaves here, so that no request can name another server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

from edgecdn.errors import BadInput
from edgecdn.names import CommitId, RepoId, RepoType, Revision
from edgecdn.repopath import RepoPath

__all__ = [
    "MOST_TARGET_BYTES", "Asked", "Info", "OfRepo", "Other", "PathsInfo", "Quiet", "Refs", "Resolve", "Tree",
    "commit_of", "commits_target", "info_target", "parse_target", "resolve_target", "same_question", "tree_target",
]  # fmt: skip

MOST_TARGET_BYTES = 8 << 10
"""Longest path, and longest query, that is looked at."""

_VISIBLE = re.compile(r"[!-~]+\Z")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TYPES = {t.plural: t for t in RepoType}
_QUIET = ("/api/agent-harnesses", "/api/telemetry")
_VERBS = frozenset({
    "revision", "tree", "paths-info", "refs", "commits", "discussions", "auth-check", "xet-read-token",
    "safetensors-metadata", "resolve-cache", "commit", "compare", "treesize", "notebook",
})  # fmt: skip
_PERISHABLE = frozenset({"auth-check", "xet-read-token"})
_FLAGS = frozenset({"recursive", "expand", "blobs", "include_prs", "full", "cardData", "config", "securityStatus"})
_TRUE = frozenset({"true", "1"})
_FALSE = frozenset({"false", "0"})


@dataclass(frozen=True, slots=True)
class Resolve:
    """A file's bytes, or what is known of them."""

    repo: RepoId
    revision: Revision
    path: RepoPath


@dataclass(frozen=True, slots=True)
class Info:
    """A repo's page. `revision`: None is the default branch. `plain`: asks for nothing out of the ordinary."""

    repo: RepoId
    revision: Revision | None
    blobs: bool
    plain: bool


@dataclass(frozen=True, slots=True)
class Tree:
    """A listing. `folder`: None is the top. `plain`: no details, no further page."""

    repo: RepoId
    revision: Revision
    folder: RepoPath | None
    recursive: bool
    plain: bool


@dataclass(frozen=True, slots=True)
class PathsInfo:
    """What some paths are; they come in the body."""

    repo: RepoId
    revision: Revision


@dataclass(frozen=True, slots=True)
class Refs:
    """Branches and tags."""

    repo: RepoId
    pull_requests: bool


@dataclass(frozen=True, slots=True)
class OfRepo:
    """Something else of a repo. `revision`: of which, if it says so. `perishable`: for this caller, now."""

    repo: RepoId
    verb: str
    revision: Revision | None
    perishable: bool


@dataclass(frozen=True, slots=True)
class Quiet:
    """What no client needs an answer to."""


@dataclass(frozen=True, slots=True)
class Other:
    """Whatever else a hub has. `lists`: it is a search, and may be remembered for a while."""

    lists: bool


Asked = Resolve | Info | Tree | PathsInfo | Refs | OfRepo | Quiet | Other


def parse_target(target: str) -> tuple[str, str, Asked]:
    r"""The raw path, the raw query, and what they ask for.

    Raises BadInput for what a hub client never sends: `..` in any spelling, control characters, `\`, `;`,
    empty segments, an absolute address, more than MOST_TARGET_BYTES.
    """
    path, _, query = target.partition("?")
    if len(path) > MOST_TARGET_BYTES or len(query) > MOST_TARGET_BYTES:
        raise BadInput("the address is too long")
    segments = _segments(path)
    if query and (not _VISIBLE.match(query) or "#" in query):
        raise BadInput("the query has characters that do not belong into one")
    if path.startswith(_QUIET):
        return path, query, Quiet()
    return path, query, _parse(segments, query)


def info_target(repo: RepoId, revision: Revision) -> str:
    """The path of a repo's page at a revision."""
    return f"/api/{repo.type.plural}/{repo.name}/revision/{quote(str(revision), safe='')}"


def commits_target(repo: RepoId, revision: Revision) -> str:
    """The path of the history of a branch."""
    return f"/api/{repo.type.plural}/{repo.name}/commits/{quote(str(revision), safe='')}"


def resolve_target(repo: RepoId, revision: Revision, path: RepoPath) -> str:
    """The path of a file, as clients write it."""
    return f"/{repo.url_path}/resolve/{quote(str(revision), safe='')}/{quote(str(path))}"


def same_question(path: str, query: str) -> str:
    """One spelling for questions that are the same: `recursive=True` and `expand=false&recursive=true`."""
    said: list[tuple[str, str]] = []
    for name, value in sorted(_pairs(query)):
        if name not in _FLAGS or value.lower() not in _TRUE | _FALSE:
            said.append((name, value))
        elif value.lower() in _TRUE:
            said.append((name, "true"))
    return f"{path}?{urlencode(said)}" if said else path


def _parse(segments: Sequence[str], query: str) -> Asked:
    """What it is; a repo, revision or path that only a hub could make sense of is for the hub."""
    try:
        if segments[0] == "api":
            return _parse_api(segments[1:], dict(_pairs(query)))
        return _parse_file(segments)
    except _NotOurs:
        return Other(lists=False)


def _parse_file(segments: Sequence[str]) -> Asked:
    """`[datasets/|spaces/]{id}/resolve/{revision}/{path}`."""
    type_ = _TYPES.get(segments[0], RepoType.MODEL)
    rest = segments[1:] if segments[0] in _TYPES else segments
    at = next((i for i in (1, 2) if i < len(rest) and rest[i] == "resolve"), None)
    if at is None or len(rest) < at + 3:
        return Other(lists=False)
    repo = _repo(type_, rest[:at])
    return Resolve(repo, _revision(rest[at + 1]), RepoPath.parse(_text("/".join(rest[at + 2 :]))))


def _parse_api(rest: Sequence[str], query: Mapping[str, str]) -> Asked:
    """`{type}/{id}[/{verb}[/{revision}[/{path}]]]`."""
    type_ = _TYPES.get(rest[0]) if rest else None
    if type_ is None or len(rest) == 1:
        return Other(lists=type_ is not None)
    names = rest[1:]
    at = next((i for i in (1, 2) if i < len(names) and names[i] in _VERBS), len(names))
    repo, verb = _repo(type_, names[:at]), names[at] if at < len(names) else ""
    revision = _revision(names[at + 1]) if len(names) > at + 1 else None
    below = names[at + 2 :]
    if verb in ("", "revision") and not below and (revision is not None) == (verb == "revision"):
        return Info(repo, revision, _is_true(query.get("blobs")), plain=not query.keys() - {"blobs"})
    if verb == "tree" and revision is not None:
        folder = RepoPath.parse(_text("/".join(below))) if below else None
        plain = not _is_true(query.get("expand")) and not query.keys() - {"recursive", "expand"}
        return Tree(repo, revision, folder, _is_true(query.get("recursive")), plain)
    if verb == "paths-info" and revision is not None and not below:
        return PathsInfo(repo, revision)
    if verb == "refs" and revision is None:
        return Refs(repo, _is_true(query.get("include_prs")))
    return OfRepo(repo, verb, revision, verb in _PERISHABLE)


class _NotOurs(Exception):
    """Safe, but no name as we know them."""


def _repo(type_: RepoType, segments: Sequence[str]) -> RepoId:
    try:
        return RepoId(type_, "/".join(segments))
    except BadInput as error:
        raise _NotOurs from error


def _revision(segment: str) -> Revision:
    try:
        return Revision(_text(segment))
    except BadInput as error:
        raise _NotOurs from error


def _segments(path: str) -> list[str]:
    """The quoted segments of a path in which nothing leads anywhere else, however often it is unquoted."""
    if not path.startswith("/") or not _VISIBLE.match(path) or _BAD_ESCAPE.search(path) or "#" in path:
        raise BadInput("the address is no path of a hub")
    segments = path[1:].split("/")
    if segments[-1] == "" and len(segments) > 1:
        segments.pop()  # a folder's address may end with a slash
    for segment in segments if path != "/" else ():
        once = _text(segment)
        for text in (segment, once, _text(once) if not _BAD_ESCAPE.search(once) else once):
            if any(part in ("", ".", "..") for part in text.split("/")):
                raise BadInput("the address has an empty or a dot segment")
            if any(c in "\\;" or ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
                raise BadInput("the address has a character that no hub uses")
    return segments


def _text(segment: str) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError as error:
        raise BadInput("the address is not valid UTF-8") from error


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=1000)
    except ValueError as error:
        raise BadInput("the query is not readable") from error


def _is_true(value: str | None) -> bool:
    return value is not None and value.lower() in _TRUE


def commit_of(asked: Asked) -> CommitId | None:
    """The commit a request names, if it names one: then its answer never changes."""
    revision = None if isinstance(asked, Quiet | Other | Refs) else asked.revision
    return revision.commit if revision is not None else None


def tree_target(repo: RepoId, commit: CommitId) -> str:
    """The path of the whole listing of a commit, as clients write it."""
    return f"/api/{repo.type.plural}/{repo.name}/tree/{commit}?recursive=true&expand=false"
