"""From what the user typed to a repo, and to commits of it that are here: without asking anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgecdn.cache.scan import RepoOnDisk, cached_repos
from edgecdn.errors import AmbiguousName, FileMissing, RevisionMissing
from edgecdn.names import CommitId, ModelRef, RepoId, Revision
from edgecdn.settings import Settings
from edgecdn.shortnames import lookup, nearest

__all__ = ["find_cached", "find_repo", "matching_commits", "name_repo", "near_names"]

_SHORTEST_PREFIX = 7
"""Fewest characters that stand for a commit, as in git."""


def find_repo(ref: ModelRef, settings: Settings) -> RepoId:
    """The repo a name stands for, in the cache or not; raises FileMissing, AmbiguousName."""
    return name_repo(ref, settings.aliases, cached_repos(settings.cache_dir))


def find_cached(ref: ModelRef, settings: Settings) -> RepoId:
    """The repo of the cache that a name stands for; raises FileMissing, AmbiguousName."""
    here = cached_repos(settings.cache_dir)
    repo = name_repo(ref, settings.aliases, here)
    if repo not in here:
        raise _missing(f"{repo} is not in the cache {settings.cache_dir}.", repo.name, here)
    return repo


def name_repo(ref: ModelRef, own: Mapping[str, str], here: Sequence[RepoId]) -> RepoId:
    """1. Typed in full (a data set too, where only that is here). 2. A short name. 3. The name of one that is here."""
    if ref.is_full:
        literal = ref.repo()
        others = [repo for repo in here if repo.name == literal.name and ref.type in (None, repo.type)]
        return literal if literal in here or len(others) != 1 else others[0]
    key = ref.name.lower()
    found = lookup(key, ref.type, own)
    short = RepoId(*found) if found is not None else None
    same = [r for r in here if r.name.lower().rpartition("/")[2] == key and ref.type in (None, r.type)]
    if short is not None and (key in own or short in here or not same):
        return short
    if len(same) > 1:
        raise AmbiguousName(name=ref.name, candidates=", ".join(map(str, same)))
    if not same:
        raise _missing(f"'{ref.name}' is no known short name and not in the cache.", ref.name, here)
    return same[0]


def matching_commits(found: RepoOnDisk, revision: Revision | None) -> list[CommitId]:
    """The commits of a repo a branch, tag, commit or beginning of one names (None: all); raises RevisionMissing."""
    commits = [c.commit for c in found.commits]
    if revision is None:
        return commits
    text = revision.text
    matches = [c.commit for c in found.commits if text in c.refs] or [
        c for c in commits if len(text) >= _SHORTEST_PREFIX and c.hex.startswith(text)
    ]
    if not matches:
        known = ", ".join([name for c in found.commits for name in c.refs] + [c.hex[:12] for c in commits])
        told = f" Here are: {known}." if known else ""
        raise RevisionMissing(
            name=found.repo, revision=text, nearest=told, hint="`edgecdn ls MODEL` lists what is here."
        )
    if len(matches) > 1:
        raise AmbiguousName(
            name=text, candidates=", ".join(c.hex[:12] for c in matches), hint="Type more characters of the commit."
        )
    return matches


def _missing(detail: str, name: str, here: Sequence[RepoId]) -> FileMissing:
    return FileMissing(detail + near_names(name, here))


def near_names(name: str, here: Sequence[RepoId]) -> str:
    """` Did you mean A, B?` for repos of the cache whose names look alike, else nothing."""
    near = nearest(name, [repo.name for repo in here])
    return f" Did you mean {', '.join(near)}?" if near else ""
