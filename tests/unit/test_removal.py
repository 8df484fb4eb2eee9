"""What a removal plans to take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from edgecdn.cache.removal import Link, plan_removal
from edgecdn.cache.scan import BlobOnDisk
from edgecdn.digest import Digest, DigestKind
from tests.unit.made import COMMIT

MANY = 20_000


def _made(number: int) -> tuple[Link, BlobOnDisk]:
    digest = Digest(DigestKind.SHA256, f"{number:064x}")
    link = Link(COMMIT.hex, PurePosixPath(f"f{number}"), digest, own=True)
    return link, BlobOnDisk(digest, 1, Path(digest.hex))


def test_a_large_repo_is_planned_in_one_pass() -> None:
    """Quadratic, it would take longer than a test may."""
    made = [_made(number) for number in range(MANY)]
    links, blobs = [link for link, _ in made], [blob for _, blob in made]
    brought = frozenset(blob.digest for blob in blobs[: MANY // 2])
    for listed in (None, frozenset(blob.digest for blob in blobs)):
        plan = plan_removal([COMMIT], links, blobs, brought, listed)
        assert list(plan.links) == links[: MANY // 2]
        assert list(plan.blobs) == blobs[: MANY // 2]
        assert list(plan.kept) == blobs[MANY // 2 :]
        assert plan.kept_files == MANY // 2
        assert plan.emptied == ()


def test_a_commit_of_which_nothing_remains_is_emptied() -> None:
    link, blob = _made(1)
    assert plan_removal([COMMIT], [link], [blob], {blob.digest}).emptied == (COMMIT,)
    assert plan_removal([COMMIT], [replace(link, own=False)], [blob], {blob.digest}).emptied == ()
