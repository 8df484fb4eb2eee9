"""Manifests, trees, journals and spans, on whatever can be thrown at them."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecdn import manifest as manifest_module
from edgecdn.cache.journal import Journal, new_header, read_journal
from edgecdn.cache.partial import PartialFile, journal_name
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.trees import decode_tree, encode_tree
from edgecdn.errors import BadInput
from edgecdn.manifest import MAX_FILE_BYTES, FileEntry, Manifest
from edgecdn.spans import Span, give_back, invert
from tests.unit.made import COMMIT, MIB, REPO, git_file, lfs_file, manifest_of

few_names = st.lists(st.sampled_from(["a", "b", "A", "ü"]), min_size=1, max_size=3).map("/".join)
entries = st.builds(
    lambda path, data, large: (lfs_file if large else git_file)(path, data), few_names, st.binary(max_size=8), st.booleans()
)  # fmt: skip
DIGEST = lfs_file("m", b"m").digest
SIZE = 5 * MIB


def _conflict(files: list[FileEntry]) -> bool:
    paths = [entry.path.parts for entry in files]
    twice = len(set(paths)) < len(paths)
    return twice or any(a != b and b[: len(a)] == a for a, b in itertools.permutations(paths, 2))


@given(st.lists(entries, max_size=6))
def test_a_manifest_is_accepted_unless_paths_clash(files: list[FileEntry]) -> None:
    try:
        made = Manifest.of(REPO, COMMIT, files)
    except BadInput:
        assert _conflict(files)
        return
    assert not _conflict(files)
    assert list(made.files) == sorted(files, key=lambda e: e.path)
    assert len(made.by_path) == len(files)
    assert made.size == sum(entry.size for entry in files)
    assert Manifest.of(REPO, COMMIT, reversed(made.files)) == made


def test_too_many_files_are_refused_without_taking_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 5: an endless listing."""
    monkeypatch.setattr(manifest_module, "MAX_FILES", 50)
    taken = itertools.count()
    endless = (git_file(f"f{next(taken)}", b"") for _ in itertools.repeat(None))
    with pytest.raises(BadInput):
        Manifest.of(REPO, COMMIT, endless)
    assert next(taken) == 51


@pytest.mark.parametrize("size", [-1, MAX_FILE_BYTES + 1, 1 << 80])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(BadInput):
        replace(git_file("a", b""), size=size)


@given(st.lists(entries, max_size=6))
def test_trees_read_back_as_themselves(files: list[FileEntry]) -> None:
    if not _conflict(files):
        made = manifest_of(*files)
        assert decode_tree(encode_tree(made), REPO, COMMIT) == made


@given(st.binary(max_size=60))
def test_a_tree_of_garbage_is_bad_input_and_nothing_else(data: bytes) -> None:
    with pytest.raises(BadInput):
        decode_tree(data, REPO, COMMIT)


def _points(spans: list[Span]) -> set[int]:
    return {point for span in spans for point in range(span.start, span.stop)}


def _is_tidy(spans: list[Span]) -> bool:
    return all(len(s) > 0 for s in spans) and all(a.stop < b.start for a, b in itertools.pairwise(spans))


span = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda t: Span(min(t), max(t)))


@given(st.lists(span, max_size=8), span)
def test_give_back_adds_just_that_and_stays_tidy(spans: list[Span], back: Span) -> None:
    tidy: list[Span] = []
    for one in spans:
        give_back(tidy, one)
    assert _is_tidy(tidy)
    assert _points(tidy) == _points(spans)
    before = _points(tidy)
    give_back(tidy, back)
    assert _is_tidy(tidy)
    assert _points(tidy) == before | _points([back])


@given(st.lists(span, max_size=8), st.integers(0, 40))
def test_invert_is_the_rest_and_its_own_inverse(spans: list[Span], size: int) -> None:
    have: list[Span] = []
    for one in spans:
        give_back(have, Span(min(one.start, size), min(one.stop, size)))
    missing = invert(have, size)
    assert _is_tidy(missing)
    assert _points(missing) == set(range(size)) - _points(have)
    assert invert(missing, size) == have


lines = st.lists(
    st.one_of(
        st.integers(0, 12).map(lambda n: b"u %d.\n" % n),
        st.just(b"b\n"),
        st.binary(max_size=12),
        st.sampled_from(
            [b"r \n", b"r other\n", b"u -1.\n", b"u 99999999999999999999999.\n", b"\n", b"u 1 2.\n", b"u 7\n"]
        ),
    ),
    max_size=12,
)


def _spelt(lines: bytes) -> set[int]:
    """The units that whole lines name."""
    found = (re.fullmatch(rb"u (\d{1,19})\.", line) for line in lines.split(b"\n")[:-1])
    return {int(match[1]) for match in found if match}


@settings(max_examples=80, deadline=None)
@given(lines, st.integers(0, 400), st.booleans())
def test_a_journal_of_garbage_never_claims_what_no_line_said(said: list[bytes], cut: int, headed: bool) -> None:
    with TemporaryDirectory() as base, SafeDir.at(Path(base)) as folder:
        journal = Journal(folder, "j")
        journal.create(new_header(DIGEST, SIZE, f"{DIGEST}.0123abcd.incomplete", 1))
        journal.close()
        path = Path(base, "j")
        head = path.read_bytes() if headed else b""
        path.write_bytes((head + b"".join(said))[: len(head) + cut])
        body = path.read_bytes()[len(head) :]
        found = read_journal(folder, "j")
        if not headed:
            assert found is None
            return
        assert found is not None
        assert found[1] <= _spelt(body)


@settings(max_examples=40, deadline=None)
@given(lines, st.permutations(range(12)), st.integers(0, 12))
def test_a_partial_file_with_a_damaged_journal_opens_and_claims_no_unwritten_unit(
    garbage: list[bytes], order: list[int], written: int
) -> None:
    """Garbage that happens to spell a unit is a promise; no other is believed."""
    with TemporaryDirectory() as base, SafeDir.at(Path(base)) as folder:
        part = PartialFile(folder.sub(), folder, DIGEST, SIZE)
        for index in order[:written]:
            part.write(index * part.unit, [b"\1" * part.unit])
        part.close()
        path = Path(base, journal_name(DIGEST))
        tail = b"".join(garbage)
        path.write_bytes(path.read_bytes() + tail)
        again = PartialFile(folder.sub(), folder, DIGEST, SIZE)
        claimed = {s.start // again.unit for s in again.have}
        assert claimed <= set(order[:written]) | _spelt(tail)
        if not any(line.startswith(b"r") for line in tail.split(b"\n")):
            assert set(order[:written]) <= claimed
        again.close(discard=True)
