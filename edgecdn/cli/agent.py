"""`edgecdn agent`: run, start, stop, status, install, uninstall."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from edgecdn.cli.agent_call import ask_agent
from edgecdn.cli.output import tell
from edgecdn.cli.status import status
from edgecdn.errors import AgentNotRunning
from edgecdn.settings import home_dir, load_settings

__all__ = ["agent"]


@click.group()
def agent() -> None:
    """The agent shares what this machine has with its peers, and fetches for all programs of this user."""


agent.add_command(status)


@agent.command()
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--verbose", is_flag=True, help="Log what is done, too.")
def run(log_format: str, verbose: bool) -> None:
    """Run it here, in the foreground; Ctrl-C or SIGTERM ends it."""
    from edgecdn.upkeep.agent_process import agent_command

    command = agent_command("--log-format", log_format, *(["--verbose"] if verbose else []))
    os.execv(command[0], command)  # noqa: S606 - this process becomes the agent: signals and exit code are its own


@agent.command()
def start() -> None:
    """Start it in the background and wait until it is ready; its log goes to agent.log of its home.

    Exit code 8 where one runs already that does not answer.
    """
    from edgecdn.upkeep.agent_process import agent_command, agent_log, answering_agent, other_ports, start_agent

    settings = load_settings()  # and what is wrong in them is said here, not in a log
    home = settings.home
    running = answering_agent(home)
    if running is not None:
        tell(f"The agent of {home} is running already (process {running}).")
        return
    address, failing = start_agent(home, agent_command("--log-format", "text"))
    tell(f"The agent is ready (process {address.run.pid}); its log is {agent_log(home)}.")
    for part, reason in failing.items():
        tell(f"One part of it is down, {part}: {reason or 'the log says why'}.")
    moved = other_ports(settings, _listeners() or address.run.listeners)
    if moved:
        tell(f"Ports were taken, so it uses others: {', '.join(moved)}. A firewall has to let lan and swarm in.")
    click.echo(address.url)


def _listeners() -> Mapping[str, str]:
    """Where the agent really listens: run.json follows a moment later."""
    try:
        return ask_agent(lambda link: link.status()).listeners
    except AgentNotRunning:
        return {}


@agent.command()
def stop() -> None:
    """Stop it; fetches that it runs go on when it is started again."""
    from edgecdn.upkeep.agent_process import stop_agent, waited_for

    home = home_dir(os.environ)
    waiting = waited_for(home)
    pid = stop_agent(home)
    tell(f"No agent serves {home}." if pid is None else f"The agent (process {pid}) has stopped.")
    if pid is not None and waiting:
        were = "1 file or fetch was" if waiting == 1 else f"{waiting} files or fetches were"
        then = "unless it is back in a second, tools begin anew from the hub; commands go on when run again"
        tell(f"{were} waited for: {then}.")


@agent.command()
@click.option("--force", is_flag=True, help="Replace a unit that somebody changed; a copy is kept.")
def install(force: bool) -> None:
    """Have systemd run it for this user: now, and whenever the user logs in."""
    from edgecdn.upkeep.agent_process import agent_command, agent_pid
    from edgecdn.upkeep.systemd_unit import UNIT, install_unit, is_lingering, unit_path, unit_text

    home = load_settings().home
    path = unit_path(os.environ)
    running = agent_pid(home)
    text = unit_text(agent_command("--log-format", "text"), home, os.environ)
    kept = install_unit(path, text, start=running is None, force=force)
    if kept is not None:
        tell(f"What stood there is kept as {kept}.")
    tell(f"The agent is installed: {path}. Its log: journalctl --user -u {UNIT}.")
    if running is not None:
        tell(f"An agent runs already (process {running}): `edgecdn agent stop`, then systemctl --user start {UNIT}.")
    if not is_lingering():
        tell("It runs while you are logged in. To have it run always, also after a restart: loginctl enable-linger")
    if "HF_TOKEN" in os.environ:
        tell("HF_TOKEN is not put into the unit; `hf auth login` keeps the token where the agent finds it.")
    click.echo(path)


@agent.command()
@click.option("--force", is_flag=True, help="Also a unit that somebody changed.")
def uninstall(force: bool) -> None:
    """Take it out of systemd again; home, cache and settings stay."""
    from edgecdn.upkeep.systemd_unit import remove_unit, unit_path

    path = unit_path(os.environ)
    tell(f"{path} is removed." if remove_unit(path, force=force) else f"There is no {path}.")
