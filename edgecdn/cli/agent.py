"""`edgecdn agent`: run, start, stop, status, install, uninstall."""

from __future__ import annotations

import os

import click

from edgecdn.cli.output import tell
from edgecdn.cli.status import status
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
    """Start it in the background and wait until it is ready; its log goes to agent.log of its home."""
    from edgecdn.upkeep.agent_process import agent_command, agent_log, agent_pid, start_agent

    home = load_settings().home  # and what is wrong in the settings is said here, not in a log
    running = agent_pid(home)
    if running is not None:
        tell(f"The agent of {home} is running already (process {running}).")
        return
    address, failing = start_agent(home, agent_command("--log-format", "text"))
    tell(f"The agent is ready (process {address.run.pid}); its log is {agent_log(home)}.")
    for part, reason in failing.items():
        tell(f"One part of it is down, {part}: {reason or 'the log says why'}.")
    click.echo(address.url)


@agent.command()
def stop() -> None:
    """Stop it; fetches that it runs go on when it is started again."""
    from edgecdn.upkeep.agent_process import stop_agent

    home = home_dir(os.environ)
    pid = stop_agent(home)
    tell(f"No agent serves {home}." if pid is None else f"The agent (process {pid}) has stopped.")


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
