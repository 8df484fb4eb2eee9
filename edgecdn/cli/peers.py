"""`edgecdn peers`."""

from __future__ import annotations

import click

from edgecdn.cli.agent_call import ask_agent
from edgecdn.cli.output import human_seconds, json_option, print_json, print_table, tell

__all__ = ["peers"]

_TOLD = ("id", "name", "addresses", "version", "last_seen_s")


@click.command()
@json_option
def peers(as_json: bool) -> None:
    """List the agents this one knows, without itself."""
    found = ask_agent(lambda link: link.peers())
    if as_json:
        print_json([{name: getattr(peer, name) for name in _TOLD} for peer in found])
    elif found:
        header = ("NAME", "ADDRESSES", "VERSION", "SEEN", "ID")
        print_table(
            header,
            [(p.name, ", ".join(p.addresses), p.version, f"{human_seconds(p.last_seen_s)} ago", p.id) for p in found],
        )
    else:
        tell("No peer is known; `edgecdn doctor` looks for what could be in the way.")
