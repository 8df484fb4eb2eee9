"""What a ModelScope client asks for: the raw path and query, parsed into a typed request or refused. Pure.

What is safe and not known here is `Other`: ModelScope is asked for the same path. Nothing but a path ever
leaves here, so that no request can name another server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode

from edgecdn.errors import BadInput
from edgecdn.names import RepoId, RepoType, Revision
from edgecdn.repopath import RepoPath

__all__ = [
    "DEFAULT_REVISION", "Acceleration", "Asked", "FileOf", "Files", "Info", "Login", "Other", "Revisions",
    "Statistics", "canonical", "file_target", "files_target", "parse_target",
]  # fmt: skip

DEFAULT_REVISION = "master"

_MOST_TARGET = 8 << 10
_VISIBLE = re.compile(r"[!-~]+\Z")
_PREFIXES = ("/api/v1/", "/openapi/v1/")
_TYPES = {"models": RepoType.MODEL, "datasets": RepoType.DATASET}
_UNIMPORTANT = frozenset({"EndTime", "Source", "View"})
"""Parameters that clients vary and that change nothing: up to when, who asks, and whether it counts as a view."""


@dataclass(frozen=True, slots=True)
class FileOf:
    """A file's bytes."""

    repo: RepoId
    revision: str
    path: RepoPath


@dataclass(frozen=True, slots=True)
class Files:
    """A listing. `scope`: the repo as it was named. `page`, `size`: of data sets, which come in pages; else 0.

    `repo` is None where a data set is named by its number.
    """

    repo: RepoId | None
    scope: str
    revision: str
    root: str
    recursive: bool
    page: int
    size: int


@dataclass(frozen=True, slots=True)
class Revisions:
    """Branches and tags."""

    repo: RepoId
    scope: str


@dataclass(frozen=True, slots=True)
class Info:
    """A repo's page."""

    repo: RepoId
    scope: str


@dataclass(frozen=True, slots=True)
class Acceleration:
    """Which of its own storage regions the client is in: none, here."""


@dataclass(frozen=True, slots=True)
class Login:
    """A token given for a session; the one thing a client must POST before it can read."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """That a data set was downloaded, which ModelScope is told by its own client."""


@dataclass(frozen=True, slots=True)
class Other:
    """Whatever else ModelScope has."""


Asked = FileOf | Files | Revisions | Info | Acceleration | Login | Statistics | Other


def parse_target(target: str) -> Asked:
    """What the path and query of a request ask for.

    Raises BadInput for what no client sends: `..` in any spelling, an absolute address, unreadable text.
    """
    path, _, query_text = target.partition("?")
    segments = _segments(path, target)
    query = _query(query_text)
    rest = segments[2:]
    if segments[0] != "api" or not rest:
        return Other()
    if rest == ["repos", "internalAccelerationInfo"]:
        return Acceleration()
    if rest == ["login"]:
        return Login()
    if rest[0] not in _TYPES:
        return Other()
    try:
        return _of_repo(_TYPES[rest[0]], rest, query)
    except (BadInput, ValueError):  # a name or number only ModelScope could make sense of
        return Other()


def canonical(target: str) -> str:
    """One spelling for questions that are the same: order, case of booleans, and what is the default anyway."""
    path, _, query_text = target.partition("?")
    said = {name: value for name, value in _query(query_text).items() if name not in _UNIMPORTANT and value}
    if "Recursive" in said:
        said["Recursive"] = said["Recursive"].capitalize()
    if said.get("Root") == "/":
        del said["Root"]
    return f"{unquote(path).rstrip('/')}?{urlencode(sorted(said.items()))}"


def files_target(repo: RepoId, revision: str, page: int, size: int) -> str:
    """The whole listing of a model, or one page of a data set's, as its own client asks for it."""
    query = {"Revision": revision, "Recursive": "True"}
    if repo.type is RepoType.DATASET:
        paged = query | {"PageNumber": str(page), "PageSize": str(size)}
        return f"/api/v1/datasets/{repo.name}/repo/tree?{urlencode(paged)}"
    return f"/api/v1/{repo.type.plural}/{repo.name}/repo/files?{urlencode(query)}"


def file_target(repo: RepoId, revision: str, path: RepoPath) -> str:
    """Where a file's bytes are asked for."""
    query = urlencode({"Revision": revision, "FilePath": str(path)})
    return f"/api/v1/{repo.type.plural}/{repo.name}/repo?{query}"


def _of_repo(type_: RepoType, rest: Sequence[str], query: Mapping[str, str]) -> Asked:
    numbered = type_ is RepoType.DATASET and len(rest) > 2 and rest[1].isdecimal() and rest[2] == "repo"
    named = 2 if numbered else 3
    if len(rest) < named:
        return Other()
    scope, verb = "/".join(rest[:named]), "/".join(rest[named:])
    revision = str(Revision(query.get("Revision") or DEFAULT_REVISION))
    repo = None if numbered else RepoId(type_, "/".join(rest[1:3]))
    if verb in ("repo/files", "repo/tree"):
        page, size = int(query.get("PageNumber") or 0), int(query.get("PageSize") or 0)
        recursive = query.get("Recursive", "").lower() == "true"
        root = query.get("Root", "").strip("/")
        return Files(repo, scope, revision, root, recursive, max(0, page), max(0, size))
    if repo is not None and verb == "repo" and query.get("FilePath"):
        return FileOf(repo, revision, RepoPath.parse(query["FilePath"]))
    if repo is not None and verb in ("revisions", ""):
        return Revisions(repo, scope) if verb else Info(repo, scope)
    return Statistics() if verb.startswith("download/") else Other()


def _segments(path: str, target: str) -> list[str]:
    if not path.startswith(_PREFIXES) or not _VISIBLE.match(target) or "#" in target or len(target) > _MOST_TARGET:
        raise BadInput("the address is no path of ModelScope")
    segments = [_text(segment) for segment in path.strip("/").split("/")]
    for segment in segments:
        for text in (segment, unquote(segment)):
            if any(part in ("", ".", "..") for part in text.split("/")) or "\\" in text:
                raise BadInput("the address has an empty or a dot segment")
    return segments


def _text(segment: str) -> str:
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError as error:
        raise BadInput("the address is not valid UTF-8") from error


def _query(text: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100))
    except ValueError as error:
        raise BadInput("the query is not readable") from error
