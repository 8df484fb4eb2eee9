"""FAULTS 1, 2, 4 and 5: whatever a parser accepts stays below its base, and reads back as itself."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import BadInput
from edgecdn.names import CommitId, ModelRef, RepoId, RepoType, Revision
from edgecdn.repopath import MAX_COMPONENT_BYTES, MAX_PATH_BYTES, RepoPath

BASE = "/base/of/all"

_nasty = st.sampled_from(
    ["..", ".", "/", "\\", ";", "\0", "%2e%2e", "%2f", "%00", "%5c", "~", "-", "--", "@", ":", " ", "\n", "\x1b", "\x9b",
     "a", "Z9", "_", "models", "datasets", "main", "refs", ".git", ".lock", "ü", "u\u0308", "\u202e", "\ud800", "／", "．．"]
)  # fmt: skip
name_part = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,20}", fullmatch=True)
_nearly_right = st.lists(st.one_of(name_part, name_part, _nasty), min_size=1, max_size=4)
hostile = st.one_of(
    st.text(max_size=40),
    st.lists(_nasty, max_size=12).map("".join),
    _nearly_right.map("".join),
    _nearly_right.map("/".join),
    _nearly_right.map("--".join),
)
repo_type = st.sampled_from(RepoType)


def _below(relative: str) -> bool:
    joined = os.path.normpath(f"{BASE}/{relative}")
    return joined != BASE and os.path.commonpath([BASE, joined]) == BASE and joined == f"{BASE}/{relative}"


def _accepted(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except BadInput:
        return False
    return True


@given(hostile)
@example("../x")
@example("a/%2e%2e/b")
@example("/etc/passwd")
@example("a//b")
@example("a" * 300)
def test_an_accepted_path_stays_below_its_base(text: str) -> None:
    try:
        path = RepoPath.parse(text)
    except BadInput:
        return
    assert _below(str(path))
    assert "\0" not in text
    assert "\\" not in text
    assert text.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)
    assert str(path) == text
    assert RepoPath.parse(str(path)) == path
    assert "/".join((*path.parents, path.name)) == text
    assert all(0 < len(part.encode()) <= MAX_COMPONENT_BYTES for part in path.parts)
    assert len(text.encode()) <= MAX_PATH_BYTES


@given(st.lists(st.text("abcXYZ019._- +=()[]üß漢", min_size=1, max_size=20), min_size=1, max_size=6))
def test_ordinary_paths_are_accepted(parts: list[str]) -> None:
    assume(not {"..", "."} & set(parts))
    assert RepoPath.parse("/".join(parts)).parts == tuple(parts)


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "/a", "a/", "a//b", ".", "..", "./a", "../a", "a/..", "a/../b", "%2e", "%2E%2e", "a/%2e%2e/b",
        "a%2fb", "a%2Fb", "%00", "a\0", "a\\b", "a;b", "a\nb", "a\x7f", "a\x9b31m", "a\ud800", "a" * 256, "ü" * 128,
        "a/" * 512 + "a", "x" * 4096,
    ],
)  # fmt: skip
def test_refused_paths(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        RepoPath.parse(text)
    assert len(caught.value.message) < 400


def test_names_that_differ_only_in_case_or_composition_stay_distinct() -> None:
    """FAULTS 4."""
    spellings = ["A", "a", "\u00fc", "u\u0308", "\u00df", "ss", "\u017f", "s", "\u212a", "K"]
    assert len({RepoPath.parse(text) for text in spellings}) == len(spellings)
    with pytest.raises(BadInput):
        RepoId(RepoType.MODEL, "org/\u212aelvin")


@given(repo_type, hostile)
def test_an_accepted_repo_stays_below_its_base(type_: RepoType, text: str) -> None:
    if not _accepted(lambda t: RepoId(type_, t), text):
        return
    repo = RepoId(type_, text)
    assert _below(repo.folder)
    assert "/" not in repo.folder
    assert _below(repo.url_path)
    assert RepoId.from_folder(repo.folder) == repo


@given(repo_type, st.lists(name_part, min_size=1, max_size=2).map("/".join))
def test_repos_read_back_as_themselves(type_: RepoType, name: str) -> None:
    assume(_accepted(lambda t: RepoId(type_, t), name))
    repo = RepoId(type_, name)
    assert RepoId.from_folder(repo.folder) == repo
    assume(name.partition("/")[0] not in {t.plural for t in RepoType})  # no hub lets anybody be called so
    assert ModelRef.parse(str(repo)).repo() == repo
    assert ModelRef.parse(name, type_).repo() == repo
    found = ModelRef.parse(f"https://huggingface.co/{repo.url_path}/tree/main")
    assert (found.repo(), str(found.revision)) == (repo, "main")


@given(hostile)
@example("models--..--x")
@example("models--a--b--c")
@example("models----a")
def test_an_accepted_folder_name_is_that_of_its_repo(text: str) -> None:
    try:
        repo = RepoId.from_folder(text)
    except BadInput:
        return
    assert repo.folder == text


@given(hostile)
@example("refs/pr/1")
@example("a/../b")
def test_an_accepted_revision_stays_below_its_base(text: str) -> None:
    if not _accepted(Revision, text):
        return
    revision = Revision(text)
    assert _below(str(revision))
    assert Revision(str(revision)) == revision
    assert not any(part.startswith(".") or not part for part in text.split("/"))


@given(hostile)
@example("qwen-7b@main")
@example("https://huggingface.co/../../etc")
@example("datasets/../x")
def test_whatever_is_typed_is_a_name_or_bad_input(text: str) -> None:
    try:
        ref = ModelRef.parse(text)
    except BadInput:
        return
    assert _below(ref.repo().folder)
    assert ref.revision is None or _below(str(ref.revision))


@pytest.mark.parametrize(
    "text",
    ["", " ", "a/b/c", "../b", "a/..", "-a/b", "a/.b", "a/b.git", "a--b/c", "a/b.", "a/b-", "a" * 97, "a/b\0", "a/b;c",
     "a\\b", "a/%2e%2e", "ä/b", "a/b@", "a/b@..", "a/b@x..y", "a/b@-x", "a/b@x/", "a/b@/x", "a/b@x.lock", "a/b@x@{1}",
     "a/b@" + "x" * 256, "x" * 4096, "datasets/", "https://huggingface.co/"],
)  # fmt: skip
def test_refused_names(text: str) -> None:
    """FAULTS 2 and 5."""
    with pytest.raises(BadInput) as caught:
        ModelRef.parse(text)
    assert len(caught.value.message) < 400


def test_an_option_and_a_name_that_contradict() -> None:
    assert ModelRef.parse("org/n", RepoType.DATASET).repo() == RepoId(RepoType.DATASET, "org/n")
    with pytest.raises(BadInput):
        ModelRef.parse("datasets/org/n", RepoType.MODEL)


@given(st.one_of(hostile, st.text("0123456789abcdefABCDEF", min_size=38, max_size=66)))
def test_an_accepted_digest_or_commit_is_lower_case_hex(text: str) -> None:
    hexadecimal = bool(text) and set(text) <= set("0123456789abcdef")
    assert _accepted(Digest.parse, text) == (hexadecimal and len(text) in (40, 64))
    assert _accepted(CommitId, text) == (hexadecimal and len(text) == 40)


@given(st.sampled_from(DigestKind), st.binary(max_size=100))
def test_digests_read_back_as_themselves(kind: DigestKind, data: bytes) -> None:
    digest = Digest.of(kind, data)
    assert Digest.parse(str(digest)) == digest
    hasher = digest.hasher(len(data))
    hasher.update(data)
    assert hasher.hexdigest() == digest.hex
    assert _below(digest.hex)


@pytest.mark.parametrize(
    "text",
    ["", "a" * 39, "a" * 41, "a" * 63, "a" * 65, "A" * 64, "g" * 64, "../" + "a" * 61, "a" * 63 + "\0", "a" * 63 + "\n",
     " " + "a" * 63, "０" * 64, "a" * 4096],
)  # fmt: skip
def test_refused_digests(text: str) -> None:
    """FAULTS 1."""
    with pytest.raises(BadInput):
        Digest.parse(text)
