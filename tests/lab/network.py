"""A switch with machines on it, made of network namespaces; nothing of it touches the machine the tests run on."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tests.lab.links import Link, Rate
from tests.lab.namespaces import PREFIX, Namespace, sweep

__all__ = ["Network", "Node"]

_NETWORK = "10.77.0"
_BITS = 16
_counter = itertools.count(1)


class Node:
    """A place on the network: a namespace, its cable and its address."""

    def __init__(self, name: str, space: Namespace, switch: Namespace, number: int, rate: Rate) -> None:
        self.name = name
        self.space = space
        self.link = Link(space, switch, f"port{number}", rate)
        self.address = f"{_NETWORK}.{number}"
        # Link-local addresses at once, instead of after a second in which nobody can listen on them.
        space.write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")
        self._configure()

    def command(self, *command: str) -> list[str]:
        """Make the command that runs another one here, where the host name is the machine's; the process keeps its id."""
        named = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
        return self.space.command("unshare", "--uts", "sh", "-c", named, self.name, *command)

    def _configure(self) -> None:
        self.space.ip("address", "add", f"{self.address}/{_BITS}", "broadcast", "+", "dev", "eth0")
        self.space.ip("link", "set", "eth0", "up")
        self.space.ip("route", "replace", "224.0.0.0/4", "dev", "eth0")

    def move(self, address: str) -> None:
        """Get another address, as from DHCP after a change of network: the old one is gone at once."""
        self.space.ip("address", "flush", "dev", "eth0", "scope", "global")
        self.address = address
        self._configure()

    def interface(self, *, up: bool) -> None:
        """Turn the interface of the machine itself off or on, as suspend does; its routes come back with it."""
        if up:
            self._configure_again()
        else:
            self.space.ip("link", "set", "eth0", "down")

    def _configure_again(self) -> None:
        self.space.ip("link", "set", "eth0", "up")
        self.space.ip("route", "replace", "224.0.0.0/4", "dev", "eth0")

    def blackhole(self, other: Node) -> None:
        """Send nothing to `other` any more, silently; it still sends here and hears nothing back."""
        self.space.ip("route", "replace", "blackhole", f"{other.address}/32")

    def unblackhole(self, other: Node) -> None:
        """Answer again."""
        self.space.ip("route", "del", "blackhole", f"{other.address}/32")


class Network:
    """`with Network() as network: a = network.node("a", 100)`: everything is removed at the end, come what may."""

    def __init__(self) -> None:
        self._prefix = f"{PREFIX}{os.getpid()}-{next(_counter)}-"
        self._stack = ExitStack()
        self._numbers = itertools.count(1)
        self.nodes: dict[str, Node] = {}

    def __enter__(self) -> Self:
        sweep()
        try:
            self._switch = self._space("switch")
            self.bridge("br0")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.nodes.clear()
        self._stack.close()

    def node(self, name: str, rate: Rate | float | None = None) -> Node:
        """Plug one more machine in; `rate` in Mbit/s, both ways unless it is a Rate."""
        shaped = rate if isinstance(rate, Rate) else Rate.both(rate)
        made = Node(name, self._space(name), self._switch, next(self._numbers), shaped)
        self.nodes[name] = made
        return made

    def bridge(self, name: str) -> None:
        """Add a switch; `br0` is there from the start, another one makes a partition (Link.attach)."""
        # Without snooping, multicast reaches every port, as on the unmanaged switch of a lab.
        kind = ("type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0")
        self._switch.ip("link", "add", name, *kind)
        self._switch.ip("link", "set", name, "up")

    def _space(self, name: str) -> Namespace:
        space = Namespace(self._prefix + name)
        self._stack.callback(space.remove)
        return space
