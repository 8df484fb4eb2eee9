"""What a job makes of peers, and when commits that only peers vouch for are asked about."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from aiohttp import ClientSession

from edgecdn.lan_wire import Asker
from edgecdn.names import CommitId, RepoId, RepoType
from edgecdn.pace import Pace
from edgecdn.sources import Source
from edgecdn.transfer.carrier import Carrier
from edgecdn_agent.jobs.confirm import Pauses
from edgecdn_agent.jobs.peers import JobLab
from edgecdn_agent.lab.peers import Peer, PeerChanged, PeerJoined, PeerLeft, Peers
from edgecdn_agent.lab.reach import Reach

PEER = Peer("b" * 32, "bench-2", "1", "127.0.0.1", 8378, 0, ("127.0.0.1",), 0.0, 0.0)


async def test_a_peer_is_one_source_as_long_as_it_is_where_it_was() -> None:
    async with ClientSession() as session:
        peers = Peers(session, Asker("a" * 32, 1), Reach())
        lab = JobLab(peers, session, Pace(None), cast("Carrier", None))
        heard: list[Source] = []
        stop = lab.watch(heard.append)
        for event in (PeerJoined(PEER), PeerChanged(PEER), PeerLeft(PEER, ""), PeerJoined(replace(PEER, last_seen=9))):
            peers.tell(event)
        assert len(heard) == 3
        assert len(set(map(id, heard))) == 1
        peers.tell(PeerJoined(replace(PEER, lan_port=8400)))
        peers.tell(PeerJoined(replace(PEER, id="c" * 32, name="bench-3")))
        assert len(set(map(id, heard))) == 3
        stop()


async def test_sources_of_ever_new_ids_are_not_kept_for_ever() -> None:
    async with ClientSession() as session:
        peers = Peers(session, Asker("a" * 32, 1), Reach())
        lab = JobLab(peers, session, Pace(None), cast("Carrier", None))
        lab.watch(lambda _source: None)
        for number in range(5000):
            peers.tell(PeerJoined(replace(PEER, id=f"{number:032x}")))
        assert len(lab._made) <= 1024


def test_what_no_hub_confirms_is_asked_about_less_and_less_often() -> None:
    pair = (RepoId(RepoType.MODEL, "org/name"), CommitId("a" * 40))
    other = (pair[0], CommitId("b" * 40))
    pauses, now_s, tried = Pauses(), 0.0, []
    while now_s < 7 * 86400.0:
        due = pauses.due([pair, other], now_s)
        assert other in due  # one is not held up by another
        if pair in due:
            tried.append(now_s)
            pauses.refused(pair, now_s)
        now_s += 600.0
    gaps = [after - before for before, after in zip(tried, tried[1:], strict=False)]
    assert gaps[:4] == [600.0, 1200.0, 2400.0, 4800.0]
    assert set(gaps[8:]) == {86400.0}
    assert pauses.due([other], now_s) == [other]
    assert pauses.due([pair], now_s) == [pair]  # it was not listed any more: a new claim begins anew
