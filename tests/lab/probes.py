"""Small measurements between two machines of the lab, over plain sockets."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable

from tests.lab.network import Node

__all__ = ["heard", "mbit_between", "tell_group"]

_PORT = 5201
_LIMIT_S = 20.0
_CHUNK = 256 * 1024


def mbit_between(sender: Node, receiver: Node, size: int) -> float:
    """Send `size` bytes over one connection; the rate after a first tenth, in which buffers fill."""
    listener = receiver.space.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((receiver.address, _PORT))
    listener.listen()
    outward = sender.space.socket()
    outward.settimeout(_LIMIT_S)
    outward.connect((receiver.address, _PORT))
    inward, _ = listener.accept()
    inward.settimeout(_LIMIT_S)
    thread = threading.Thread(target=outward.sendall, args=(bytes(size),))
    thread.start()
    try:
        return _rate(inward, size)
    finally:
        thread.join()
        for opened in (listener, outward, inward):
            opened.close()


def _rate(inward: socket.socket, size: int) -> float:
    got, started, first = 0, 0.0, 0
    while got < size:
        got += len(inward.recv(_CHUNK))
        if not started and got >= size // 10:
            started, first = time.monotonic(), got
    return (got - first) * 8 / 1e6 / (time.monotonic() - started)


def heard(node: Node, group: tuple[str, int]) -> Callable[[float], bytes]:
    """Join a multicast group; the function returned waits for one datagram, b"" when none came in time."""
    listener = node.space.socket(socket.SOCK_DGRAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", group[1]))
    member = struct.pack("4s4s", socket.inet_aton(group[0]), socket.inet_aton(node.address))
    listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)

    def wait(limit_s: float) -> bytes:
        with listener:
            listener.settimeout(limit_s)
            try:
                return listener.recv(2048)
            except TimeoutError:
                return b""

    return wait


def tell_group(node: Node, group: tuple[str, int], data: bytes) -> None:
    """Send one datagram to a multicast group, by the machine's own route."""
    with node.space.socket(socket.SOCK_DGRAM) as sender:
        sender.sendto(data, group)
