"""The gateway for the ModelScope SDK: its names and listings passed on, its files from the cache and the lab first."""

from edgecdn_agent.gateway.modelscope.gate import ModelScopeGate

__all__ = ["ModelScopeGate"]
