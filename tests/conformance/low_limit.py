"""An agent that takes 1 MiB for what it is 50 GB for: files that clients do not take by plain HTTP."""

from __future__ import annotations

from tests.agent.agents import Agent, AgentLab

__all__ = ["low_limit_agent"]

_PATCH = """
import sys
if "edgecdn_agent" in " ".join(sys.orig_argv):
    from edgecdn_agent.gateway.serving import BlobServer
    assert BlobServer.__init__.__kwdefaults__["http_limit_bytes"] == 50_000_000_000
    BlobServer.__init__.__kwdefaults__["http_limit_bytes"] = 1 << 20
"""


class _LowLimitAgent(Agent):
    """Its Python reads the patch when it starts."""

    def variables(self, **settings: str) -> dict[str, str]:
        folder = self.base / "site"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(_PATCH)
        return super().variables(**settings) | {"PYTHONPATH": str(folder)}


async def low_limit_agent(lab: AgentLab, name: str) -> Agent:
    """One of a lab, running."""
    made = _LowLimitAgent(lab.base, name, lab.hubs, dict(lab.settings))
    lab.agents.append(made)
    await lab.start(made)
    return made
