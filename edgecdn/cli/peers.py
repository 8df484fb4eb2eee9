"""`edgecdn peers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecdn.cli.agent_call import ask_agent
from edgecdn.cli.output import human_seconds, json_option, print_json, print_table, tell

if TYPE_CHECKING:
    from edgecdn.control import PeerInfo

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
        header = ("NAME", "LAN PORT", "ADDRESSES", "VERSION", "SEEN", "ID")
        print_table(header, [_row(peer) for peer in found])
    else:
        tell("No peer is known; `edgecdn doctor` looks for what could be in the way.")


def _row(peer: PeerInfo) -> tuple[str, ...]:
    host = f"[{peer.host}]" if ":" in peer.host else peer.host
    reached = f"{host}:{peer.lan_port}" if peer.host and peer.lan_port else "-"
    return (
        peer.name, reached, ", ".join(peer.addresses), peer.version, f"{human_seconds(peer.last_seen_s)} ago", peer.id,
    )  # fmt: skip
