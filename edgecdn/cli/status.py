"""`edgecdn status`, which is `edgecdn agent status` too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecdn.cli.agent_call import ask_agent
from edgecdn.cli.output import counted, human_bytes, human_seconds, json_option, print_json

if TYPE_CHECKING:
    from edgecdn.control import JobInfo, StatusInfo

__all__ = ["status"]


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show the agent of this user: what it does, has, gave and took. Exit code 8 when it is not running."""
    import msgspec

    found = ask_agent(lambda link: link.status())
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    for line in _lines(found):
        click.echo(line)


def _lines(found: StatusInfo) -> list[str]:
    came = [f"{human_bytes(count)} from {kind}" for kind, count in found.totals.in_by_source.items() if count]
    repos = f"{counted(found.cache.repos, 'repo')}, {human_bytes(found.cache.bytes)} verified"
    name = found.name or "without a name"
    return [
        f"edgecdn {found.version}, agent {name} ({found.agent_id}), up {human_seconds(found.uptime_s)}",
        "listens: " + ", ".join(f"{name} {where}" for name, where in found.listeners.items()),
        f"peers: {found.peers}",
        f"cache: {repos}",
        f"came in: {', '.join(came) or 'nothing'}; given to peers: {human_bytes(found.totals.out_lan)}",
        *(_job(job) for job in found.jobs[:10]),
    ]


def _job(job: JobInfo) -> str:
    share = f" {100 * job.done_bytes // job.total_bytes} % of {human_bytes(job.total_bytes)}" if job.total_bytes else ""
    detail = f" ({job.detail})" if job.detail else ""
    return f"job {job.id}: {job.title}: {job.state}{share}{detail}"
