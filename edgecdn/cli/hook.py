"""`edgecdn hook`: install, remove, status."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from edgecdn.cli.output import json_option, print_json, tell

if TYPE_CHECKING:
    from edgecdn.plugin.environment import Environment

__all__ = ["hook"]


@click.group()
def hook() -> None:
    """The hook has huggingface_hub of a Python environment ask the agent first: scripts stay as they are."""


_python = click.option(
    "--python",
    default="",
    metavar="PATH",
    help="An interpreter or environment. Default: the active one, else edgecdn's own.",
)


@hook.command()
@_python
@json_option
def install(python: str, as_json: bool) -> None:
    """Put it into an environment, or bring it up to date."""
    from edgecdn.plugin.environment import install

    environment = _environment(python)
    done = install(environment)
    tell(f"The hook is {'installed' if done else 'there already'}: {environment.packages}.")
    if not environment.hub:
        tell("There is no huggingface_hub in it yet; the hook waits for it.")
    if as_json:
        print_json(_state(environment))


@hook.command()
@_python
@json_option
def remove(python: str, as_json: bool) -> None:
    """Take it out of an environment again."""
    from edgecdn.plugin.environment import remove

    environment = _environment(python)
    tell("The hook is removed." if remove(environment) else f"There is no hook in {environment.packages}.")
    if as_json:
        print_json(_state(environment))


@hook.command()
@_python
@json_option
def status(python: str, as_json: bool) -> None:
    """Show whether it is in an environment, whether the agent answers, and whether loads go by it."""
    state = _state(_environment(python))
    if as_json:
        print_json(state)
        return
    version = f"version {state['version']}" + (", outdated: `edgecdn hook install`" if state["outdated"] else "")
    click.echo(f"environment: {state['environment']} ({state['kind']}), {state['python']}")
    click.echo(f"huggingface_hub: {state['huggingface_hub'] or 'not installed'}")
    click.echo(f"hook: {version if state['installed'] else 'not installed'}")
    click.echo(f"agent: {'answers' if state['agent'] else 'does not answer'}")
    click.echo(f"used: {'yes' if state['used'] else 'no'}{': ' if state['why'] else ''}{state['why']}")


def _environment(python: str) -> Environment:
    from edgecdn.plugin.environment import examine, find_python

    return examine(find_python(python, os.environ))


def _state(environment: Environment) -> dict[str, object]:
    from edgecdn.cli.switch import is_switched_off
    from edgecdn.plugin.environment import installed

    found = installed(environment)
    silent = _why_silent()
    disabled = is_switched_off(os.environ)
    if not found.version:
        used, why = False, "there is no hook: `edgecdn hook install`"
    elif disabled:
        used, why = False, "EDGECDN_DISABLE switches it off in this shell"
    elif not environment.hub:
        used, why = False, "there is no huggingface_hub in this environment yet"
    elif silent:
        used, why = False, silent
    else:
        used, why = _asked_for(os.environ)
    return {
        "python": str(environment.python),
        "environment": str(environment.packages),
        "kind": environment.kind,
        "huggingface_hub": environment.hub,
        "installed": bool(found.version),
        "version": found.version,
        "outdated": found.outdated,
        "disabled": disabled,
        "agent": not silent,
        "used": used,
        "why": why,
    }


def _why_silent() -> str:
    """Empty where the agent answers."""
    from edgecdn.cli.agent_call import ask_agent
    from edgecdn.errors import AgentNotRunning

    try:
        ask_agent(lambda link: link.health())
    except AgentNotRunning as error:
        return f"{error.message} {error.remedy}".rstrip(".")
    return ""


def _asked_for(environ: Mapping[str, str]) -> tuple[bool, str]:
    """Whether the agent stands in front of the hub that tools of this shell ask, as the hook sees it; and why."""
    from edgecdn.plugin.hook.agent import DEFAULT_HUB, find_agent
    from edgecdn.settings import home_dir

    agent = find_agent(str(home_dir(environ)))
    hub = (environ.get("HF_ENDPOINT") or DEFAULT_HUB).rstrip("/")
    if agent is None or agent.serves(hub):
        return agent is not None, ""
    if agent.is_gateway(hub):
        return True, "by HF_ENDPOINT, which is the gateway (`edgecdn env`), without the hook"
    given = "HF_ENDPOINT is" if environ.get("HF_ENDPOINT") else "tools ask"
    return False, f"{given} {hub}, which the agent does not ask: {agent.remedy(hub)}"
