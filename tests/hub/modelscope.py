"""A stand-in for the ModelScope API, with the oddities of the live service."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http.cookies import SimpleCookie
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from tests.hub.answers import Answer, Asked, HubError
from tests.hub.files import OCTETS
from tests.hub.repos import Commit, HubRepo
from tests.hub.state import HubState

LISTING_LIMIT = 3000  # the service cuts longer model listings without saying so
PLURALS = {"models": "model", "datasets": "dataset"}


@dataclass(frozen=True, slots=True)
class Quirks:
    """Which oddities to show."""

    range_status_200: bool = True  # Range honoured, Content-Range sent, status 200
    unknown_revision_null: bool = True  # HTTP 200 with Files: null
    listing_sha256: bool = True
    empty_committer_id: bool = False
    redirect_lfs: bool = False  # 302 to the CDN listener
    listing_limit: int = LISTING_LIMIT
    default_branch: str = "master"


@dataclass(frozen=True, slots=True)
class Place:
    """A parsed path: the repository and what follows it."""

    repo: HubRepo
    verb: str
    file: str = ""


@dataclass(frozen=True)
class ModelScope:
    """Answers for the repositories that this hub also has."""

    state: HubState
    quirks: Quirks = Quirks()

    def place(self, asked: Asked) -> Place | None:
        """Parse /api/v1/{models|datasets}/{id}[/verb]; datasets may come as numbers."""
        segments = unquote(asked.raw_path).strip("/").split("/")
        if segments[:2] != ["api", "v1"] or len(segments) < 4 or segments[2] not in PLURALS:
            return None
        repo_type, rest = PLURALS[segments[2]], segments[3:]
        repos = [repo for (kind, _), repo in self.state.repos.items() if kind == repo_type]
        for repo in repos:
            names = ([str(number(repo))], repo.id.split("/"))
            used = next((len(name) for name in names if rest[: len(name)] == name), None)
            if used is not None and self.state.visible(repo, token(asked)):
                return Place(repo, "/".join(rest[used:]), asked.query.get("FilePath", ""))
        return None

    def answer(self, asked: Asked, place: Place | None) -> Answer:
        """Answer one request."""
        if "internalAccelerationInfo" in asked.raw_path:
            return envelope({"InternalRegionId": "", "Endpoint": "", "InternalRegionQueryAddress": ""})
        if asked.raw_path == "/api/v1/login":  # any token: its session is the token itself
            return self._login(asked)
        if place is None:
            return envelope(None, 404, 10010205001, "record not found")
        commit = self._commit(place.repo, asked.query.get("Revision", ""))
        if place.verb == "":
            return envelope(self._info(place.repo))
        if place.verb == "revisions":
            return envelope({"RevisionMap": self._revisions(place.repo)})
        if place.verb in ("repo/files", "repo/tree"):
            return self._listing(asked, place, commit)
        if place.verb == "repo":
            return self._file(asked, place, commit)
        return envelope(None, 404, 10010205001, "not found")

    def _commit(self, repo: HubRepo, revision: str) -> Commit | None:
        if revision in ("", self.quirks.default_branch):
            revision = "main"
        elif revision == "main":
            return None
        return repo.resolve(revision)

    def _info(self, repo: HubRepo) -> Mapping[str, Any]:
        owner, _, name = repo.id.partition("/")
        branch = self.quirks.default_branch
        return {"Id": number(repo), "Path": owner, "Name": name, "Revision": branch, "Type": 1}

    def _login(self, asked: Asked) -> Answer:
        given = str(asked.posted.get("AccessToken", ""))
        if self.state.tokens is not None and given not in self.state.tokens:
            return envelope(None, 400, 10010103009, "AccessToken is invalid or expired")
        answer = envelope({"AccessToken": "git", "Username": "user", "Email": "user@example.org"})
        cookie = f"m_session_id={given}; Domain=modelscope.cn; Path=/; Max-Age=2592000; HttpOnly; Secure"
        return replace(answer, headers={"Set-Cookie": cookie})

    def _revisions(self, repo: HubRepo) -> Mapping[str, Any]:
        branches = [self._branch(name) for name in repo.branches]
        tags = [{"Revision": name, "CreatedAt": 0} for name in repo.tags]
        return {"Branches": branches, "Tags": tags}

    def _branch(self, name: str) -> Mapping[str, Any]:
        return {"Revision": self.quirks.default_branch if name == "main" else name, "CreatedAt": 0}

    def _listing(self, asked: Asked, place: Place, commit: Commit | None) -> Answer:
        if commit is None:
            if self.quirks.unknown_revision_null:
                return envelope({"Files": None, "LatestCommitter": None})
            return envelope(None, 404, 10010205001, "revision not found")
        recursive = asked.query.get("Recursive", "").lower() == "true"
        paths = _paths(commit, asked.query.get("Root", "").strip("/"), recursive)
        if place.verb == "repo/tree":
            size = int(asked.query.get("PageSize", 200))
            start = (int(asked.query.get("PageNumber", 1)) - 1) * size
            page = [self._entry(commit, path) for path in paths[start : start + size]]
            return envelope({"Files": page, "TotalCount": len(paths)})
        entries = [self._entry(commit, path) for path in paths[: self.quirks.listing_limit]]
        committer_id = "" if self.quirks.empty_committer_id else commit.id
        committer = {"Id": committer_id, "ShortId": commit.id[:8]}
        return envelope({"Files": entries, "LatestCommitter": committer})

    def _entry(self, commit: Commit, path: str) -> Mapping[str, Any]:
        file = commit.files.get(path)
        return {
            "Name": PurePosixPath(path).name,
            "Path": path,
            "Type": "tree" if file is None else "blob",
            "Size": 0 if file is None else file.size,
            "Sha256": file.sha256 if file is not None and self.quirks.listing_sha256 else "",
            "Revision": commit.id,
            "IsLFS": file is not None and file.lfs,
            "Mode": "040000" if file is None else "100644",
            "CommittedDate": 1704067200,
        }

    def _file(self, asked: Asked, place: Place, commit: Commit | None) -> Answer:
        self.state.check_gate(place.repo, token(asked))
        file = None if commit is None else commit.files.get(place.file)
        if file is None:
            return envelope(None, 404, 10010205001, "file not found")
        headers = {"X-Linked-ETag": file.sha256}
        if self.quirks.redirect_lfs and file.lfs:
            headers["Location"] = self.state.cdn_location(place.repo, file)
            return Answer(302, b"", "text/plain", headers)
        status = 200 if self.quirks.range_status_200 else 206
        return Answer(200, file.source, OCTETS, headers, file.sha256, True, status)


def _paths(commit: Commit, root: str, recursive: bool) -> Sequence[str]:
    inside = [path for path in commit.sorted_paths if not root or path.startswith(root + "/")]
    if recursive:
        return inside
    return [path for path in inside if str(PurePosixPath(path).parent) == (root or ".")]


def token(asked: Asked) -> str | None:
    """Who asks: a bearer token, or the session that older clients have."""
    session = SimpleCookie(asked.headers.get("Cookie", "")).get("m_session_id")
    return asked.token or (session.value if session else None)


def number(repo: HubRepo) -> int:
    """The numeric id that older dataset clients use."""
    return int(repo.commits[repo.main].id[:7], 16)


def envelope(data: Any, status: int = 200, code: int = 200, message: str = "success") -> Answer:
    """Wrap data as every ModelScope answer is."""
    body = {"Code": code, "Success": status == 200, "Message": message, "RequestId": "test"}
    return Answer(status, json.dumps({**body, "Data": data}).encode())


def error_envelope(error: HubError) -> Answer:
    """Wrap an error."""
    return envelope(None, error.status, 10010205000 + error.status, str(error))
