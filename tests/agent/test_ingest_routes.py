"""Members of an ingest over HTTP: everybody is told in time, units are exact, and one hostile member costs little."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import BadInput
from edgecdn.lan_wire import Asker
from edgecdn.pace import Pace
from edgecdn.settings_values import Listen
from edgecdn.sources.faults import Broken, Busy, Misbehaved, Missing, SourceFault
from edgecdn.sources.peer import peer_session
from edgecdn_agent.ingest import link
from edgecdn_agent.ingest.link import Ended, IngestClient, NotThere, Silent
from edgecdn_agent.ingest.telling import Reader, Teller, Tempo
from edgecdn_agent.ingest.wire import MOST_LINE_BYTES, Have, LeaseAnswer, LeaseAsk, Told, encode_told
from edgecdn_agent.lan.guard import Guard, Limits, Refused
from tests.agent.ingest_lab import ME, UNIT, At, IngestLab, SharedFile, ingesting, node_of
from tests.agent.test_lan_limits import gone, small_reader

QUIET = Tempo(beat_s=600.0)
DIGEST = Digest.of(DigestKind.SHA256, b"a blob")


@asynccontextmanager
async def hearing(lab: IngestLab, who: IngestClient | None = None) -> AsyncIterator[AsyncGenerator[Told, None]]:
    async with asyncio.timeout(20), aclosing((who or lab.link).stream(lab.place, lab.digest)) as lines:
        yield lines


# Telling


async def test_all_there_is_comes_first_then_what_changes(tmp_path: Path) -> None:
    async with ingesting(tmp_path, have={0, 2}, tempo=QUIET) as lab, hearing(lab) as lines:
        told = await anext(lines)
        assert told == Told(size=3 * UNIT + 5, preparing=False, have=[Have(0, node_of(0)), Have(2, node_of(2))])
        assert lab.shared.heard == [(ME.id, "127.0.0.1", ME.lan_port)]
        lab.shared.add(1)
        assert await anext(lines) == Told(have=[Have(1, node_of(1), True)])
        lab.shared.listeners.tell(Told(leases=[(3, 4)], rate=5.0))
        assert await anext(lines) == Told(leases=[(3, 4)], rate=5.0)


async def test_what_happens_together_is_one_line(tmp_path: Path) -> None:
    async with ingesting(tmp_path, have=set(), tempo=QUIET) as lab, hearing(lab) as lines:
        await anext(lines)
        lab.shared.add(2, 0, 1)
        lab.shared.listeners.tell(Told(done=True))
        told = await anext(lines)
        assert [there.unit for there in told.have] == [2, 0, 1]
        assert told.done


async def test_between_two_lines_is_a_pause_and_no_more(tmp_path: Path) -> None:
    tempo = Tempo(batch_s=0.2, beat_s=600.0)
    async with ingesting(tmp_path, have=set(), tempo=tempo) as lab, hearing(lab) as lines:
        await anext(lines)
        lab.shared.add(0)
        assert (await anext(lines)).have[0].unit == 0  # at once: nothing was said just before
        lab.shared.add(1)
        await asyncio.sleep(0)
        lab.shared.add(2)
        assert [there.unit for there in (await anext(lines)).have] == [1, 2]


async def test_a_beat_comes_whether_or_not_there_is_news(tmp_path: Path) -> None:
    async with ingesting(tmp_path, tempo=Tempo(beat_s=0.01)) as lab, hearing(lab) as lines:
        await anext(lines)
        assert [(await anext(lines)).beat for _ in range(3)] == [1, 2, 3]


async def test_all_who_listen_hear_the_same(tmp_path: Path) -> None:
    async with ingesting(tmp_path, have=set(), tempo=QUIET) as lab, AsyncExitStack() as stack:
        all_lines = [await stack.enter_async_context(hearing(lab)) for _ in range(20)]
        for lines in all_lines:
            await anext(lines)
        assert lab.shared.listening == 1  # encoded once
        lab.shared.add(3)
        for lines in all_lines:
            assert await anext(lines) == Told(have=[Have(3, node_of(3), True)])


async def test_a_joiner_hears_everything_though_a_change_is_on_its_way(tmp_path: Path) -> None:
    async with ingesting(tmp_path, have=set(), tempo=Tempo(batch_s=0.05, beat_s=600.0)) as lab, hearing(lab) as early:
        await anext(early)
        lab.shared.add(0)
        await anext(early)
        lab.shared.add(1)  # waits for the pause to be over
        async with hearing(lab) as late:
            assert [there.unit for there in (await anext(late)).have] == [0, 1]
            assert [there.unit for there in (await anext(late)).have] == [1]  # once more does no harm


async def test_nothing_is_kept_for_who_left(tmp_path: Path) -> None:
    async with ingesting(tmp_path, tempo=Tempo(beat_s=0.01)) as lab:
        async with hearing(lab) as lines:
            await anext(lines)
            assert lab.shared.listening == 1
        async with asyncio.timeout(5):
            while lab.shared.listening:
                await asyncio.sleep(0.01)
        assert not lab.routes._tellers
        async with hearing(lab) as lines:
            assert (await anext(lines)).size


# The end of a stream


async def test_who_ends_its_part_says_so(tmp_path: Path) -> None:
    async with ingesting(tmp_path, tempo=QUIET) as lab, hearing(lab) as lines:
        await anext(lines)
        shared = lab.book.pop(lab.digest)
        shared.listeners.tell(Told())
        with pytest.raises(Ended) as ended:
            await anext(lines)
        assert not ended.value.refused
        async with hearing(lab) as again:
            with pytest.raises(NotThere):
                await anext(again)


async def test_what_may_be_shared_no_more_is_told_no_more(tmp_path: Path) -> None:
    """Nobody has to say so: it is looked at with each beat."""
    async with ingesting(tmp_path, tempo=Tempo(beat_s=0.02)) as lab, hearing(lab) as lines:
        await anext(lines)
        del lab.book[lab.digest]
        with pytest.raises(Ended):
            while True:
                await anext(lines)


async def test_a_server_that_stops_says_goodbye_and_then_refuses(tmp_path: Path) -> None:
    async with ingesting(tmp_path, tempo=QUIET) as lab, hearing(lab) as lines:
        await anext(lines)
        await lab.lan.server.close()
        with pytest.raises(Ended) as ended:
            await anext(lines)
        assert not ended.value.refused
        async with hearing(lab) as again:
            with pytest.raises(Ended) as ended:
                await anext(again)
        assert ended.value.refused


async def test_a_server_that_starts_again_tells_again(tmp_path: Path) -> None:
    async with ingesting(tmp_path, tempo=QUIET) as lab:
        await lab.lan.server.close()
        at = await lab.lan.server.start(Listen("127.0.0.1", 0))
        async with aclosing(lab.link.stream(At(at.host, at.port), lab.digest)) as lines:
            await anext(lines)
            lab.shared.add(3)
            assert await anext(lines) == Told(have=[Have(3, node_of(3), True)])
        assert len(await lab.link.unit(At(at.host, at.port), lab.digest, 0, UNIT)) == UNIT


@pytest.mark.parametrize(("readers", "pause_s"), [(1, 0.005), (25, 0.005), (200, 0.04)])
async def test_readers_that_are_many_are_told_less_often(tmp_path: Path, readers: int, pause_s: float) -> None:
    shared = SharedFile(tmp_path / "part", b"a" * 100, set())
    teller = Teller(shared, lambda: True, Tempo())
    for _ in range(readers):
        teller.join()
    teller._told_s = told_s = asyncio.get_running_loop().time()
    shared.add(0)
    assert teller._flushing is not None
    assert teller._flushing.when() >= told_s + pause_s - 1e-6
    teller.end()


@asynccontextmanager
async def speaker(
    answer: bytes, then: Callable[[asyncio.StreamWriter], object] = lambda _: None
) -> AsyncIterator[tuple[At, asyncio.Server]]:
    """A machine that answers every request with these bytes, and does something then. It keeps the connection."""
    writers: list[asyncio.StreamWriter] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            then(writer)

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    try:
        yield At(*server.sockets[0].getsockname()[:2]), server
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@asynccontextmanager
async def client() -> AsyncIterator[IngestClient]:
    async with asyncio.timeout(20), peer_session() as session:
        yield IngestClient(session, ME)


async def all_of(asking: IngestClient, place: At) -> list[Told]:
    async with aclosing(asking.stream(place, DIGEST)) as lines:
        return [told async for told in lines]


@pytest.mark.parametrize("listens", [True, False])
@pytest.mark.parametrize("said", [b"", STREAM, STREAM + chunk(b'{"beat":1}\n') + b"5\r\nab"])
@pytest.mark.parametrize("reset", [True, False])
async def test_the_dead_are_told_from_those_that_only_cut_us(listens: bool, said: bytes, reset: bool) -> None:
    """FAULTS 2: a process that is killed leaves a closed connection and a port that refuses."""

    def end(writer: asyncio.StreamWriter) -> None:
        if not listens:
            server.close()
        if reset:
            linger = b"\1\0\0\0\0\0\0\0"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with speaker(said, end) as (place, server), client() as asking:
        with pytest.raises(Ended) as ended:
            await all_of(asking, place)
        assert ended.value.refused is not listens


async def test_nobody_ever_listened() -> None:
    async with speaker(b"") as (place, server), client() as asking:
        server.close()
        with pytest.raises(Ended) as ended:
            await all_of(asking, place)
        assert ended.value.refused


@pytest.mark.parametrize("said", [b"", STREAM, STREAM + chunk(b'{"beat":1}\n'), STREAM + b"100\r\n" + b'{"have":[['])
async def test_who_says_nothing_is_silent(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_SILENT_S", 0.2)
    async with speaker(said) as (place, _), client() as asking:
        with pytest.raises(Silent):
            await all_of(asking, place)


async def test_who_ends_no_line_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_LINE_S", 0.1)

    async def trickle(writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(chunk(b" "))
            await asyncio.sleep(0.02)

    async with (
        asyncio.TaskGroup() as group,
        speaker(STREAM, lambda writer: group.create_task(trickle(writer))) as (place, _),
        client() as asking,
    ):
        with pytest.raises(Silent):
            await all_of(asking, place)


async def test_what_came_in_time_counts_though_we_were_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_SILENT_S", 0.2)
    written: list[asyncio.StreamWriter] = []
    async with (
        speaker(STREAM + chunk(b'{"beat":1}\n'), written.append) as (place, _),
        client() as asking,
        aclosing(asking.stream(place, DIGEST)) as lines,
    ):
        await anext(lines)
        waiting = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0)
        written[0].write(chunk(b'{"beat":2}\n'))
        time.sleep(0.3)
        assert (await waiting).beat == 2


# Hostile ones


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"\n",
        b'{"size":0}\n',
        b'{"lost":[-1]}\n',
        b"[" * 10_000 + b"\n",
        b"a" * (MOST_LINE_BYTES + 1),
        b'{"mood":"' + b"a" * MOST_LINE_BYTES + b'"}\n',
        b"{}\n" * 20_000,
        (b'{"mood":"' + b"a" * (MOST_LINE_BYTES - 50) + b'"}\n') * 8,
    ],
    ids=lambda line: f"{line[:12]!r} {len(line)}",
)
async def test_who_talks_nonsense_or_too_much_is_found_out(line: bytes) -> None:
    async with speaker(STREAM + chunk(line)) as (place, _), client() as asking:
        with pytest.raises(BadInput):
            await all_of(asking, place)


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (b"404 Not Found", NotThere),
        (b"403 Forbidden", NotThere),
        (b"426 Upgrade Required", NotThere),
        (b"429 Too Many Requests", Ended),
        (b"302 Found\r\nLocation: http://10.0.0.1/", BadInput),
        (b"500 No", BadInput),
        (b"200 OK\r\nContent-Encoding: gzip", BadInput),
    ],
)
async def test_other_answers_than_a_stream(status: bytes, fault: type[Exception]) -> None:
    async with speaker(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n") as (place, _), client() as asking:
        with pytest.raises(fault):
            await all_of(asking, place)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"200 OK\r\nContent-Length: 99999999\r\n\r\n", Misbehaved),
        (b"200 OK\r\nContent-Length: 9\r\n\r\n123456789", Misbehaved),
        (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"a" * 10) + b"0\r\n\r\n", Misbehaved),
        (b"200 OK\r\nConnection: close\r\n\r\n1234567890", Misbehaved),
        (b"200 OK\r\nContent-Length: 10\r\nContent-Encoding: gzip\r\n\r\n1234567890", Misbehaved),
        (b"206 Partial Content\r\nContent-Length: 10\r\n\r\n1234567890", Misbehaved),
        (b"302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n", Misbehaved),
        (b"404 Not Found\r\nContent-Length: 0\r\n\r\n", Missing),
        (b"429 No\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n", Busy),
        (b"500 No\r\nContent-Length: 0\r\n\r\n", Broken),
        (b"200 OK\r\nContent-Length: 10\r\n\r\n1234", Broken),
        (b"nonsense\r\n\r\n", Broken),
        (b"", Broken),
    ],
    ids=lambda part: str(part[:60]) if isinstance(part, bytes) else None,
)
async def test_a_unit_is_exact_or_a_fault(answer: bytes, fault: type[Exception]) -> None:
    said = (b"HTTP/1.1 " if answer else b"") + answer
    async with speaker(said, lambda writer: writer.transport.abort()) as (place, _), client() as asking:
        with pytest.raises(fault):
            await asking.unit(place, DIGEST, 0, 10)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"run":[2,1]}', b'{"wait_s":1,"run":[0,1]}', b'{"mood":"' + b"a" * 5000 + b'"}']
)
async def test_a_nonsensical_answer_to_a_question_is_a_fault(body: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with speaker(answer) as (place, _), client() as asking:
        with pytest.raises(Misbehaved):
            await asking.ask(place, DIGEST, LeaseAsk())


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1234"])
async def test_who_hangs_is_waited_for_no_longer_than_it_is_worth(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_ANSWER_S", 0.1)
    monkeypatch.setattr(link, "_UNIT_SILENT_S", 0.1)
    async with speaker(said) as (place, _), client() as asking:
        with pytest.raises(Broken):
            await asking.ask(place, DIGEST, LeaseAsk())
        with pytest.raises(Broken):
            await asking.unit(place, DIGEST, 0, 10)


async def test_who_gives_a_byte_now_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_UNIT_S", 0.2)

    async def trickle(writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"a")
            await asyncio.sleep(0.02)

    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    async with (
        asyncio.TaskGroup() as group,
        speaker(head, lambda writer: group.create_task(trickle(writer))) as (place, _),
        client() as asking,
    ):
        with pytest.raises(Broken):
            await asking.unit(place, DIGEST, 0, 1000)


# What is asked


async def test_questions_and_their_answers(tmp_path: Path) -> None:
    async with ingesting(tmp_path) as lab:
        ask = LeaseAsk(backlog=3, rate=1e6, reading=1, from_holder=True)
        for answer in (LeaseAnswer(run=(1, 4)), LeaseAnswer(wait_s=0.3), LeaseAnswer(coordinator="c" * 32)):
            lab.shared.answer = answer
            assert await lab.link.ask(lab.place, lab.digest, ask) == answer
        assert lab.shared.asked == [(ME.id, ask)] * 3
        await lab.link.give_back(lab.place, lab.digest, 2, 4)
        assert lab.shared.back == [(ME.id, 2, 4)]


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_units_are_exact(tmp_path: Path) -> None:
    async with ingesting(tmp_path) as lab:
        before = open_files()
        for unit in range(lab.shared.cut.count):
            span = lab.shared.cut.span(unit)
            got = await lab.link.unit(lab.place, lab.digest, unit, len(span))
            assert got == lab.data[span.start : span.stop]
        await lab.link.ask(lab.place, lab.digest, LeaseAsk())  # on the same connection: so the answers before it ended
        assert lab.lan.sent == {"127.0.0.1": len(lab.data)}
        assert open_files() <= before + 2  # the connection's two ends
        with pytest.raises(Misbehaved):
            await lab.link.unit(lab.place, lab.digest, 0, 7)


async def test_units_come_at_our_pace_and_go_at_theirs(tmp_path: Path) -> None:
    async with ingesting(tmp_path, 300_000, upload=Pace(1_000_000)) as lab, peer_session() as session:
        paced = IngestClient(session, ME, Pace(1_000_000))
        assert await paced.unit(lab.place, lab.digest, 0, 300_000) == lab.data


async def test_a_member_is_heard_though_we_moved(tmp_path: Path) -> None:
    async with ingesting(tmp_path, tempo=QUIET) as lab:
        lab.link.introduce(Asker("d" * 32, 99))
        async with hearing(lab) as lines:
            await anext(lines)
        assert lab.shared.heard == [("d" * 32, "127.0.0.1", 99)]


# What is not given


async def test_what_is_not_shared_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    """FAULTS 44: secret, unknown and senseless are all alike."""
    async with ingesting(tmp_path, have={0}) as lab:
        headers = {"Edgecdn-Agent": str(ME)}
        nothing = await lab.lan.ask("GET", "/nothing", headers=headers)
        assert nothing[0] == 404
        del nothing[2]["Date"]
        asked = [
            *((method, path) for name in (DIGEST.hex, "ab" * 32, "..", "x" * 64, "%00", "1")
              for method, path in [
                ("GET", f"/ingest/{name}"), ("POST", f"/ingest/{name}/lease"),
                ("POST", f"/ingest/{name}/lease/back"), ("GET", f"/ingest/{name}/units/0"),
            ]),
            *(("GET", f"/ingest/{lab.digest.hex}/units/{unit}") for unit in ("1", "4", "999999", "-1", "1e3", "0x0", "")),
        ]  # fmt: skip
        for method, path in asked:
            answer = await lab.lan.ask(method, path, headers=headers)
            del answer[2]["Date"]
            assert answer == nothing, path
        with pytest.raises(Missing):
            await lab.link.unit(lab.place, lab.digest, 1, UNIT)
        with pytest.raises(Missing):
            await lab.link.ask(lab.place, DIGEST, LeaseAsk())


@pytest.mark.parametrize("header", [None, "", "me", f"{ME.id}:0", f"{ME.id}:99999", f"{ME.id[1:]}:80"])
async def test_who_does_not_say_who_it_is_takes_no_part(tmp_path: Path, header: str | None) -> None:
    async with ingesting(tmp_path) as lab:
        headers = {} if header is None else {"Edgecdn-Agent": header}
        path = f"/ingest/{lab.digest.hex}"
        for method, more in (("GET", ""), ("POST", "/lease"), ("POST", "/lease/back")):
            assert (await lab.lan.ask(method, path + more, headers=headers))[0] == 400
        assert not lab.shared.heard


async def test_who_is_barred_is_told_nothing(tmp_path: Path) -> None:
    async with ingesting(tmp_path) as lab, hearing(lab) as lines:
        lab.shared.barred.add(ME.id)
        with pytest.raises(BadInput):
            await anext(lines)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"backlog":-1}', b"a" * 2000, b"[" * 200_000])
async def test_nonsense_is_refused(tmp_path: Path, body: bytes) -> None:
    async with ingesting(tmp_path) as lab:
        for path in ("lease", "lease/back"):
            answer = await lab.lan.ask(
                "POST", f"/ingest/{lab.digest.hex}/{path}", data=body, headers={"Edgecdn-Agent": str(ME)}
            )
            assert answer[0] == 400
        assert (lab.shared.asked, lab.shared.back) == ([], [])


async def test_a_body_that_never_ends_is_cut(tmp_path: Path) -> None:
    async with ingesting(tmp_path, limits=Limits(idle_s=0.4, body_s=0.2)) as lab:
        reader, writer = await asyncio.open_connection(lab.place.host, lab.place.lan_port)
        head = f"POST /edgecdn/v1/ingest/{lab.digest.hex}/lease HTTP/1.1\r\nHost: a\r\nEdgecdn-Agent: {ME}\r\n"
        writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                await reader.read()
        writer.close()


async def test_a_file_that_is_shorter_than_it_was_is_no_whole_answer(tmp_path: Path) -> None:
    async with ingesting(tmp_path) as lab:
        os.truncate(lab.shared.path, UNIT + 100)
        assert len(await lab.link.unit(lab.place, lab.digest, 0, UNIT)) == UNIT
        for unit, length in ((1, UNIT), (2, UNIT)):
            with pytest.raises(Broken):
                await lab.link.unit(lab.place, lab.digest, unit, length)


# Limits


async def test_who_takes_nothing_of_a_unit_is_cut_and_its_place_is_free(tmp_path: Path) -> None:
    """FAULTS 16."""
    limits = Limits(stall_s=0.5, sends_in_all=1)
    async with ingesting(tmp_path, 64 << 20, limits=limits) as lab, small_reader(lab.lan) as (_, writer):
        path = f"/edgecdn/v1/ingest/{lab.digest.hex}/units/"
        for unit in range(64):  # more than the sockets between us hold
            writer.write(f"GET {path}{unit} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        async with asyncio.timeout(20):
            while not lab.lan.sent:
                await asyncio.sleep(0.01)
            await gone(lab.lan)
        assert lab.lan.sent.total() < 64 << 20
        assert len(await lab.link.unit(lab.place, lab.digest, 0, UNIT)) == UNIT


async def test_who_comes_when_too_much_is_sent_is_refused_at_once(tmp_path: Path) -> None:
    """FAULTS 45: and is told when to ask again."""
    async with ingesting(tmp_path, 64 << 20, limits=Limits(sends_in_all=1)) as lab:
        with lab.lan.server._guard.send("127.0.0.1"), pytest.raises(Busy) as busy:
            await lab.link.unit(lab.place, lab.digest, 0, UNIT)
        assert busy.value.retry_after_s == 1.0
        assert len(await lab.link.unit(lab.place, lab.digest, 0, UNIT)) == UNIT


async def test_who_takes_no_lines_is_cut(tmp_path: Path) -> None:
    """FAULTS 16: and the others hear everything all the while."""
    limits = Limits(stall_s=0.5)
    big = Told(have=[Have(unit, os.urandom(32)) for unit in range(30_000)])
    async with ingesting(tmp_path, limits=limits, tempo=QUIET) as lab, small_reader(lab.lan) as (_, writer):
        path = f"/edgecdn/v1/ingest/{lab.digest.hex}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nEdgecdn-Agent: {ME}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            while not lab.shared.listening:
                await asyncio.sleep(0.01)
        async with hearing(lab) as lines:
            await anext(lines)
            for _ in range(3):
                lab.shared.listeners.tell(big)
                assert await anext(lines) == big
            async with asyncio.timeout(10):
                while len(lab.lan.server.connections) > 1:
                    await asyncio.sleep(0.02)
            lab.shared.add(3)
            assert await anext(lines) == Told(have=[Have(3, node_of(3), True)])


async def test_only_so_much_waits_for_one_who_does_not_keep_up() -> None:
    reader = Reader()
    line = encode_told(Told(have=[Have(unit, bytes(32)) for unit in range(30_000)]))
    reader.say(line)
    assert await reader.take() == line
    for _ in range(2 * MOST_LINE_BYTES // len(line) + 1):
        reader.say(line)
    with pytest.raises(TimeoutError):
        await reader.take()


async def test_streams_have_a_limit(tmp_path: Path) -> None:
    """FAULTS 45: of their own, so that questions are answered all the same."""
    limits = Limits(streams=2, requests_at_once=1)
    async with ingesting(tmp_path, limits=limits, tempo=QUIET) as lab, AsyncExitStack() as stack:
        for _ in range(2):
            await anext(await stack.enter_async_context(hearing(lab)))
        async with hearing(lab) as lines:
            with pytest.raises(Ended) as ended:
                await anext(lines)
        assert not ended.value.refused
        assert await lab.link.ask(lab.place, lab.digest, LeaseAsk()) == lab.shared.answer


async def test_who_asks_too_often_is_told_to_wait(tmp_path: Path) -> None:
    """FAULTS 45: questions, and units that are not there."""
    for asking in ("ask", "unit"):
        async with ingesting(tmp_path, have=set(), limits=Limits(request_rate=0.01, request_burst=3)) as lab:
            faults = []
            for _ in range(4):
                try:
                    if asking == "ask":
                        await lab.link.ask(lab.place, lab.digest, LeaseAsk())
                    else:
                        await lab.link.unit(lab.place, lab.digest, 0, UNIT)
                except SourceFault as fault:
                    faults.append(type(fault))
            assert faults == ([Busy] if asking == "ask" else [Missing, Missing, Missing, Busy])


async def test_units_that_are_taken_may_be_as_many_as_the_line_takes(tmp_path: Path) -> None:
    async with ingesting(tmp_path, limits=Limits(request_rate=0.01, request_burst=3)) as lab:
        for _ in range(20):
            await lab.link.unit(lab.place, lab.digest, 0, UNIT)
        with pytest.raises(Busy):  # five bytes are no unit
            for _ in range(4):
                await lab.link.unit(lab.place, lab.digest, 3, 5)


def test_a_refund_is_no_credit() -> None:
    guard = Guard(Limits(request_rate=1, request_burst=2), lambda: 0.0)
    for _ in range(10):
        guard.refund("10.0.0.1", 1.0)
    guard.spend("10.0.0.1")
    guard.spend("10.0.0.1")
    with pytest.raises(Refused):
        guard.spend("10.0.0.1")


def test_first_lines_are_few_at_once_but_for_a_lab_on_one_machine() -> None:
    guard = Guard(Limits(first_lines=1), lambda: 0.0)
    with guard.first_line("10.0.0.1"), guard.first_line("10.0.0.2"), pytest.raises(Refused):
        guard.first_line("10.0.0.1").__enter__()
    with guard.first_line("10.0.0.1"), guard.first_line("127.0.0.1"), guard.first_line("127.0.0.1"):
        pass


async def test_what_is_outside_the_lab_gets_nothing(tmp_path: Path) -> None:
    async with ingesting(tmp_path, allows=lambda host: False) as lab, hearing(lab) as lines:
        with pytest.raises((NotThere, Ended)):
            await anext(lines)
        with suppress(aiohttp.ClientError):
            assert (await lab.lan.ask("GET", f"/ingest/{lab.digest.hex}/units/0"))[0] == 403
