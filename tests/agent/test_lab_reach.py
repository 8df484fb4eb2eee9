"""Who is near enough to be spoken with."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from edgecdn_agent.lab.reach import Reach
from tests.agent.test_addresses import CAMPUS, ETH, LO, interface


@pytest.mark.parametrize(
    ("address", "is_near"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("192.168.7.99", True),
        ("::ffff:192.168.7.99", True),
        ("::ffff:c0a8:0763", True),
        ("fe80::abcd", True),
        ("fe80::abcd%eth0", True),
        ("fe80::abcd%2", True),
        ("192.168.8.1", False),
        ("10.0.0.1", False),
        ("130.75.1.3", False),
        ("2001:db8::3", False),
        ("::ffff:8.8.8.8", False),
        ("::192.168.7.99", False),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_by_default_private_networks_on_link(address: str, is_near: bool) -> None:
    assert Reach((), [LO, ETH, CAMPUS]).allows(address) is is_near


@pytest.mark.parametrize(
    "text",
    ["", " ", "localhost", "192.168.7", "192.168.7.20 ", "0xc0.168.7.20", "192.168.7.020", "127.0.0.1:80", "[::1]"]
    + ["::1\0", "%", "%eth0", "3232237332", "::1%" + "x" * 10**6, "١٩٢.168.7.20", "\ud800"],
)
def test_garbage_is_nobody(text: str) -> None:
    assert not Reach((), [LO, ETH]).allows(text)


def test_what_the_user_set_narrows_and_widens() -> None:
    reach = Reach([ip_network("130.75.0.0/16")], [LO, ETH, CAMPUS])
    reach.name("far.example", ["10.9.9.9"])
    assert [reach.allows(a) for a in ("130.75.200.1", "127.0.0.1", "192.168.7.99", "10.9.9.9")] == [
        True,
        True,
        False,
        False,
    ]


def test_agents_the_user_named_are_within_reach_where_they_are_now() -> None:
    reach = Reach((), [LO])
    reach.name("far.example", ["203.0.113.5", "nonsense"])
    assert reach.allows("203.0.113.5")
    assert not reach.allows("203.0.113.6")
    reach.name("far.example", ["203.0.113.6"])
    assert not reach.allows("203.0.113.5")


def test_it_follows_the_machines_addresses() -> None:
    reach = Reach((), [LO, ETH])
    reach.update([LO, interface("eth0", "10.20.0.7/16")])
    assert reach.allows("10.20.255.1")
    assert not reach.allows("192.168.7.99")


def test_ranges_for_the_swarm_are_what_is_allowed() -> None:
    reach = Reach([ip_network("10.0.0.0/9"), ip_network("10.128.0.0/9"), ip_network("fd00::/64")])
    assert reach.ranges() == [
        ("10.0.0.0", "10.255.255.255"),
        ("127.0.0.0", "127.255.255.255"),
        ("::1", "::1"),
        ("fd00::", "fd00::ffff:ffff:ffff:ffff"),
    ]


def test_it_tells_when_it_became_another() -> None:
    told: list[None] = []
    reach = Reach((), [LO])
    reach.subscribe(told.append)
    reach.update([LO])
    assert told == []
    reach.name("far.example", ["203.0.113.5"])
    reach.name("far.example", ["203.0.113.5"])
    assert len(told) == 1
    reach.update([LO, ETH])
    assert len(told) == 2
