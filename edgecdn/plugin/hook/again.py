"""An agent that goes away while a file is waited for: one that is back at once goes on where it was."""

from __future__ import annotations

from edgecdn.plugin.hook.agent import Agent, Unusable, find_agent, home_dir, lock_holder, polled
from edgecdn.plugin.hook.library import endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["polled_again"]

AWAY_S = 1.0
"""So long is a restart waited for: more may an agent that is gone not cost."""

STARTING_S = 3.0
"""So long where another process holds its home already: that is an agent which is starting."""

AGAIN_S = 0.05


def polled_again(agent: Agent, message: dict[str, Any]) -> tuple[Agent, dict[str, Any]]:
    """How it stands, and the agent that says so: perhaps another than the one that was asked. Raises as `polled`."""
    import time

    lost = 0.0
    while True:
        try:
            told = polled(agent, message)
            if told["state"] != "later":
                return agent, told
            gone: Exception = Unusable("it is stopping")
        except ConnectionError as error:  # not one that is silent: that has cost its second
            gone = error
        now = time.monotonic()
        lost = lost or now
        if now - lost > (STARTING_S if lock_holder(home_dir()) not in (None, "", agent.pid) else AWAY_S):
            raise gone
        time.sleep(AGAIN_S)
        back = find_agent(home_dir())
        agent = back if back is not None and back.serves(endpoint()) else agent
