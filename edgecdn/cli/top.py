"""`edgecdn top`: who gives how much to whom, and how far the fetches are, while one looks."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from edgecdn.cli.agent_call import ask_agent
from edgecdn.cli.output import human_bytes, json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Group

    from edgecdn.agent_link import AgentLink
    from edgecdn.control import JobInfo, TopInfo

__all__ = ["top"]

_EVERY_S = 1.0
_OVER = ("done", "failed", "cancelled")


@click.command()
@click.option("--once", is_flag=True, help="Show it once and end.")
@json_option
def top(once: bool, as_json: bool) -> None:
    """Watch peers, fetches and rates; ends with Ctrl-C. --json shows it once."""
    import msgspec

    if once or as_json:
        found = ask_agent(lambda link: link.top())
        if as_json:
            print_json(msgspec.to_builtins(found))
        else:
            _print(found)
        return
    try:
        _watch()
    except KeyboardInterrupt:
        return


def _watch() -> None:
    if not sys.stdout.isatty():
        ask_agent(lambda link: _repeat(link, _print))
        return
    from rich.live import Live

    with Live(auto_refresh=False, screen=True) as live:
        ask_agent(lambda link: _repeat(link, lambda found: live.update(_drawn(found), refresh=True)))


async def _repeat(link: AgentLink, show: Callable[[TopInfo], None]) -> None:
    while True:
        show(await link.top())
        await asyncio.sleep(_EVERY_S)


def _print(found: TopInfo) -> None:
    """Without a screen: a line each."""
    click.echo(f"{found.name}: in {_rate(found.in_bytes_s)}, out {_rate(found.out_bytes_s)}")
    for peer in found.peers:
        click.echo(f"{peer.name}: in {_rate(peer.in_bytes_s)}, out {_rate(peer.out_bytes_s)}")
    for job in found.jobs:
        if job.state not in _OVER:
            click.echo(f"job {job.title}: {_progress(job)}, {_sources(job)}")
    sys.stdout.flush()


def _drawn(found: TopInfo) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    heading = Text(f"{found.name}   in {_rate(found.in_bytes_s)}   out {_rate(found.out_bytes_s)}", style="bold")
    peers = Table("PEER", "IN", "OUT", "IN ALL", "OUT ALL", box=None, pad_edge=False)
    for p in sorted(found.peers, key=lambda p: (-p.in_bytes_s - p.out_bytes_s, p.name)):
        peers.add_row(
            Text(p.name), _rate(p.in_bytes_s), _rate(p.out_bytes_s), human_bytes(p.in_bytes), human_bytes(p.out_bytes)
        )
    jobs = Table("FETCH", "STATE", "DONE", "FROM", box=None, pad_edge=False)
    for job in found.jobs:
        jobs.add_row(Text(job.title), job.state, _progress(job), Text(_sources(job)))
    return Group(heading, Text(), jobs, Text(), peers)


def _progress(job: JobInfo) -> str:
    if not job.total_bytes:
        return job.state
    share = 100 * job.done_bytes // job.total_bytes
    return f"{human_bytes(job.done_bytes)} of {human_bytes(job.total_bytes)} ({share} %)"


def _sources(job: JobInfo) -> str:
    rates = sorted(job.rates.items(), key=lambda item: -item[1])
    return ", ".join(f"{_rate(rate)} from {source}" for source, rate in rates) or job.detail or "nothing moves"


def _rate(bytes_s: float) -> str:
    return f"{human_bytes(bytes_s)}/s"
