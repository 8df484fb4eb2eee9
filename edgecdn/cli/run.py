"""`edgecdn run -- CMD`: one command with the gateway's variables, or as it is where no agent answers."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import click

from edgecdn.cli.env import gateway_variables
from edgecdn.cli.output import tell
from edgecdn.cli.switch import is_switched_off
from edgecdn.errors import AgentNotRunning, BadInput
from edgecdn.tool_env import takes_back

__all__ = ["run"]

_NOT_FOUND, _NOT_RUNNABLE = 127, 126
"""As shells say it."""


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD [ARGS]...")
@click.pass_context
def run(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Run a command that gets its models through edgecdn; without an agent it runs as it would without us.

    \b
    edgecdn run -- python train.py
    edgecdn run -- hf download Qwen/Qwen2.5-7B

    Exit code and signals are the command's own. EDGECDN_DISABLE=1 has it run without edgecdn, too.
    """  # noqa: D301 - \b is the character that keeps click from filling the paragraph
    environ = dict(os.environ)
    if is_switched_off(environ):
        tell(f"edgecdn: EDGECDN_DISABLE is set. {command[0]} runs without edgecdn.")
        _take_back(environ)
    else:
        try:
            environ |= gateway_variables(environ)
        except (AgentNotRunning, BadInput) as error:
            tell(f"edgecdn: {error.message} {command[0]} runs without edgecdn. {error.remedy}")
            _take_back(environ)
    try:
        _become(command, environ)
    except (FileNotFoundError, NotADirectoryError):
        tell(f"edgecdn: {command[0]}: command not found")
        ctx.exit(_NOT_FOUND)
    except OSError as error:
        tell(f"edgecdn: {command[0]}: {error.strerror}")
        ctx.exit(_NOT_RUNNABLE)


def _take_back(environ: dict[str, str]) -> None:
    """What an earlier `edgecdn env` set, as the user had it."""
    for name, value in takes_back(environ).items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value


def _become(command: tuple[str, ...], environ: dict[str, str]) -> NoReturn:
    """This process becomes the command; the signals that Python ignores are what they were before Python."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], command, environ)  # noqa: S606 - what the user typed is run as it is
