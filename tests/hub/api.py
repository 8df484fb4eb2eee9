"""The hub's JSON API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlencode

from tests.hub.answers import Answer, Asked, HubError, json_answer
from tests.hub.content import HubFile
from tests.hub.repos import COMMIT_DATE, Commit, HubRepo
from tests.hub.routes import Route
from tests.hub.state import HubState

EXPANDED_PAGE_SIZE = 50  # the Hub lists fewer entries a page when details are asked for
Entry = dict[str, Any]


def answer_api(state: HubState, asked: Asked, route: Route) -> Answer:
    """Answer a request below /api."""
    if route.verb == "search":
        return _search(state, asked, route)
    if route.verb == "whoami-v2":
        return _whoami(state, asked)
    if not route.repo:
        raise HubError(404, "", "Not found")
    repo = state.repo(route.repo_type, route.repo, asked.token)
    return _REPO_VERBS[route.verb](state, asked, route, repo)


def _search(state: HubState, asked: Asked, route: Route) -> Answer:
    wanted = asked.query.get("search", "").lower()
    author = asked.query.get("author")
    found = [
        _info(repo, state.commit(repo, "main"), asked)
        for (repo_type, repo_id), repo in state.repos.items()
        if repo_type == route.repo_type and wanted in repo_id.lower()
        if author in (None, repo_id.partition("/")[0]) and state.visible(repo, asked.token)
    ]
    return json_answer(found[: int(asked.query.get("limit", 1000))])


def _whoami(state: HubState, asked: Asked) -> Answer:
    state.check_token(asked.token)
    if asked.token is None:
        raise HubError(401, "", "Invalid username or password.")
    access = {"displayName": "test", "role": "read"}
    auth = {"type": "access_token", "accessToken": access}
    return json_answer({"type": "user", "name": "tester", "orgs": [], "auth": auth})


def _model(state: HubState, asked: Asked, route: Route, repo: HubRepo) -> Answer:
    return json_answer(_info(repo, state.commit(repo, route.revision), asked, siblings=True))


def _info(repo: HubRepo, commit: Commit, asked: Asked, *, siblings: bool = False) -> Entry:
    info: Entry = {
        "_id": commit.id[:24],
        "id": repo.id,
        "author": repo.id.partition("/")[0],
        "sha": commit.id,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "createdAt": COMMIT_DATE,
        "lastModified": COMMIT_DATE,
    }
    if repo.type == "model":
        info["modelId"] = repo.id
    if siblings:
        blobs = asked.flag("blobs")
        info["siblings"] = [_sibling(file, blobs) for file in commit.files.values()]
    return info


def _sibling(file: HubFile, blobs: bool) -> Entry:
    if not blobs:
        return {"rfilename": file.path}
    entry: Entry = {"rfilename": file.path, "size": file.size, "blobId": file.oid}
    if file.lfs:
        size = {"size": file.size, "pointerSize": file.pointer_size}
        entry["lfs"] = {"sha256": file.sha256, **size}
    return entry


def _file_entry(repo: HubRepo, path: str, file: HubFile) -> Entry:
    entry: Entry = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.lfs:
        size = {"size": file.size, "pointerSize": file.pointer_size}
        entry["lfs"] = {"oid": file.sha256, **size}
        if repo.xet:
            entry["xetHash"] = file.xet_hash
    return entry


def _entry(repo: HubRepo, commit: Commit, path: str, expand: bool) -> Entry:
    file = commit.files.get(path)
    entry = (
        {"type": "directory", "oid": commit.folders[path], "size": 0, "path": path}
        if file is None
        else _file_entry(repo, path, file)
    )
    if expand:
        last = {"id": commit.id, "title": commit.title, "date": COMMIT_DATE}
        entry["lastCommit"] = last
    return entry


def _below(commit: Commit, folder: str, recursive: bool) -> Iterator[str]:
    for path in commit.sorted_paths:
        parent = str(PurePosixPath(path).parent) if not recursive else ""
        inside = path.startswith(folder + "/") if folder else True
        if inside and (recursive or parent == (folder or ".")):
            yield path


def _tree(state: HubState, asked: Asked, route: Route, repo: HubRepo) -> Answer:
    commit = state.commit(repo, route.revision)
    recursive, expand = asked.flag("recursive"), asked.flag("expand")
    if route.path and route.path not in commit.folders:
        raise HubError(404, "EntryNotFound", f"{route.path} does not exist")
    plain = recursive and not route.path
    paths = commit.sorted_paths if plain else tuple(_below(commit, route.path, recursive))
    size = min(state.page_size, EXPANDED_PAGE_SIZE) if expand else state.page_size
    start = int(asked.query.get("cursor", 0))
    page = [_entry(repo, commit, path, expand) for path in paths[start : start + size]]
    more = start + size < len(paths)
    return json_answer(page, headers=_next_page(asked, start + size) if more else None)


def _next_page(asked: Asked, cursor: int) -> Mapping[str, str]:
    query = urlencode({**asked.query, "cursor": cursor})
    return {"Link": f'<{asked.base_url}{asked.raw_path}?{query}>; rel="next"'}


def _paths_info(state: HubState, asked: Asked, route: Route, repo: HubRepo) -> Answer:
    commit = state.commit(repo, route.revision)
    known = (path for path in asked.form_paths if path in commit.files or path in commit.folders)
    return json_answer([_entry(repo, commit, path, asked.flag("expand")) for path in known])


def _refs(_state: HubState, asked: Asked, _route: Route, repo: HubRepo) -> Answer:
    refs = {
        "branches": [_ref(name, f"refs/heads/{name}", at) for name, at in repo.branches.items()],
        "tags": [_ref(name, f"refs/tags/{name}", at) for name, at in repo.tags.items()],
        "converts": [],
    }
    if asked.flag("include_prs"):
        pulls = repo.pull_requests.items()
        refs["pullRequests"] = [_ref(name.rpartition("/")[2], name, at) for name, at in pulls]
    return json_answer(refs)


def _ref(name: str, ref: str, target: str) -> Entry:
    return {"name": name, "ref": ref, "targetCommit": target}


def _commits(state: HubState, _asked: Asked, route: Route, repo: HubRepo) -> Answer:
    common = {"message": "", "authors": [{"user": "tester"}], "date": COMMIT_DATE}
    history = repo.history(state.commit(repo, route.revision))
    return json_answer([{"id": one.id, "title": one.title, **common} for one in history])


def _discussions(_state: HubState, _asked: Asked, _route: Route, _repo: HubRepo) -> Answer:
    return json_answer({"discussions": [], "count": 0, "start": 0})


def _auth_check(state: HubState, asked: Asked, _route: Route, repo: HubRepo) -> Answer:
    state.check_gate(repo, asked.token)
    return json_answer({})


def _xet_token(state: HubState, asked: Asked, _route: Route, repo: HubRepo) -> Answer:
    state.check_gate(repo, asked.token)
    if not repo.xet:
        raise HubError(404, "", "Not found")
    expires = int(state.signer.clock() + state.signer.lifetime_s)
    grant = {"casUrl": f"{state.cdn_url}/xet-cas", "accessToken": "xet-token", "exp": expires}
    headers = {
        "X-Xet-Cas-Url": str(grant["casUrl"]),
        "X-Xet-Access-Token": str(grant["accessToken"]),
        "X-Xet-Token-Expiration": str(expires),
    }
    return json_answer(grant, headers=headers)


_Handler = Callable[[HubState, Asked, Route, HubRepo], Answer]
_REPO_VERBS: Mapping[str, _Handler] = {
    "info": _model,
    "revision": _model,
    "tree": _tree,
    "paths-info": _paths_info,
    "refs": _refs,
    "commits": _commits,
    "discussions": _discussions,
    "auth-check": _auth_check,
    "xet-read-token": _xet_token,
}
