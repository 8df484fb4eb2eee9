"""`edgecdn cancel`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecdn.cli.agent_call import ask_agent
from edgecdn.cli.output import counted, tell
from edgecdn.errors import BadInput
from edgecdn.names import ModelRef
from edgecdn.settings import load_settings
from edgecdn.shortnames import lookup

if TYPE_CHECKING:
    from edgecdn.agent_link import AgentLink
    from edgecdn.control import Cancelled, JobInfo

__all__ = ["cancel"]

_OVER = ("done", "failed", "cancelled")


@click.command()
@click.argument("model", metavar="MODEL|JOB")
def cancel(model: str) -> None:
    """Stop a fetch of the agent, by its model or the job's id (`edgecdn status`). What arrived is kept.

    A fetch that a command or program still waits for is not stopped: Ctrl-C there, first.
    """
    from edgecdn.agent_link import JobHandle

    names = _names(model)

    async def asked(link: AgentLink) -> list[tuple[JobInfo, Cancelled]]:
        running = [job for job in await link.jobs() if job.state not in _OVER]
        return [(job, await link.cancel(JobHandle(job.id))) for job in running if _is_meant(job, model, names)]

    answers = ask_agent(asked)
    if not answers:
        raise BadInput(f"The agent has no fetch '{model}' under way", hint="`edgecdn status` lists its fetches.")
    for job, answer in answers:
        if answer.by_tools:
            tell(f"{job.title} goes on: a program waits for it or did so seconds ago; end that, or wait a little.")
        elif answer.others:
            waits = f"{counted(answer.others, 'command')} still wait{'s' if answer.others == 1 else ''} for it"
            tell(f"{job.title} goes on: {waits}; Ctrl-C there, or wait.")
        else:
            tell(f"{job.title} is stopped; what arrived is kept." if answer.cancelled else f"{job.title} was over.")
    if not any(answer.cancelled for _, answer in answers):
        raise BadInput("Nothing was stopped", hint="`edgecdn status` shows what runs.")


def _names(model: str) -> set[str]:
    """What a job of that model may be called: as it was typed, or by the repo it stands for."""
    typed = model.strip().casefold()
    try:
        ref = ModelRef.parse(model)
    except BadInput:
        return {typed}
    found = lookup(ref.name, ref.type, load_settings().aliases)
    return {typed, ref.name.casefold(), *([found[1].casefold()] if found else [])}


def _is_meant(job: JobInfo, typed: str, names: set[str]) -> bool:
    title = job.title.casefold().removeprefix("datasets/")
    return job.id == typed or bool({title, job.title.casefold(), title.partition("@")[0].strip()} & names)
