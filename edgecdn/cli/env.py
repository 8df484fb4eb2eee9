"""`edgecdn env`, and what it shares with `edgecdn run`."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from edgecdn.cli.output import print_json, tell
from edgecdn.cli.switch import is_switched_off
from edgecdn.errors import AgentNotRunning, BadInput
from edgecdn.settings import home_dir
from edgecdn.tool_env import exports, foreign_hub, shell_lines, takes_back

__all__ = ["env", "gateway_variables"]


@click.command()
@click.option("--shell", type=click.Choice(["sh", "fish"]), default="sh", show_default=True, help="Whose syntax.")
@click.option("--unset", is_flag=True, help="Print what takes the variables back.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs; null: to be unset.")
def env(shell: str, unset: bool, as_json: bool) -> None:
    """Print the variables that make tools of this shell use edgecdn, once the agent has answered.

    \b
    eval "$(edgecdn env)"                    sh, bash, zsh
    edgecdn env --shell fish | source        fish

    Without an agent nothing is set, and what an earlier call set is taken back. Exit code 8 then.
    With EDGECDN_DISABLE=1 the same is done, and that is no error.
    """  # noqa: D301 - \b is the character that keeps click from filling the paragraph
    off = is_switched_off(os.environ)
    if unset or off:
        _print(takes_back(os.environ), shell, as_json=as_json)
        if off and not unset:
            tell("edgecdn: nothing is set: EDGECDN_DISABLE switches edgecdn off in this shell.")
        return
    try:
        found = gateway_variables(os.environ)
    except (AgentNotRunning, BadInput):
        stale = takes_back(os.environ)
        if stale:
            _print(stale, shell, as_json=as_json)
            tell("What pointed to the gateway is taken back.")
        raise
    _print(found, shell, as_json=as_json)


def gateway_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables, after a probe.

    Raises AgentNotRunning without an agent that answers, BadInput where the user's HF_ENDPOINT is a hub that
    the agent does not ask: which of the two is meant is theirs to say.
    """
    from edgecdn.cli.interrupt import run_cancellable
    from edgecdn.upkeep.gateway_probe import probe_gateway

    address = run_cancellable(probe_gateway(home_dir(environ)))
    hub = foreign_hub(environ, address.run.hub_endpoints)
    if hub:
        asked = " ".join(address.run.hub_endpoints)
        raise BadInput(
            f"HF_ENDPOINT is {hub}, which the agent does not ask (it asks {asked}); it is left as it is",
            hint=f"Let the agent ask it (`edgecdn config set hub.endpoints {hub} {asked}`, restart the agent), "
            "or `unset HF_ENDPOINT`.",
        )
    return exports(address.url, environ, modelscope=address.run.modelscope)


def _print(changes: Mapping[str, str | None], shell: str, *, as_json: bool) -> None:
    if as_json:
        print_json(dict(changes))
        return
    for line in shell_lines(changes, shell):
        click.echo(line)
