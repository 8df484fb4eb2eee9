"""`edgecdn fetch`."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import click

from edgecdn.cli.interrupt import run_cancellable
from edgecdn.cli.online import guard_hubs, log_to_stderr
from edgecdn.cli.output import counted, human_bytes, human_seconds, print_json, tell
from edgecdn.cli.progress import FetchProgress
from edgecdn.client import Wanted, fetch_wanted
from edgecdn.errors import BadInput, EdgecdnError, GoesOn, Interrupted, Unreachable
from edgecdn.events import Kind
from edgecdn.fetched import Fetched
from edgecdn.fileset import FileSet
from edgecdn.names import ModelRef, RepoType
from edgecdn.settings import load_settings

__all__ = ["fetch"]

_NO_PEER = re.compile(r"nobody offers it|no byte came")
"""What an engine without a source says; that no hub answers for the name is another matter."""


@click.command()
@click.argument("model", metavar="MODEL[@REV]")
@click.option(
    "--type", "type_", type=click.Choice([t.value for t in RepoType]), help="What kind of repo (default: model)."
)
@click.option("--include", multiple=True, metavar="GLOB", help="Only files that match; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not the files that match; may be repeated.")
@click.option("--all-formats", is_flag=True, help="Also the same weights in other formats than safetensors.")
@click.option("--local-dir", type=click.Path(path_type=Path), metavar="DIR", help="Also put the files in DIR.")
@click.option("--from", "from_", metavar="KINDS", help="Only these sources: lan, mirror, origin (comma-separated).")
@click.option("--hub", type=click.Choice(["modelscope"]), help="Take names and commits from there.")
@click.option(
    "--accept-lan-manifest", is_flag=True, help="When no hub answers, take peers' word for what the name stands for."
)
@click.option("--keep", is_flag=True, help="When interrupted, let the agent go on with the fetch.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--verbose", is_flag=True, help="Log what is done.")
def fetch(
    model: str,
    type_: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    all_formats: bool,
    local_dir: Path | None,
    from_: str | None,
    hub: str | None,
    accept_lan_manifest: bool,
    keep: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Bring a model or data set into the Hugging Face cache, every byte verified.

    MODEL is a short name (qwen-7b), OWNER/NAME, datasets/OWNER/NAME or the URL of its page; @REV
    picks a branch, tag or commit. Interrupted at any point, the same command goes on where it
    stopped. The last line printed is the folder with the files.
    """
    log_to_stderr(verbose=verbose)
    ref = ModelRef.parse(model, RepoType(type_) if type_ else None)
    settings = load_settings()
    wanted = Wanted(
        ref=ref,
        files=FileSet(include, exclude, all_formats),
        local_dir=local_dir,
        kinds=_kinds(from_),
        hub=hub or "",
        accept_lan_manifest=accept_lan_manifest,
        keep_job=keep,
    )
    left: list[int] = []
    with FetchProgress(quiet=quiet or as_json) as progress:
        try:
            fetched = run_cancellable(fetch_wanted(wanted, settings, progress, guard_hubs, left.append))
        except KeyboardInterrupt as stop:
            raise _interrupted(progress, left) from stop
        except Unreachable as error:
            raise _from_peers_alone(wanted.kinds, error) from error
    if as_json:
        print_json(asdict(fetched))
        return
    if not quiet:
        tell(_summary(fetched))
    click.echo(fetched.path)


def _kinds(text: str | None) -> frozenset[Kind]:
    if text is None:
        return frozenset(Kind)
    names = [part.strip() for part in text.split(",") if part.strip()]
    allowed = {kind.value for kind in Kind if kind is not Kind.CACHE}
    wrong = [name for name in names if name not in allowed]
    if wrong or not names:
        raise BadInput(f"--from takes lan, mirror and origin, not {', '.join(wrong) or 'nothing'}")
    return frozenset({Kind.CACHE, *map(Kind, names)})


_WHENCE = {
    Kind.CACHE.value: "here already",
    Kind.LAN.value: "from the lab",
    Kind.MIRROR.value: "over the line from mirrors",
    Kind.ORIGIN.value: "over the line",
}


def _summary(fetched: Fetched) -> str:
    parts = [f"{human_bytes(count)} {_WHENCE[kind]}" for kind, count in fetched.bytes_by_source.items() if count]
    lab, here = (fetched.bytes_by_source.get(kind.value, 0) for kind in (Kind.LAN, Kind.CACHE))
    if lab:
        parts.append(f"{100 * lab / (fetched.bytes_total - here):.0f} % of the line saved")
    return (
        f"{fetched.repo}: {counted(fetched.files, 'file')}, {human_bytes(fetched.bytes_total)}, verified, "
        f"in {human_seconds(fetched.seconds)} ({', '.join(parts) or 'nothing to move'})."
    )


def _from_peers_alone(kinds: frozenset[Kind], error: Unreachable) -> Unreachable:
    """Where only peers were to give, it is not the network that lacks something."""
    if Kind.LAN not in kinds or kinds & {Kind.MIRROR, Kind.ORIGIN} or not _NO_PEER.search(error.message):
        return error
    said = str(error.fields["detail"]).removeprefix("No source is reachable: ").rstrip(".")
    hint = "Leave --from out to take it from mirrors and hubs; `edgecdn peers` lists who is there."
    return Unreachable(f"no peer gives it: not held there, or not shared ({said})", hint=hint)


def _interrupted(progress: FetchProgress, left: list[int]) -> EdgecdnError:
    if left:
        return GoesOn(f" {counted(left[0], 'other')} wait{'s' if left[0] == 1 else ''} for it." if left[0] else "")
    received = sum(progress.received.values())
    return Interrupted(f" {human_bytes(received)} that arrived in this run are kept." if received else "")
