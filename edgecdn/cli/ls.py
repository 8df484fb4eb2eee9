"""`edgecdn ls`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from edgecdn.cache.catalog import Catalog
from edgecdn.cache.health import Unreadable, survey
from edgecdn.cache.removal import brought_blobs
from edgecdn.cache.scan import CommitOnDisk, RepoOnDisk, scan_repo
from edgecdn.cli.output import human_bytes, json_option, print_json, print_table, tell
from edgecdn.digest import Digest
from edgecdn.local_names import find_cached, matching_commits
from edgecdn.names import ModelRef
from edgecdn.settings import Settings, load_settings
from edgecdn.upkeep.pins import Pin, is_pinned, read_pins

__all__ = ["ls"]

_COMPLETE = {True: "yes", False: "part", None: "?"}


@click.command()
@click.argument("model", required=False, metavar="[MODEL[@REV]]")
@json_option
def ls(model: str | None, as_json: bool) -> None:
    """List the repos in the cache; with MODEL the commits and files of one.

    COMPLETE is `part` where files of a commit are not here (other formats of the weights are left out
    by default), `?` where its listing is not known. BY says who brought the bytes.
    """
    settings = load_settings()
    pins = read_pins(settings.home)
    with closing(Catalog(settings.home)) as catalog:
        if model is not None:
            _show_one(settings, catalog, pins, ModelRef.parse(model), as_json=as_json)
        else:
            _show_all(settings, catalog, pins, as_json=as_json)


def _show_all(settings: Settings, catalog: Catalog, pins: tuple[Pin, ...], *, as_json: bool) -> None:
    rows = []
    for found in survey(settings.cache_dir):
        if isinstance(found, Unreadable):
            tell(f"{found.repo} is left out: {found.reason}.")
        else:
            rows.append(_row(found, brought_blobs(catalog, found.blobs), pins))
    if as_json:
        print_json(rows)
    elif rows:
        header = ("REPO", "TYPE", "COMMITS", "FILES", "SIZE", "COMPLETE", "PINNED", "BY")
        print_table(header, [_columns(row) for row in rows])
    else:
        tell(f"Nothing is in the cache {settings.cache_dir}.")


def _show_one(settings: Settings, catalog: Catalog, pins: tuple[Pin, ...], ref: ModelRef, *, as_json: bool) -> None:
    found = scan_repo(settings.cache_dir, find_cached(ref, settings))
    chosen = matching_commits(found, ref.revision)
    brought = brought_blobs(catalog, found.blobs)
    sizes = {blob.digest: blob.size for blob in found.blobs}
    base = settings.cache_dir / found.repo.folder / "snapshots"
    row = _row(found, brought, pins)
    row["commits"] = [
        _commit(commit) | {"path": str(base / commit.commit.hex), "listing": _listing(commit, base, sizes, brought)}
        for commit in found.commits
        if commit.commit in chosen
    ]
    if as_json:
        print_json(row)
        return
    if not row["commits"]:
        partial = f", {human_bytes(found.partial_bytes)} partial" if found.partial_bytes else ""
        tell(f"{found.repo}: nothing complete yet{partial}.")
    for commit in row["commits"]:
        click.echo(f"{commit['commit']}  {', '.join(commit['refs'])}".rstrip())
        click.echo(f"  {commit['path']}")
        print_table(("", "FILE", "SIZE", "BY"), [("", f["path"], _size(f), f["by"]) for f in commit["listing"]])


def _row(found: RepoOnDisk, brought: frozenset[Digest], pins: tuple[Pin, ...]) -> dict[str, Any]:
    return {
        "repo": found.repo.name,
        "type": found.repo.type.value,
        "size": found.size,
        "files": len({(path, digest) for commit in found.commits for path, digest in commit.files.items()}),
        "commits": [_commit(commit) for commit in found.commits],
        "pinned": is_pinned(pins, found.repo),
        "brought_bytes": sum(blob.size for blob in found.blobs if blob.digest in brought),
        "partial_bytes": found.partial_bytes,
    }


def _commit(commit: CommitOnDisk) -> dict[str, Any]:
    return {
        "commit": commit.commit.hex,
        "refs": list(commit.refs),
        "files": len(commit.files),
        "complete": commit.complete,
    }


def _listing(
    commit: CommitOnDisk, base: Path, sizes: dict[Digest, int], brought: frozenset[Digest]
) -> list[dict[str, Any]]:
    return [
        {
            "path": path,
            "digest": digest.hex if digest else None,
            "size": sizes.get(digest) if digest else (base / commit.commit.hex / path).lstat().st_size,
            "by": "edgecdn" if digest in brought else "other",
        }
        for path, digest in commit.files.items()
    ]


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    states = {commit["complete"] for commit in row["commits"]}
    worst = next((state for state in (None, False) if state in states), True)
    return (
        row["repo"],
        row["type"],
        " ".join(_short(commit) for commit in row["commits"]) or "-",
        str(row["files"]),
        human_bytes(row["size"]) + (f" +{human_bytes(row['partial_bytes'])} partial" if row["partial_bytes"] else ""),
        _COMPLETE[worst] if states else "-",
        "pinned" if row["pinned"] else "",
        _by(row["brought_bytes"], row["size"]),
    )


def _short(commit: dict[str, Any]) -> str:
    names = ",".join(commit["refs"])
    return f"{commit['commit'][:8]}({names})" if names else str(commit["commit"][:8])


def _by(brought: int, size: int) -> str:
    if not brought:
        return "other" if size else "-"
    return "edgecdn" if brought == size else "both"


def _size(file: dict[str, Any]) -> str:
    return "missing" if file["size"] is None else human_bytes(file["size"])
