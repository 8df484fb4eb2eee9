"""What the swarm gave is counted once, also over connections that ended between two looks."""

from __future__ import annotations

from collections import Counter

from edgecdn_agent.swarm.meter import SwarmMeter
from edgecdn_agent.swarm.session import PeerTraffic, Swarm


def connection(address: str, up_bytes: int, port: int = 1) -> PeerTraffic:
    return PeerTraffic(address, port, 0, up_bytes, 0, 0)


def counting() -> tuple[SwarmMeter, Counter[str]]:
    sent: Counter[str] = Counter()

    def count(address: str, bytes_: int) -> None:
        sent[address] += bytes_

    return SwarmMeter(Swarm(), count), sent


def test_a_connection_is_counted_as_it_goes() -> None:
    meter, sent = counting()
    for total in (100, 250, 250):
        meter.count({7: total}, [(7, connection("10.0.0.2", total))])
    assert sent == {"10.0.0.2": 250}


def test_what_it_took_after_the_last_look_is_counted_too() -> None:
    meter, sent = counting()
    meter.count({7: 100}, [(7, connection("10.0.0.2", 100))])
    meter.count({7: 900}, [])
    meter.count({7: 900}, [])
    assert sent == {"10.0.0.2": 900}


def test_of_one_that_was_never_seen_it_is_not_known_who_it_was() -> None:
    meter, sent = counting()
    meter.count({7: 900}, [])
    meter.count({7: 1000}, [(7, connection("10.0.0.2", 150))])  # given while it was looked: more by connections
    assert sent == {"": 900, "10.0.0.2": 150}


def test_of_several_that_ended_it_is_not_known_which() -> None:
    meter, sent = counting()
    meter.count({7: 20}, [(7, connection("10.0.0.2", 10)), (7, connection("10.0.0.3", 10))])
    meter.count({7: 80}, [])
    assert sent == {"10.0.0.2": 10, "10.0.0.3": 10, "": 60}
