"""The registry of peers, on real sockets."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, web

from edgecdn.lan_wire import Asker, encode_refusal
from edgecdn.settings_values import Listen
from edgecdn_agent.lab.candidates import MOST_CANDIDATES, MOST_UNPROVEN_EACH, Candidates, Timing
from edgecdn_agent.lab.peers import Peer, PeerChanged, PeerEvent, PeerJoined, PeerLeft, Peers
from edgecdn_agent.lab.reach import Reach
from tests.agent.speaking_peer import SpeakingPeer, speaking, until
from tests.agent.test_addresses import LO, interface

ME = Asker("a" * 32, 8378)
QUICK = Timing(dial_s=1.0, silence_s=1.0, first_retry_s=0.02, longest_retry_s=0.1, nudge_s=0.02)


class Registry(Peers):
    """Peers that remember what they told."""

    events: list[PeerEvent]

    def kinds(self) -> list[type]:
        return [type(event) for event in self.events]


@asynccontextmanager
async def registry(timing: Timing = QUICK, **how: Any) -> AsyncIterator[Registry]:
    """Peers at work; at the end no task and no connection of theirs is left."""
    connector = TCPConnector(limit=0)
    async with ClientSession(connector=connector) as session:
        reach = how.pop("reach", None) or Reach((), [LO])
        peers = Registry(session, ME, reach, timing=timing, **how)
        peers.events = []
        peers.subscribe(peers.events.append)
        running = asyncio.ensure_future(peers.run())
        await asyncio.sleep(0)
        try:
            yield peers
        finally:
            running.cancel()
            await asyncio.wait([running])
            assert running.cancelled()
            assert not connector._acquired
            assert peers.all() == []
    assert [t for t in asyncio.all_tasks() if "edgecdn_agent" in repr(t)] == []


async def test_a_peer_joins_by_a_hint_and_is_known() -> None:
    async with speaking() as peer, registry() as peers:
        peers.suggest("127.0.0.1", peer.port)
        assert await until(peers.all) <= 3
        (known,) = peers.all()
        assert (known.id, known.name, known.version, known.host) == (peer.id, "bench-2", "1.0.0", "127.0.0.1")
        assert (known.lan_port, known.swarm_port, known.addresses) == (peer.port, 8379, ("127.0.0.1",))
        assert peers.get(peer.id) == known
        assert peers.get("c" * 32) is None
        assert peers.told() == [peer.address]
        assert peer.asked == [str(ME)]
        await until(lambda: peers.all()[0].last_seen > known.last_seen)
        assert peers.kinds() == [PeerJoined]


async def test_hints_that_come_before_the_start_are_kept() -> None:
    async with speaking() as peer, ClientSession() as session:
        peers = Peers(session, ME, Reach((), [LO]), timing=QUICK)
        peers.suggest("127.0.0.1", peer.port)
        for _ in range(2):  # and it can be started again
            running = asyncio.ensure_future(peers.run())
            await until(peers.all)
            running.cancel()
            await asyncio.wait([running])
            assert peers.all() == []
            peers.suggest("127.0.0.1", peer.port)


async def test_one_that_is_killed_is_gone_and_found_again() -> None:
    async with speaking() as peer, registry() as peers:
        peers.suggest("127.0.0.1", peer.port)
        await until(peers.all)
        await peer.kill()
        assert await until(lambda: not peers.all()) <= 5
        await peer.start()
        await until(peers.all)
        assert peers.kinds() == [PeerJoined, PeerLeft, PeerJoined]


async def test_one_that_hangs_is_gone() -> None:
    async with speaking() as peer, registry() as peers:
        peers.suggest("127.0.0.1", peer.port)
        await until(peers.all)
        peer.speaks.clear()
        took_s = await until(lambda: not peers.all())
        assert 0.5 < took_s < 5
        assert isinstance(peers.events[-1], PeerLeft)
        assert peers.events[-1].reason == "silent"


def test_with_the_usual_timing_a_silent_peer_is_gone_within_15_s() -> None:
    assert Timing().silence_s + 1 <= 15


async def test_what_a_peer_says_is_passed_on() -> None:
    async with speaking() as peer, registry() as peers:
        peers.suggest("127.0.0.1", peer.port)
        await until(lambda: peer.lines and peers.all())
        peer.say(changed=True, whatever={"new": [1]})
        await until(lambda: PeerChanged in peers.kinds())


async def test_ourselves_at_another_address_are_no_peer() -> None:
    async with speaking(id=ME.id) as mirror, registry() as peers:
        for _ in range(3):
            peers.suggest("127.0.0.1", mirror.port)
            await until(lambda: mirror.asked and len(peers._candidates) == 0)
        assert len(mirror.asked) == 1
        assert peers.events == []


async def test_two_addresses_of_one_agent_are_one_peer() -> None:
    async with speaking() as one, registry() as peers, speaking(host="::1") as other:
        peers.suggest("127.0.0.1", one.port)
        await until(peers.all)
        peers.suggest("::1", other.port)
        await until(lambda: peers.all()[0].addresses == ("127.0.0.1", "::1"))
        await until(lambda: not other.lines)
        assert peers.kinds() == [PeerJoined]
        # the first address dies: the other is used
        await one.kill()
        await until(lambda: peers.kinds() == [PeerJoined, PeerLeft, PeerJoined])
        assert peers.all()[0].host == "::1"
        await one.start()


async def test_addresses_of_ipv6_and_mapped_ones() -> None:
    async with speaking(host="::1") as six, speaking(id="c" * 32) as four, registry() as peers:
        peers.suggest("0:0:0:0:0:0:0:1", six.port)
        peers.suggest("::ffff:127.0.0.1", four.port)
        peers.suggest("127.0.0.1", four.port)
        await until(lambda: len(peers.all()) == 2)
        assert {p.host for p in peers.all()} == {"::1", "127.0.0.1"}
        assert f"[::1]:{six.port}" in peers.told()
        assert len(four.asked) == 1


async def test_equal_names_are_told_apart() -> None:
    async with speaking(id="c" * 32) as one, speaking(id="d" * 32) as two, registry(own_name="bench-2") as peers:
        peers.suggest("127.0.0.1", one.port)
        await until(peers.all)
        peers.suggest("127.0.0.1", two.port)
        await until(lambda: len(peers.all()) == 2)
        assert [p.name for p in peers.all()] == ["bench-2-cccc", "bench-2-dddd"]


async def test_a_name_is_nobody_elses_even_when_the_longer_one_is_taken() -> None:
    names = {"c" * 32: "bench-2", "d" * 32: "bench-2-bbbb", "e" * 32: "bench-2-" + "b" * 8, "b" * 32: "bench-2"}
    async with AsyncExitStack() as stack:
        peers = await stack.enter_async_context(registry())
        for id_, name in names.items():
            peer = await stack.enter_async_context(speaking(id=id_, name=name))
            peers.suggest("127.0.0.1", peer.port)
            await until(partial(peers.get, id_))
        assert {p.id: p.name for p in peers.all()} == {**names, "b" * 32: "bench-2-" + "b" * 12}


async def test_two_clocks() -> None:
    async with speaking(fields={"time": time.time() - 3.15e8}) as peer, registry() as peers:
        peers.suggest("127.0.0.1", peer.port)
        await until(peers.all)
        assert abs(peers.all()[0].clock_offset_s + 3.15e8) < 5


async def test_a_newer_protocol_that_still_speaks_ours_is_understood() -> None:
    fields = {"protocol": 2, "oldest": 1, "moons": [{"a": None}]}
    async with speaking(fields=fields) as peer, registry() as peers:
        peers.suggest("127.0.0.1", peer.port)
        await until(peers.all)


@pytest.mark.parametrize("how", [{"fields": {"protocol": 9, "oldest": 7}}, {"refuses": encode_refusal()}])
async def test_another_protocol_is_said_once_and_asked_again_much_later(
    how: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    timing = Timing(nudge_s=0.0, refused_s=0.3, hint_lifetime_s=10)
    async with speaking(**how) as peer, registry(timing) as peers:
        with caplog.at_level(logging.WARNING):
            began = time.monotonic()
            while len(peer.asked) < 3:
                peers.suggest("127.0.0.1", peer.port)
                await asyncio.sleep(0.01)
        assert time.monotonic() - began >= 0.6
        assert [r.message for r in caplog.records if "another protocol" in r.message] == [caplog.records[0].message]
        assert peers.events == []


DEEP = b'{"hello":{"x":' + b"[" * 7000 + b"]" * 7000 + b"}}\n"
BOMBS = {
    "nothing": b"\n",
    "text": b"<html>sign in</html>\n",
    "deep": DEEP,
    "deeper": b"[" * 60000 + b"\n",
    "endless": b"x" * 10**7,
    "long line": b'{"hello":"' + b"x" * 10**6 + b'"}\n',
    "other first line": b'{"beat":1}\n',
    "wrong types": b'{"hello":{"protocol":"1"}}\n',
    "huge number": b'{"hello":{"protocol":1' + b"0" * 5000 + b"}}\n",
    "bad text": b'{"hello":"\xff\xfe\xed\xa0\x80"}\n',
    "flood": b'{"hello":null}\n' * 10**5,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=list(BOMBS))
async def test_row_8_garbage_for_a_hello_is_nobody(bomb: bytes) -> None:
    async with speaking(first=bomb) as bad, speaking(id="c" * 32) as good, registry() as peers:
        peers.suggest("127.0.0.1", bad.port)
        await until(lambda: len(bad.asked) >= 2)
        peers.suggest("127.0.0.1", good.port)
        await until(peers.all)
        assert [p.id for p in peers.all()] == [good.id]


@pytest.mark.parametrize(
    "how",
    [
        {"answers": web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})},
        {"answers": web.Response(status=204)},
        {"answers": web.Response(status=500)},
        {"refuses": b"x" * 10**6},
        {"headers": {"Content-Encoding": "gzip"}},
        {"headers": {"Content-Encoding": "br"}, "first": b""},
    ],
)
async def test_answers_that_are_no_stream_are_nobody(how: dict[str, Any]) -> None:
    async with speaking(**how) as bad, registry() as peers:
        peers.suggest("127.0.0.1", bad.port)
        await until(lambda: len(bad.asked) >= 2)
        assert peers.events == []


async def test_one_that_takes_connections_and_says_nothing_holds_nobody_up() -> None:
    async with speaking(first=b"") as mute, speaking(id="c" * 32) as good, registry(Timing(dial_s=0.1)) as peers:
        mute.speaks.clear()
        peers.suggest("127.0.0.1", mute.port)
        await until(lambda: mute.lines)
        peers.suggest("127.0.0.1", good.port)
        assert await until(peers.all) <= 3


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "../../etc"},
        {"id": "B" * 32},
        {"name": "\x1b[2J"},
        {"name": "a\u202eb"},
        {"name": "x" * 10**4},
        {"lan_port": 0},
        {"swarm_port": 70000},
        {"time": -1},
        {"peers": ["127.0.0.1:1"] * 65},
        {"peers": ["evil.example:80"]},
    ],
)
async def test_row_8_a_hello_with_impossible_fields_is_nobody(fields: dict[str, Any]) -> None:
    async with speaking(fields=fields) as bad, registry() as peers:
        peers.suggest("127.0.0.1", bad.port)
        await until(lambda: len(bad.asked) >= 2)
        assert peers.events == []


async def test_row_8_a_peer_that_turns_bad_is_dropped() -> None:
    for line in (DEEP, b"x" * 10**6, b'{"changed":true}\n' * 1000):
        async with speaking() as peer, registry(Timing()) as peers:
            peers.suggest("127.0.0.1", peer.port)
            await until(lambda: peer.lines and peers.all())
            peer.say_bytes(line)
            await until(lambda: not peers.all())
            assert peers.kinds().count(PeerChanged) <= 60


async def test_row_45_a_flood_of_hints_stays_small() -> None:
    async with speaking() as peer, registry(Timing()) as peers:
        peers.suggest("127.0.0.1", peer.port)
        await until(peers.all)
        began = time.monotonic()
        for number in range(100_000):
            peers.suggest(
                f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1 + number % 65535, by=f"{number % 50}"
            )
            if number % 1000 == 0:
                await asyncio.sleep(0)
        assert time.monotonic() - began < 20
        assert len(peers._candidates) <= MOST_CANDIDATES
        assert len(asyncio.all_tasks()) < MOST_CANDIDATES + 50
        assert [p.id for p in peers.all()] == [peer.id]


async def test_row_45_a_peer_that_announces_100_000_others_fills_its_quota_and_no_more() -> None:
    async with speaking() as peer, registry(Timing()) as peers:
        peers.suggest("127.0.0.1", peer.port)
        await until(lambda: peer.lines and peers.all())
        for start in range(0, 100_000, 64):
            peer.say(peers=[f"127.{n >> 16}.{n >> 8 & 255}.{n & 255}:9" for n in range(start, start + 64)])
        await until(lambda: PeerLeft in peers.kinds())
        assert isinstance(peers.events[-1], PeerLeft)
        assert peers.events[-1].reason == "it talks too much"
        assert len(peers._candidates) <= MOST_UNPROVEN_EACH + 1
        assert len(asyncio.all_tasks()) < MOST_UNPROVEN_EACH + 50


def test_row_45_one_teller_does_not_fill_the_table() -> None:
    now_s = 0.0
    table = Candidates(Timing(), lambda: now_s)
    for port in range(1, 1000):
        table.hear("10.0.0.1", port, "teller")
    assert len(table) == MOST_UNPROVEN_EACH
    assert table.hear("10.0.0.2", 1, "another") is not None
    for candidate in table:
        candidate.failures = 1
    assert table.hear("10.0.0.3", 1, "teller") is not None  # what never answered gives way
    assert table.hear("10.0.0.4", 1, "teller") is None  # but not at any rate
    assert len(table) == MOST_UNPROVEN_EACH + 1


def test_a_hint_without_success_is_forgotten_in_time() -> None:
    now_s = 0.0
    table = Candidates(Timing(), lambda: now_s)
    hint, named = table.hear("10.0.0.1", 1, ""), table.name("host", 1)
    assert hint is not None
    now_s = 601.0
    assert not table.is_worth(hint)
    assert table.is_worth(named)
    assert table.hear("10.0.0.1", 1, "") is None
    assert table.is_worth(hint)  # heard again


def test_pauses_double_up_to_a_minute() -> None:
    candidate = Candidates(Timing(), lambda: 0.0).name("host", 1)
    pauses = [candidate.failed(Timing()) for _ in range(40)]
    for pause_s, longest_s in zip(pauses, [1, 2, 4, 8, 16, 32, *[60] * 34], strict=True):
        assert longest_s * 0.8 <= pause_s <= longest_s


async def test_peers_tell_of_each_other() -> None:
    async with speaking(id="c" * 32) as third, speaking(id="d" * 32) as later, speaking() as peer, registry() as peers:
        peer.fields["peers"] = [third.address, "8.8.8.8:53", "[fe80::1]:1"]
        peers.suggest("127.0.0.1", peer.port)
        await until(lambda: len(peers.all()) == 2)
        await until(lambda: peer.lines)
        peer.say(peers=[later.address])
        await until(lambda: len(peers.all()) == 3)
        assert len(peers._candidates) == 3


async def test_strangers_out_of_reach_are_never_connected() -> None:
    async with speaking() as peer, registry() as peers:
        for host in ("8.8.8.8", "130.75.1.2", "localhost", "", "127.0.0.1\r\nX: y", "::1%" + "x" * 99):
            peers.suggest(host, peer.port)
        for port in (0, -1, 65536, 10**30):
            peers.suggest("127.0.0.1", port)
        assert len(peers._candidates) == 0


async def test_agents_the_user_named_are_tried_for_ever() -> None:
    timing = Timing(first_retry_s=0.01, longest_retry_s=0.02, hint_lifetime_s=0.1)
    async with speaking() as peer:
        await peer.kill()
        async with registry(timing, named=[Listen("localhost", peer.port)]) as peers:
            await asyncio.sleep(0.3)  # longer than a hint lives
            await peer.start()
            await until(peers.all)


async def test_a_banned_peer_is_let_go_and_not_met_again() -> None:
    async with speaking() as peer, registry() as peers:
        peers.suggest("127.0.0.1", peer.port)
        await until(peers.all)
        peers.ban(peer.id, "gave wrong bytes")
        await until(lambda: not peers.all())
        assert isinstance(peers.events[-1], PeerLeft)
        assert peers.events[-1].reason == "banned"
        await until(lambda: len(peer.asked) == 2)
        for _ in range(20):
            peers.suggest("127.0.0.1", peer.port)
            await asyncio.sleep(0.005)
        assert len(peer.asked) == 2
        assert peers.kinds() == [PeerJoined, PeerLeft]


async def test_a_new_id_at_the_same_place_is_banned_too() -> None:
    async with speaking() as liar, speaking(id="c" * 32) as other, registry() as peers:
        for peer in (liar, other):
            peers.suggest("127.0.0.1", peer.port)
        await until(lambda: len(peers.all()) == 2)
        peers.ban(liar.id, "gave wrong bytes")
        await until(lambda: len(peers.all()) == 1)
        asked = len(liar.asked)
        liar.id = "d" * 32
        peers._candidates.forget(next(c for c in peers._candidates if c.port == liar.port))
        peers.suggest("127.0.0.1", liar.port)
        await until(lambda: len(liar.asked) > asked)
        await asyncio.sleep(0.05)
        assert [p.id for p in peers.all()] == [other.id]  # on loopback others are others


async def test_an_honest_agent_is_not_banned_for_a_liar_that_used_its_id() -> None:
    async with speaking() as liar, speaking(host="127.0.0.2") as honest, registry() as peers:
        peers.suggest("127.0.0.1", liar.port)
        await until(peers.all)
        (met,) = peers.all()
        peers.suggest("127.0.0.2", honest.port)
        await until(lambda: len(peers.all()[0].addresses) == 2)
        await liar.kill()  # before it is found out
        await until(lambda: [p.host for p in peers.all()] == ["127.0.0.2"])
        peers.ban(met, "gave wrong bytes")
        assert peers.is_banned(met)
        assert not peers.is_banned(peers.all()[0])
        assert peers.kinds() == [PeerJoined, PeerLeft, PeerJoined]


async def test_one_that_left_is_banned_where_it_was() -> None:
    async with speaking() as liar, registry() as peers:
        peers.suggest("127.0.0.1", liar.port)
        await until(peers.all)
        (met,) = peers.all()
        await liar.kill()
        await until(lambda: not peers.all())
        peers.ban(liar.id, "gave wrong bytes")
        peers.ban("f" * 32, "never met")
        await liar.start()
        assert peers.is_banned(met)


def test_ids_on_one_machine_are_one_machine() -> None:
    def at(id_: str, host: str, port: int) -> Peer:
        return Peer(id_, id_, "1", host, port, 0, (host,), 0.0, 0.0)

    assert Peers.hosts(at(f"{n:032x}", "10.0.0.9", 1000 + n) for n in range(50)) == 1
    assert Peers.hosts([at("a", "10.0.0.9", 1), at("b", "10.0.0.8", 1), at("c", "fe80::1%eth0", 1)]) == 3
    assert [at("a", "127.0.0.1", 1).machine, at("a", "::1", 2).machine] == ["127.0.0.1:1", "[::1]:2"]


async def test_a_ban_ends() -> None:
    async with speaking() as peer, registry(Timing(first_retry_s=0.01, ban_s=0.1)) as peers:
        peers.suggest("127.0.0.1", peer.port)
        await until(peers.all)
        peers.ban(peer.id, "test")
        await until(lambda: peers.kinds() == [PeerJoined, PeerLeft, PeerJoined])


async def test_after_sleep_all_links_are_made_anew() -> None:
    async with speaking() as peer, registry() as peers:
        peers.suggest("127.0.0.1", peer.port)
        await until(peers.all)
        peers.moved(woke=True)
        await until(lambda: peers.kinds() == [PeerJoined, PeerLeft, PeerJoined])


async def test_row_18_links_out_of_the_new_reach_end_and_all_others_stay() -> None:
    class Moving(Reach):
        near = True

        def allows(self, address: str) -> bool:
            return self.near and super().allows(address)

    here, reach = interface("eth0", "127.0.0.1/8"), Moving((), [LO])
    async with speaking() as peer, registry(reach=reach) as peers:
        peers.suggest("127.0.0.1", peer.port)
        await until(peers.all)
        reach.update([here])
        peers.moved(woke=False)
        await asyncio.sleep(0.05)
        assert peers.kinds() == [PeerJoined]
        reach.near = False
        peers.moved(woke=False)
        await until(lambda: not peers.all())
        await until(lambda: len(peers._candidates) == 0)


async def test_a_listener_may_ban_whom_it_hears_of() -> None:
    async with speaking() as peer, registry() as peers:
        peers.subscribe(lambda event: peers.ban(event.peer.id, "no") if isinstance(event, PeerJoined) else None)
        peers.suggest("127.0.0.1", peer.port)
        await until(lambda: peers.kinds() == [PeerJoined, PeerLeft])


async def test_many_peers_join_at_once() -> None:
    others = [SpeakingPeer(id=f"{n:032x}", name=f"bench-{n}", beat_s=1.0) for n in range(50)]
    for other in others:
        await other.start()
    try:
        async with registry(Timing()) as peers:
            for other in others:
                peers.suggest("127.0.0.1", other.port)
            assert await until(lambda: len(peers.all()) == 50) <= 3
            assert len(peers.told()) == 50
    finally:
        for other in others:
            await other.kill()
