"""The cable between a machine and the switch, with its rate: what `ip link` and `tc tbf` do to it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.namespaces import Namespace, run_ip

__all__ = ["Link", "Rate"]

_QUEUE_S = 0.05
"""How long a packet waits at most, as in a switch with ordinary buffers."""
_LEAST_QUEUE_BYTES = 32 * 1024
_BURST_S = 0.002
_LEAST_BURST_BYTES = 3 * 1024
_WHOLE_BURST_BYTES = 68 * 1024
"""From 40 Mbit/s on bursts hold what the kernel hands over at once: cut into packets, these cost more than all else."""
_FAST_MBIT = 40
_MOST_BURST_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Rate:
    """Mbit/s from the machine (`up`) and to it (`down`); None is as fast as it goes."""

    up: float | None = None
    down: float | None = None

    @classmethod
    def both(cls, mbit: float | None) -> Rate:
        """The same in both directions."""
        return cls(mbit, mbit)


class Link:
    """A pair of interfaces: `eth0` in the machine, `port` on the switch. Each end shapes what it sends."""

    def __init__(self, machine: Namespace, switch: Namespace, port: str, rate: Rate) -> None:
        self._machine, self._switch, self._port = machine, switch, port
        switch.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
        switch.ip("link", "set", port, "master", "br0", "up")
        self.set_rate(rate)

    def set_rate(self, rate: Rate) -> None:
        """Change the rate, also while bytes flow."""
        _shape(self._machine, "eth0", rate.up)
        _shape(self._switch, self._port, rate.down)

    def plug(self) -> None:
        """Put the cable in again."""
        self._switch.ip("link", "set", self._port, "up")

    def pull(self) -> None:
        """Pull the cable at the switch: the machine sees its interface without a carrier."""
        self._switch.ip("link", "set", self._port, "down")

    def detach(self) -> None:
        """Leave the carrier but take the port off the switch: silence both ways, as behind a broken switch."""
        self._switch.ip("link", "set", self._port, "nomaster")

    def attach(self, bridge: str = "br0") -> None:
        """Put the port on a switch; another one than `br0` is a partition of the lab."""
        self._switch.ip("link", "set", self._port, "master", bridge)

    def set_mtu(self, size: int) -> None:
        """Change the MTU at both ends, as on a network whose MTU is small."""
        self._machine.ip("link", "set", "eth0", "mtu", str(size))
        self._switch.ip("link", "set", self._port, "mtu", str(size))


def _shape(where: Namespace, interface: str, mbit: float | None) -> None:
    base = ("-n", where.name, "qdisc")
    if mbit is None:
        if "tbf" in run_ip(*base, "show", "dev", interface, program="tc"):
            run_ip(*base, "del", "dev", interface, "root", program="tc")
        return
    per_s = mbit * 1e6 / 8
    least = _WHOLE_BURST_BYTES if mbit >= _FAST_MBIT else _LEAST_BURST_BYTES
    burst = int(min(max(per_s * _BURST_S, least), _MOST_BURST_BYTES))
    limit = burst + int(max(per_s * _QUEUE_S, _LEAST_QUEUE_BYTES))
    shaped = ("tbf", "rate", f"{int(mbit * 1e6)}bit", "burst", str(burst), "limit", str(limit))
    run_ip(*base, "replace", "dev", interface, "root", *shaped, program="tc")
