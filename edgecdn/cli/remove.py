"""`edgecdn rm` and `edgecdn gc`."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

import click

from edgecdn.cache.catalog import Catalog
from edgecdn.cli.output import human_bytes, json_option, print_json, tell
from edgecdn.errors import BadInput
from edgecdn.local_names import find_cached
from edgecdn.names import ModelRef
from edgecdn.settings import load_settings
from edgecdn.settings_values import duration_s
from edgecdn.upkeep.housekeeping import (
    Cleaned,
    RemovedRepo,
    Skipped,
    clean_quarantine,
    clean_repos,
    clean_strays,
    remove_repo,
)

__all__ = ["gc", "rm"]

_WHY = {True: "the whole file is here", False: "abandoned"}
"""A partial file goes."""


@click.command()
@click.argument("model", metavar="MODEL[@REV]")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def rm(model: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove what edgecdn brought of a repo, or of one commit of it.

    Files that a user or another tool downloaded stay, and so does what another commit still needs.
    """
    settings = load_settings()
    ref = ModelRef.parse(model)
    repo = find_cached(ref, settings)
    with closing(Catalog(settings.home)) as catalog:
        done = remove_repo(settings, catalog, repo, ref.revision, dry_run=True)
        if not dry_run:
            if not yes and (done.plan.links or done.size) and not _agreed(f"Remove {_what(done)}?"):
                tell("Nothing was removed.")
                return
            done = remove_repo(settings, catalog, repo, ref.revision, dry_run=False)
    if as_json:
        print_json(_removed_row(done, dry_run=dry_run))
    else:
        click.echo(f"{'Would remove' if dry_run else 'Removed'} {_what(done)}.")
    if done.plan.kept:
        kept = f"{_count(len(done.plan.kept), 'file')} ({human_bytes(sum(b.size for b in done.plan.kept))})"
        tell(f"Kept: {kept} that another tool or a user downloaded. `hf cache rm` removes those too.")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why.")
@click.option("--older-than", default="7d", show_default=True, metavar="AGE", help="Leave alone what is younger.")
@click.option("--quarantine", is_flag=True, help="Also what was set aside because it was damaged or in the way.")
@json_option
def gc(dry_run: bool, older_than: str, quarantine: bool, as_json: bool) -> None:
    """Remove leftovers of edgecdn: abandoned partial files, journals without one, blobs nobody links.

    Never what other clients left, nor anything of a fetch that runs, nor blobs of pinned repos.
    """
    settings = load_settings()
    age_s = _age_s(older_than)
    rows: list[dict[str, Any]] = []
    with closing(Catalog(settings.home)) as catalog:
        for outcome in clean_repos(settings, catalog, age_s, dry_run=dry_run):
            if isinstance(outcome, Skipped):
                tell(f"{outcome.repo} is left alone: {outcome.reason}.")
            else:
                rows += _leftover_rows(outcome)
    strays = clean_strays(settings, age_s, dry_run=dry_run)
    rows += [
        {"repo": None, "what": "journal", "name": path.name, "bytes": 0, "why": "its repo is gone"} for path in strays
    ]
    rows += [
        {"repo": None, "what": "quarantine", "name": name, "bytes": size, "why": "was set aside"}
        for name, size in (clean_quarantine(settings, dry_run=dry_run) if quarantine else ())
    ]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            click.echo(f"{row['what']}  {row['repo'] or '-'}  {row['name']}  {human_bytes(row['bytes'])}  {row['why']}")
    total = human_bytes(sum(row["bytes"] for row in rows))
    tell(f"{'Would free' if dry_run else 'Freed'} {total} in {_count(len(rows), 'leftover')}.")


def _age_s(text: str) -> float:
    try:
        return duration_s(text)
    except BadInput as error:
        raise BadInput(error.message.rstrip("."), hint="It takes seconds, or 90s, 2m, 1h, 7d.") from error


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise BadInput("Nobody can be asked here whether to remove it", hint="Add --yes, or look first with --dry-run.")
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        tell("\nNothing was removed.")
        raise


def _what(done: RemovedRepo) -> str:
    parts = [f"{_count(len(done.plan.blobs), 'file')} ({human_bytes(done.size)}) of {done.repo}"]
    if done.plan.emptied:
        parts.append(_count(len(done.plan.emptied), "commit"))
    if done.leftovers.journals:
        parts.append(_count(len(done.leftovers.journals), "partial file"))
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _removed_row(done: RemovedRepo, *, dry_run: bool) -> dict[str, Any]:
    return {
        "repo": done.repo.name,
        "type": done.repo.type.value,
        "commits": [commit.hex for commit in done.plan.emptied],
        "removed": [blob.digest.hex for blob in done.plan.blobs],
        "removed_bytes": done.size,
        "kept_files": len(done.plan.kept),
        "kept_bytes": sum(blob.size for blob in done.plan.kept),
        "dry_run": dry_run,
    }


def _leftover_rows(cleaned: Cleaned) -> list[dict[str, Any]]:
    repo = str(cleaned.repo)
    journals = [
        {"repo": repo, "what": "partial", "name": j.partial, "bytes": j.size, "why": _WHY[j.is_done]}
        if j.partial
        else {"repo": repo, "what": "journal", "name": j.name, "bytes": 0, "why": "its partial file is gone"}
        for j in cleaned.leftovers.journals
    ]
    blobs = [
        {
            "repo": repo,
            "what": "blob",
            "name": b.digest.hex,
            "bytes": b.size,
            "why": "brought by edgecdn, nothing links it",
        }
        for b in cleaned.leftovers.blobs
    ]
    return journals + blobs
