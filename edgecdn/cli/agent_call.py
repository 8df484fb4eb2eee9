"""How commands ask the agent of this user."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from edgecdn.cli.interrupt import run_cancellable
from edgecdn.errors import AgentNotRunning
from edgecdn.settings import home_dir

if TYPE_CHECKING:
    from edgecdn.agent_link import AgentLink

__all__ = ["ask_agent"]

_T = TypeVar("_T")


def ask_agent(question: Callable[[AgentLink], Awaitable[_T]]) -> _T:
    """Ask the agent of EDGECDN_HOME; raises AgentNotRunning."""
    from edgecdn.agent_link import AgentLink, find_agent

    address = find_agent(home_dir(os.environ))
    if address is None:
        raise AgentNotRunning

    async def asked() -> _T:
        async with AgentLink(address) as link:
            return await question(link)

    return run_cancellable(asked())
