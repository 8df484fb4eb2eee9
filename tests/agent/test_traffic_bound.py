"""Counts of bytes stay small however many peers there were."""

from __future__ import annotations

from edgecdn_agent.traffic import Traffic


def test_who_comes_late_is_counted_with_others() -> None:
    traffic = Traffic(lambda: 0.0)
    for n in range(1200):
        traffic.sent(f"peer {n}", 1)
    parties = {party.name: party for party in traffic.parties()}
    assert len(parties) == 1001
    assert parties["others"].out_bytes == 200
    assert traffic.out_lan == 1200
