"""`edgecdn pin` and `edgecdn unpin`."""

from __future__ import annotations

import click

from edgecdn.cache.scan import cached_repos, scan_repo
from edgecdn.cli.output import json_option, print_json, print_table, tell
from edgecdn.local_names import find_repo, matching_commits, near_names
from edgecdn.names import ModelRef, RepoId, Revision
from edgecdn.settings import Settings, load_settings
from edgecdn.upkeep.pins import Pin, read_pins, with_pin, without_pin, write_pins

__all__ = ["pin", "unpin"]


@click.command()
@click.argument("model", required=False, metavar="[MODEL[@REV]]")
@json_option
def pin(model: str | None, as_json: bool) -> None:
    """Keep a repo, or a commit of it, whatever clean-ups come. Without MODEL: list what is pinned."""
    settings = load_settings()
    if model is not None:
        wanted = _pin(ModelRef.parse(model), settings)
        write_pins(settings.home, with_pin(read_pins(settings.home), wanted))
        here = cached_repos(settings.cache_dir)
        near = "" if wanted.repo in here else " (not in the cache yet)." + near_names(wanted.repo.name, here)
        tell(f"{wanted} is pinned{near or '.'}")
        return
    pins = read_pins(settings.home)
    here = cached_repos(settings.cache_dir)
    if as_json:
        print_json([{**_row(p), "cached": p.repo in here} for p in pins])
    elif not pins:
        tell("Nothing is pinned.")
    else:
        header = ("REPO", "TYPE", "REVISION", "")
        absent = {True: "", False: "not in the cache"}
        print_table(
            header, [(p.repo.name, p.repo.type.value, p.revision or "all", absent[p.repo in here]) for p in pins]
        )


@click.command()
@click.argument("model", metavar="MODEL[@REV]")
def unpin(model: str) -> None:
    """Let a pinned repo go again; without @REV all pins of it."""
    settings = load_settings()
    ref = ModelRef.parse(model)
    repo = find_repo(ref, settings)
    pins = read_pins(settings.home)
    typed = Pin(repo, str(ref.revision or ""))
    left = without_pin(pins, typed)
    if left == pins and ref.revision is not None:
        left = without_pin(pins, _pin(ref, settings))
    if left == pins:
        tell(f"{typed} was not pinned.")
        return
    write_pins(settings.home, left)
    tell(f"{typed} is no longer pinned.")


def _row(pinned: Pin) -> dict[str, object]:
    return {"repo": pinned.repo.name, "type": pinned.repo.type.value, "revision": pinned.revision or None}


def _pin(ref: ModelRef, settings: Settings) -> Pin:
    """The pin for what was typed: a branch or tag as it is, the beginning of a commit in full."""
    repo = find_repo(ref, settings)
    if ref.revision is None:
        return Pin(repo)
    if repo not in cached_repos(settings.cache_dir):
        return Pin(repo, str(ref.revision))
    return Pin(repo, _revision(settings, repo, ref.revision))


def _revision(settings: Settings, repo: RepoId, typed: Revision) -> str:
    found = scan_repo(settings.cache_dir, repo)
    if any(typed.text in commit.refs for commit in found.commits):
        return typed.text
    return matching_commits(found, typed)[0].hex
