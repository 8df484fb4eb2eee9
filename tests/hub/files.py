"""File answers: resolve on the hub listener, signed addresses on the CDN listener."""

from __future__ import annotations

from urllib.parse import unquote

from tests.hub.answers import Answer, Asked, HubError
from tests.hub.content import HubFile
from tests.hub.repos import HubRepo
from tests.hub.routes import Route
from tests.hub.state import HubState

OCTETS = "application/octet-stream"
ALWAYS_SHOWN = frozenset({"README.md", ".gitattributes"})
"""Of a gated repo the Hub shows these to everybody (huggingface/transformers#26257)."""


def answer_resolve(state: HubState, asked: Asked, route: Route) -> Answer:
    """Answer /{id}/resolve/{revision}/{path}."""
    repo = state.repo(route.repo_type, route.repo, asked.token)
    if route.path not in ALWAYS_SHOWN:
        state.check_gate(repo, asked.token)
    commit = state.commit(repo, route.revision)
    file = commit.files.get(route.path)
    if file is None:
        raise HubError(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit.id)
    headers = {"X-Repo-Commit": commit.id}
    if not file.lfs:
        return Answer(200, file.source, OCTETS, headers, file.etag, ranged=True)
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    if repo.xet:
        headers |= _xet_headers(asked, route, file, commit.id)
    if not state.cdn:
        return Answer(200, file.source, OCTETS, headers, file.etag, ranged=True)
    headers["Location"] = state.cdn_location(repo, file)
    return Answer(302, b"", "text/plain", headers, file.etag)


def _xet_headers(asked: Asked, route: Route, file: HubFile, commit_id: str) -> dict[str, str]:
    base = f"{asked.base_url}/api/{route.repo_type}s/{route.repo}"
    auth = f'<{base}/xet-read-token/{commit_id}>; rel="xet-auth"'
    return {"X-Xet-Hash": file.xet_hash, "Link": auth}


def answer_cdn(state: HubState, asked: Asked, file: HubFile | None) -> Answer:
    """Answer a signed address."""
    if not state.signer.accepts(asked.raw_path, asked.query):
        raise HubError(403, "", "Access denied: the signature is wrong or has expired")
    if file is None:
        raise HubError(404, "", "NoSuchKey")
    return Answer(200, file.source, OCTETS, {}, file.etag, ranged=True)


def find_cdn_file(state: HubState, raw_path: str) -> tuple[HubRepo, HubFile] | None:
    """Find what a CDN path names; any commit will do."""
    for (repo_type, repo_id), repo in state.repos.items():
        prefix = f"/{repo_type}s/{repo_id}/"
        if not raw_path.startswith(prefix):
            continue
        sha256, _, path = raw_path[len(prefix) :].partition("/")
        for commit in repo.commits.values():
            file = commit.files.get(unquote(path))
            if file is not None and file.sha256 == sha256:
                return repo, file
    return None


def redirect_renamed(state: HubState, asked: Asked, route: Route, query: str) -> Answer | None:
    """Send requests for an old name to the new one with a relative 307."""
    new = state.aliases.get(route.repo)
    if not route.repo or new is None:
        return None
    location = asked.raw_path.replace(route.repo, new, 1) + (f"?{query}" if query else "")
    return Answer(307, b"", "text/plain", {"Location": location})
