"""`edgecdn`: finds the command, runs it, turns what it raises into a message and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from edgecdn.errors import EdgecdnError, Interrupted, SystemFailed
from edgecdn.version import VERSION

__all__ = ["main", "run"]

_COMMANDS = {
    "fetch": ("edgecdn.cli.fetch:fetch", "Bring a model or data set into the cache, verified."),
    "ls": ("edgecdn.cli.ls:ls", "List what is in the cache."),
    "rm": ("edgecdn.cli.remove:rm", "Remove what edgecdn brought of a repo or commit."),
    "pin": ("edgecdn.cli.pin:pin", "Keep a repo whatever clean-ups come."),
    "unpin": ("edgecdn.cli.pin:unpin", "Let a pinned repo go again."),
    "verify": ("edgecdn.cli.verify:verify", "Hash what is in the cache again; set aside what rotted."),
    "gc": ("edgecdn.cli.remove:gc", "Remove leftovers: abandoned partial files, blobs nobody links."),
    "mirrors": ("edgecdn.cli.mirrors:mirrors", "Probe every configured hub: answer, speed, freshness."),
    "doctor": ("edgecdn.cli.doctor:doctor", "Check this machine and say what to do."),
    "agent": ("edgecdn.cli.agent:agent", "Run, start, stop or install the agent of this machine."),
    "status": ("edgecdn.cli.status:status", "Show what the agent does and has."),
    "peers": ("edgecdn.cli.peers:peers", "List the agents that share with this one."),
    "top": ("edgecdn.cli.top:top", "Watch peers, fetches and rates."),
    "cancel": ("edgecdn.cli.cancel:cancel", "Stop a fetch of the agent that nobody waits for."),
    "env": ("edgecdn.cli.env:env", "Print the variables that make a shell's tools use edgecdn."),
    "run": ("edgecdn.cli.run:run", "Run one command that gets its models through edgecdn."),
    "hook": ("edgecdn.cli.hook:hook", "Have the programs of a Python environment ask the agent first."),
    "config": ("edgecdn.cli.config:config", "Show or change the settings."),
}
"""Name to where it is and its line in the help, so that the help loads none of them."""


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            raise click.UsageError(
                f"There is no command '{args[0]}'." + (f" Did you mean '{near[0]}'?" if near else ""), ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="edgecdn")
def main() -> None:
    """Model files for a lab: fetched once, verified always, shared by everyone.

    \b
    edgecdn fetch qwen-7b                     a well-known short name
    edgecdn fetch Qwen/Qwen2.5-7B@main        owner/name, branch, tag or commit
    edgecdn fetch datasets/openai/gsm8k       a data set
    """  # noqa: D301 - \b is the character that keeps click from filling the paragraph


def run(arguments: Sequence[str] | None = None) -> int:  # noqa: PLR0911 - a table of what can end a command
    """Run the command line; returns the exit code. Errors are printed to stderr: what, then what to do."""
    try:
        result = main.main(
            args=None if arguments is None else list(arguments), prog_name="edgecdn", standalone_mode=False
        )
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _say(Interrupted(""))
    except EdgecdnError as error:
        return _say(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _say(SystemFailed(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")))
    return result if isinstance(result, int) else 0  # what `ctx.exit(CODE)` said


def _say(error: EdgecdnError) -> int:
    click.echo(f"edgecdn: {error.message}", err=True)
    if error.remedy:
        click.echo(f"  {error.remedy}", err=True)
    return error.exit_code


def entry_point() -> None:
    """What the installed `edgecdn` script calls."""
    sys.exit(run())
