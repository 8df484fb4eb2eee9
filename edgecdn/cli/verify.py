"""`edgecdn verify`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.health import Unreadable, survey
from edgecdn.cache.scan import RepoOnDisk, scan_repo
from edgecdn.cli.online import go_online
from edgecdn.cli.output import counted, human_bytes, json_option, print_json, tell
from edgecdn.cli.progress import FetchProgress, bar_columns
from edgecdn.errors import IntegrityFailure
from edgecdn.local_names import find_cached, matching_commits
from edgecdn.names import ModelRef
from edgecdn.settings import Settings, load_settings
from edgecdn.upkeep.rehash import Checked, blobs_to_check, check_again, commits_to_refetch, missing_blobs, refetch_all

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["verify"]


@click.command()
@click.argument("model", required=False, metavar="[MODEL[@REV]]")
@click.option("--refetch", is_flag=True, help="Fetch again what is wrong or gone.")
@click.option("--all", "all_", is_flag=True, help="Also blobs that no commit links.")
@json_option
def verify(model: str | None, refetch: bool, all_: bool, as_json: bool) -> None:
    """Hash what is in the cache again (all of it, or MODEL), whoever downloaded it.

    What is not what its name says is set aside in edgecdn's quarantine, never deleted. What a commit
    links and is not here counts as wrong too.
    """
    settings = load_settings()
    ref = ModelRef.parse(model) if model is not None else None
    repos = _repos(settings, ref)
    checked = _check(settings, repos, ref, unlinked=all_)
    rotten = [c for c in checked if not c.ok]
    if as_json:
        print_json([_row(c) for c in checked])
    if not checked:
        tell(f"Nothing to verify in {settings.cache_dir}.")
        return
    _report(checked, rotten, quiet=as_json)
    if not rotten:
        return
    if refetch or _wants_refetch():
        wanted = [item for found in repos for item in commits_to_refetch(found, rotten)]
        go_online()
        with FetchProgress(quiet=as_json) as progress:
            refetch_all(settings, wanted, progress)
        if all(c.quarantined or c.missing for c in rotten):
            tell("What was wrong was fetched again and verified.")
            return
    first = rotten[0]
    raise IntegrityFailure(
        f"{len(rotten)} of {len(checked)} files are not what they should be",
        path=f"{first.repo}/{first.paths[0] if first.paths else first.blob.digest.hex}",
        hint="`edgecdn verify --refetch` fetches them again; what was set aside lies in edgecdn's quarantine folder.",
    )


def _repos(settings: Settings, ref: ModelRef | None) -> list[RepoOnDisk]:
    if ref is not None:
        return [scan_repo(settings.cache_dir, find_cached(ref, settings))]
    repos = []
    for found in survey(settings.cache_dir):
        if isinstance(found, Unreadable):
            tell(f"{found.repo} is left out: {found.reason}.")
        else:
            repos.append(found)
    return repos


def _check(settings: Settings, repos: list[RepoOnDisk], ref: ModelRef | None, *, unlinked: bool) -> list[Checked]:
    chosen = [
        (found, blobs_to_check(found, matching_commits(found, ref.revision if ref else None), unlinked=unlinked))
        for found in repos
    ]
    total = sum(blob.size for _, blobs in chosen for blob, _ in blobs)
    checked: list[Checked] = []
    with closing(Catalog(settings.home)) as catalog, _bar(total) as advance:
        for found, blobs in chosen:
            checked += missing_blobs(found, matching_commits(found, ref.revision if ref else None))
            for one in check_again(settings, catalog, found.repo, blobs):
                checked.append(one)
                advance(one.blob.size)
    return checked


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """Progress on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(*bar_columns(console.width, "verifying"), console=console, transient=True) as progress:
        task = progress.add_task("", total=total, sources="")
        yield lambda count: progress.update(task, advance=count)


def _report(checked: list[Checked], rotten: list[Checked], *, quiet: bool) -> None:
    for one in rotten if not quiet else ():
        where = f"set aside as {one.quarantined}" if one.quarantined else "still there (read-only, or being fetched)"
        what = ("missing", "") if one.missing else ("rotten", f"  {where}")
        click.echo(f"{what[0]}  {one.repo}/{', '.join(one.paths) or one.blob.digest.hex}{what[1]}")
    size = human_bytes(sum(c.blob.size for c in checked))
    right = len(checked) - len(rotten)
    tell(f"{right} of {counted(len(checked), 'file')} ({size}) {'is' if right == 1 else 'are'} right.")


def _wants_refetch() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty() and click.confirm("Fetch them again?", err=True)


def _row(checked: Checked) -> dict[str, Any]:
    return {
        "repo": checked.repo.name,
        "type": checked.repo.type.value,
        "digest": checked.blob.digest.hex,
        "paths": list(checked.paths),
        "size": checked.blob.size,
        "ok": checked.ok,
        "quarantined": checked.quarantined,
        "missing": checked.missing,
    }
