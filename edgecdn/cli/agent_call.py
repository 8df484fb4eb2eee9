"""How commands ask the agent of this user."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from edgecdn.cli.interrupt import run_cancellable
from edgecdn.errors import AgentHangs, AgentNotRunning
from edgecdn.settings import home_dir

if TYPE_CHECKING:
    from edgecdn.agent_link import AgentLink

__all__ = ["ask_agent"]

_T = TypeVar("_T")


def ask_agent(question: Callable[[AgentLink], Awaitable[_T]]) -> _T:
    """Ask the agent of EDGECDN_HOME; raises AgentNotRunning, AgentHangs where one is there and says nothing."""
    from edgecdn.agent_link import AgentLink, find_agent
    from edgecdn.upkeep.agent_process import agent_pid

    home = home_dir(os.environ)
    address = find_agent(home)
    if address is None:
        pid = agent_pid(home)
        if pid is None:
            raise AgentNotRunning
        raise AgentHangs(", or is just starting or stopping", pid=pid)

    async def asked() -> _T:
        async with AgentLink(address) as link:
            try:
                return await question(link)
            except AgentNotRunning as error:
                if isinstance(error.__cause__, TimeoutError):
                    raise AgentHangs(": it does not answer", pid=address.run.pid) from error
                raise

    return run_cancellable(asked())
