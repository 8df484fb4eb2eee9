"""The test hub on a machine of the lab: the line to it is that machine's cable."""

from __future__ import annotations

from typing import Any, Self

from tests.hub.process import HubProcess
from tests.lab.network import Node

__all__ = ["LabHub"]


class LabHub(HubProcess):
    """A HubProcess whose process is on `node`; its counters and faults are reached in there."""

    def __init__(self, node: Node, *arguments: str) -> None:
        super().__init__("--host", node.address, "--cdn-host", node.address, *arguments)
        self.node = node

    def __enter__(self) -> Self:
        # A child is of the namespace of the thread that starts it.
        return self.node.space.enter(super().__enter__)

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        return self.node.space.enter(lambda: super(LabHub, self)._control(method, path, body))
