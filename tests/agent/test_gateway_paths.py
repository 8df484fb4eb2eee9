"""What hub clients ask for, parsed; whatever else somebody types leads nowhere."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecdn.errors import BadInput
from edgecdn.names import RepoId, RepoType, Revision
from edgecdn.repopath import RepoPath
from edgecdn_agent.gateway.paths import (
    MOST_TARGET_BYTES,
    Info,
    OfRepo,
    Other,
    PathsInfo,
    Quiet,
    Refs,
    Resolve,
    Tree,
    commit_of,
    info_target,
    parse_target,
    resolve_target,
    same_question,
)  # fmt: skip

SHA = "0123456789abcdef0123456789abcdef01234567"
MODEL = RepoId(RepoType.MODEL, "org/name")
DATA = RepoId(RepoType.DATASET, "org/name")
OLD = RepoId(RepoType.MODEL, "gpt2")
MAIN = Revision("main")


def path(text: str) -> RepoPath:
    return RepoPath.parse(text)


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("/org/name/resolve/main/a.txt", Resolve(MODEL, MAIN, path("a.txt"))),
        ("/org/name/resolve/main/sub/a%20b.txt", Resolve(MODEL, MAIN, path("sub/a b.txt"))),
        ("/org/name/resolve/main/sub%2Fa.txt", Resolve(MODEL, MAIN, path("sub/a.txt"))),
        ("/org/name/resolve/refs%2Fpr%2F1/a.txt?download=true", Resolve(MODEL, Revision("refs/pr/1"), path("a.txt"))),
        ("/gpt2/resolve/main/a.txt", Resolve(OLD, MAIN, path("a.txt"))),
        ("/datasets/org/name/resolve/main/a", Resolve(DATA, MAIN, path("a"))),
        ("/spaces/org/name/resolve/main/a", Resolve(RepoId(RepoType.SPACE, "org/name"), MAIN, path("a"))),
        ("/datasets/squad/resolve/main/a", Resolve(RepoId(RepoType.DATASET, "squad"), MAIN, path("a"))),
        ("/kernels/org/name/resolve/main/a", Other(lists=False)),
        ("/api/models/org/name", Info(MODEL, None, False, True)),
        ("/api/models/gpt2", Info(OLD, None, False, True)),
        ("/api/models/gpt2/revision/v1", Info(OLD, Revision("v1"), False, True)),
        ("/api/models/org/name/revision/refs%2Fpr%2F1?blobs=True", Info(MODEL, Revision("refs/pr/1"), True, True)),
        ("/api/models/org/name?expand=gated&expand=sha", Info(MODEL, None, False, False)),
        ("/api/datasets/org/name/tree/main?recursive=True&expand=False", Tree(DATA, MAIN, None, True, True)),
        ("/api/models/org/name/tree/main/sub%2Fdir?recursive=false", Tree(MODEL, MAIN, path("sub/dir"), False, True)),
        ("/api/models/org/name/tree/main?expand=true", Tree(MODEL, MAIN, None, False, False)),
        ("/api/models/org/name/tree/main?recursive=true&cursor=5", Tree(MODEL, MAIN, None, True, False)),
        ("/api/models/org/name/paths-info/main", PathsInfo(MODEL, MAIN)),
        ("/api/models/org/name/refs?include_prs=1", Refs(MODEL, True)),
        ("/api/models/org/name/commits/main", OfRepo(MODEL, "commits", MAIN, False)),
        ("/api/models/org/name/discussions?p=0", OfRepo(MODEL, "discussions", None, False)),
        ("/api/models/org/name/auth-check", OfRepo(MODEL, "auth-check", None, True)),
        ("/api/models/org/name/xet-read-token/main", OfRepo(MODEL, "xet-read-token", MAIN, True)),
        ("/api/models?search=x&limit=5", Other(lists=True)),
        ("/api/whoami-v2", Other(lists=False)),
        ("/api/kernels/org/name", Other(lists=False)),
        ("/api/agent-harnesses", Quiet()),
        ("/api/telemetry/transformers/x", Quiet()),
        ("/org/name/raw/main/a", Other(lists=False)),
        ("/org/name/resolve/what%20else/a", Other(lists=False)),  # no revision of ours; a hub may know it
        ("/", Other(lists=False)),
    ],
)  # fmt: skip
def test_requests_of_clients(target: str, asked: Any) -> None:
    assert parse_target(target)[2] == asked


@pytest.mark.parametrize(
    "target",
    [
        "/org/name/resolve/main/../../etc/passwd", "/org/name/resolve/main/%2e%2e/a", "/org/name/resolve/main/%2E./a",
        "/org/name/resolve/main/%252e%252e/a", "/org/name/resolve/main/a%00b", "/org/name/resolve/main/a%5Cb",
        "/org/name/resolve/main/a;b", "/org/name/resolve/main/a%3Bb", "/org/name/resolve/..%2Fx/a", "/../a", "//evil.com/a",
        "/org//name", "http://evil.com/api/models", "evil.com:443", "*", "", "/a%zz", "/a%", "/a b", "/a\x01", "/é",
        "/%ff/resolve/main/a", "/a#b", "/api/models/org/name?x=\x7f", "/a/./b", "/a/%2fb", "/a/" + "b" * MOST_TARGET_BYTES,
        "/a?" + "b" * (MOST_TARGET_BYTES + 1), "/org/name/resolve/main/" + "a" * 300, "/org/name/resolve/main/%0d%0aX",
    ],
)  # fmt: skip
def test_what_is_not_safe_is_refused(target: str) -> None:
    with pytest.raises(BadInput):
        parse_target(target)


def test_one_question_has_one_spelling() -> None:
    assert same_question("/a", "recursive=True&expand=False") == same_question("/a", "recursive=true")
    assert same_question("/a", "b=1&a=2") == same_question("/a", "a=2&b=1")
    assert same_question("/a", "search=false") != same_question("/a", "")
    assert same_question("/a", "search=True") != same_question("/a", "search=true")
    assert same_question("/a", "") == "/a"


def test_a_commit_is_one_wherever_it_stands() -> None:
    for target in (f"/api/models/org/name/tree/{SHA}", f"/org/name/resolve/{SHA}/a", f"/api/models/gpt2/commits/{SHA}"):
        found = commit_of(parse_target(target)[2])
        assert found is not None
        assert found.hex == SHA
    assert commit_of(parse_target("/api/models/org/name/tree/main")[2]) is None


_segment = st.text(st.characters(codec="ascii", min_codepoint=0x20), max_size=12) | st.sampled_from(
    [
        "..",
        ".",
        "%2e%2e",
        "%2F",
        "%252e",
        "\\",
        "%5c",
        "%00",
        "resolve",
        "api",
        "models",
        "datasets",
        "main",
        "tree",
        "@",
        "evil.com",
    ]
)


@given(st.lists(_segment, max_size=8), st.text(max_size=20))
def test_nothing_that_is_parsed_leads_out(segments: list[str], query: str) -> None:
    target = "/" + "/".join(segments) + ("?" + query if query else "")
    try:
        raw, _, asked = parse_target(target)
    except BadInput:
        return
    assert raw.startswith("/")
    assert not raw.startswith("//")
    for text in (raw, unquote(raw), unquote(unquote(raw))):
        assert not {"..", "."} & set(text.split("/"))
        assert not set(text) & set("\\\0\r\n;")
    assert not isinstance(asked, Resolve) or (".." not in asked.path.parts)


_name = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_]{0,10}", fullmatch=True)


@given(
    st.sampled_from(list(RepoType)), _name, st.none() | _name, st.sampled_from(["main", "refs/pr/3", "v1.0", SHA, "a+b"]),
    st.lists(st.text(st.characters(blacklist_characters="/\\;%.", min_codepoint=32, blacklist_categories=("Cc", "Cs")), min_size=1, max_size=9), min_size=1, max_size=3),
)  # fmt: skip
def test_what_clients_write_is_read(
    kind: RepoType, name: str, owner: str | None, revision: str, parts: list[str]
) -> None:
    text = f"{owner}/{name}" if owner else name
    try:
        repo = RepoId(kind, text)
        file = RepoPath.parse("/".join(parts))
    except BadInput:
        return
    if {owner, name} & {
        "api",
        "resolve",
        "datasets",
        "spaces",
        "models",
        "kernels",
        "revision",
        "tree",
        "commits",
        "refs",
        "compare",
        "commit",
        "notebook",
        "treesize",
        "discussions",
    }:
        return
    asked = parse_target(resolve_target(repo, Revision(revision), file))[2]
    assert asked == Resolve(repo, Revision(revision), file)
    assert parse_target(info_target(repo, Revision(revision)))[2] == Info(repo, Revision(revision), False, True)
    quoted = quote(str(file), safe="")
    tree = parse_target(f"/api/{kind.plural}/{repo.name}/tree/{quote(revision, safe='')}/{quoted}")[2]
    assert tree == Tree(repo, Revision(revision), file, False, True)
