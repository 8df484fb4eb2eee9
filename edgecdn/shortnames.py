"""Short names: the shipped table, the user's own, and what comes near. Pure but for reading the table."""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources

from edgecdn.names import RepoType

__all__ = ["lookup", "nearest", "shipped_names"]

_MOST_SUGGESTIONS = 5


@functools.cache
def shipped_names() -> Mapping[RepoType, Mapping[str, str]]:
    """The table in `aliases.toml`: short name to repo name, by type."""
    table = tomllib.loads(resources.files("edgecdn").joinpath("aliases.toml").read_text(encoding="utf-8"))
    return {RepoType.MODEL: table["models"], RepoType.DATASET: table["datasets"]}


def lookup(name: str, repo_type: RepoType | None, own: Mapping[str, str]) -> tuple[RepoType, str] | None:
    """The repo a short name stands for; the user's own names win, models come before data sets."""
    key = name.lower()
    if key in own:
        target = own[key]
        found = RepoType.DATASET if target.startswith("datasets/") else RepoType.MODEL
        return found, target.removeprefix("datasets/")
    for candidate in (RepoType.MODEL, RepoType.DATASET):
        table = shipped_names()[candidate]
        if repo_type in (None, candidate):
            found_name = table.get(key) or table.get(key.replace("_", "-")) or _loosely(key, table)
            if found_name:
                return candidate, found_name
    return None


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to five of `known` that look like `name`, the best first."""
    by_key = {candidate.lower(): candidate for candidate in known}
    tails = {key.rpartition("/")[2]: candidate for key, candidate in by_key.items()}
    key = name.lower()
    close = difflib.get_close_matches(key, by_key, n=_MOST_SUGGESTIONS, cutoff=0.6)
    close_tails = difflib.get_close_matches(key.rpartition("/")[2], tails, n=_MOST_SUGGESTIONS, cutoff=0.6)
    return list(dict.fromkeys([*(by_key[c] for c in close), *(tails[c] for c in close_tails)]))[:_MOST_SUGGESTIONS]


def _loosely(key: str, table: Mapping[str, str]) -> str | None:
    """A name that differs only in its hyphens (`llama-3.1-8b` for `llama3.1-8b`), if there is just one."""
    bare = key.replace("-", "")
    found = {target for name, target in table.items() if name.replace("-", "") == bare}
    return found.pop() if len(found) == 1 else None
