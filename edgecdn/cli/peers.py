"""`edgecdn peers`."""

from __future__ import annotations

import click

from edgecdn.cli.agent_call import ask_agent
from edgecdn.cli.output import human_seconds, json_option, print_json, print_table, tell

__all__ = ["peers"]


@click.command()
@json_option
def peers(as_json: bool) -> None:
    """List the agents this one knows, without itself."""
    import msgspec

    found = ask_agent(lambda link: link.peers())
    if as_json:
        print_json(msgspec.to_builtins(found))
    elif found:
        header = ("NAME", "ADDRESSES", "VERSION", "SEEN", "ID")
        print_table(
            header,
            [(p.name, ", ".join(p.addresses), p.version, f"{human_seconds(p.last_seen_s)} ago", p.id) for p in found],
        )
    else:
        tell("No peer is known; `edgecdn doctor` looks for what could be in the way.")
