"""One peer, broken or hostile, costs the others nothing: slow ones are cut, greedy ones are told to wait."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from edgecdn.digest import Digest, DigestKind
from edgecdn.lan_wire import encode_have_query, parse_have_answer
from edgecdn.pace import Pace
from edgecdn_agent.lan.guard import Bucket, Guard, Limits, Refused
from edgecdn_agent.lan.rechecks import Rechecks
from tests.agent.lan_lab import Lab, serving

QUICK = Limits(idle_s=0.4, body_s=0.4, stall_s=0.8)
HEAD = b"POST /edgecdn/v1/have HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"


@asynccontextmanager
async def small_reader(lab: Lab) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection whose receive buffer takes almost nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (lab.address.host, lab.address.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    try:
        yield reader, writer
    finally:
        writer.close()


async def gone(lab: Lab) -> None:
    async with asyncio.timeout(20):
        while len(lab.server.connections):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("first", [b"", b"GET /edg", HEAD, HEAD + b"x" * 500])
async def test_who_says_too_little_is_cut(tmp_path: Path, first: bytes) -> None:
    """FAULTS 16: nothing, a part of a request line, no body, a part of one; then a byte now and again."""
    async with serving(tmp_path, QUICK) as lab:
        reader, writer = await asyncio.open_connection(lab.address.host, lab.address.port)
        writer.write(first)

        async def trickle() -> None:
            while not writer.is_closing():
                writer.write(b"a")
                await asyncio.sleep(0.05)

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            trickling = group.create_task(trickle())
            with suppress(ConnectionError):
                await reader.read()
            trickling.cancel()
        writer.close()
        await gone(lab)


@pytest.mark.parametrize("rate", [None, 50_000_000])
async def test_who_takes_no_bytes_of_a_blob_is_cut(tmp_path: Path, rate: int | None) -> None:
    """FAULTS 16: and what it held is free again."""
    limits = Limits(stall_s=0.8, sends_in_all=1)
    async with serving(tmp_path, limits, upload=Pace(rate)) as lab:
        digest = lab.shelf.add(bytes(64 << 20))
        async with small_reader(lab) as (_, writer):
            writer.write(f"GET /edgecdn/v1/blobs/{digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            async with asyncio.timeout(20):
                while (await lab.ask("HEAD", f"/blobs/{digest}"))[0] != 429:
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(20):
                while (await lab.ask("HEAD", f"/blobs/{digest}"))[0] != 200:
                    await asyncio.sleep(0.02)
        assert not lab.shelf.withdrawn


async def test_who_takes_no_bytes_of_an_answer_is_cut(tmp_path: Path) -> None:
    """FAULTS 16: answers that are not files wait in memory; not for ever."""
    big = bytes(20 << 20)

    async def manifest(_repo: object, _commit: object) -> bytes:
        return big

    async with serving(tmp_path, QUICK, manifest=manifest) as lab, small_reader(lab) as (_, writer):
        writer.write(f"GET /edgecdn/v1/manifests/model/a/b/{'c' * 40} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        async with asyncio.timeout(20):
            while not len(lab.server.connections):
                await asyncio.sleep(0.01)
        await gone(lab)


async def test_who_reads_steadily_is_not_cut(tmp_path: Path) -> None:
    async with serving(tmp_path, QUICK) as lab:
        digest = lab.shelf.add(bytes(32 << 20))
        async with lab.session.get(f"{lab.url}/blobs/{digest}") as response:
            for _ in range(32):  # so much that a socket's buffers are no pause as long as the limit
                assert not any(await response.content.readexactly(1 << 20))
                await asyncio.sleep(0.05)  # 1.6 s in all, twice the limit
            assert not await response.content.read()


async def test_too_many_at_once_are_told_to_wait(tmp_path: Path) -> None:
    """FAULTS 45."""
    async with (
        serving(tmp_path, Limits(requests_at_once=1)) as lab,
        lab.session.get(f"{lab.url}/speed?bytes=268435456"),
    ):
        status, _, headers = await lab.ask("GET", "/hello")
        assert (status, headers["Retry-After"]) == (429, "1")


async def test_event_streams_have_a_limit_of_their_own(tmp_path: Path) -> None:
    """Many agents at one address listen for as long as they live, and ask all the same."""
    limits = Limits(streams=3, requests_at_once=1)
    async with serving(tmp_path, limits) as lab, AsyncExitStack() as stack:
        for _ in range(3):
            stream = await stack.enter_async_context(lab.session.get(f"{lab.url}/events"))
            assert stream.status == 200
        assert (await lab.ask("GET", "/hello"))[0] == 200
        status, _, headers = await lab.ask("GET", "/events")
        assert (status, headers["Retry-After"]) == (429, "1")


async def test_too_many_a_second_are_told_to_wait(tmp_path: Path) -> None:
    """FAULTS 45: of requests, and of digests in them."""
    limits = Limits(request_rate=0.1, request_burst=6, digest_rate=100.0, digest_burst=500.0)
    async with serving(tmp_path, limits) as lab:
        digests = [Digest.of(DigestKind.SHA256, str(n).encode()) for n in range(500)]
        query = encode_have_query(digests, inline=False)
        assert [(await lab.ask("POST", "/have", data=query))[0] for _ in range(2)] == [200, 429]
        statuses = [(await lab.ask("GET", "/hello"))[0] for _ in range(6)]
        assert statuses == [200] * 4 + [429] * 2


async def test_connections_have_a_limit(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(connections=3)) as lab:
        streams = [await asyncio.open_connection(lab.address.host, lab.address.port) for _ in range(3)]
        async with asyncio.timeout(20):
            while len(lab.server.connections) < 3:
                await asyncio.sleep(0.01)
        reader, extra = await asyncio.open_connection(lab.address.host, lab.address.port)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        for _, writer in [*streams, (reader, extra)]:
            writer.close()
        await gone(lab)
        assert (await lab.ask("GET", "/hello"))[0] == 200


def test_a_bucket_fills_at_its_rate_and_no_higher() -> None:
    bucket = Bucket(10.0, 20.0, 20.0, 0.0)
    assert [bucket.take(1, 0.0) for _ in range(21)] == [0.0] * 20 + [pytest.approx(0.1)]
    assert [bucket.take(1, 1.0) for _ in range(11)][-2:] == [0.0, pytest.approx(0.1)]
    assert bucket.take(1000, 1e6) == 0.0  # more than a burst is given at the price of one
    assert bucket.take(1, 1e6) > 0


def test_peers_do_not_share_their_limits_and_are_forgotten() -> None:
    guard = Guard(Limits(request_rate=1, request_burst=1), lambda: 0.0)
    with guard.request("10.0.0.1"):
        pass
    with pytest.raises(Refused), guard.request("10.0.0.1"):
        pass
    for number in range(5000):
        with guard.request(f"fd00::{number:x}"):
            pass
    assert len(guard._uses) <= 1024


async def test_rechecks_are_one_a_minute_and_survive_a_failure() -> None:
    now = [0.0]
    checked: list[Digest] = []
    done = asyncio.Event()

    async def recheck(digest: Digest) -> bool:
        checked.append(digest)
        done.set()
        raise OSError

    rechecks = Rechecks(recheck, 60.0, lambda: now[0])
    digest = Digest.of(DigestKind.SHA256, b"")
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(rechecks.run())
        for at_s in (0.0, 30.0, 59.0, 61.0, 62.0):
            now[0] = at_s
            rechecks.given("10.0.0.1", digest)
            rechecks.ask("10.0.0.1", digest)
        while len(checked) < 2:
            done.clear()
            await done.wait()
        running.cancel()
    assert checked == [digest, digest]


async def test_a_recheck_is_for_who_was_given_the_blob_lately() -> None:
    now = [0.0]
    checked: list[Digest] = []
    done = asyncio.Event()

    async def recheck(digest: Digest) -> bool:
        checked.append(digest)
        done.set()
        return True

    rechecks = Rechecks(recheck, 60.0, lambda: now[0])
    first, second, last = (Digest.of(DigestKind.SHA256, text) for text in (b"1", b"2", b"3"))
    rechecks.ask("10.0.0.1", first)
    rechecks.given("10.0.0.1", first)
    rechecks.ask("10.0.0.2", first)
    now[0] = 601.0
    rechecks.ask("10.0.0.1", first)
    for digest in (first, second, last):
        rechecks.given("10.0.0.1", digest)
    rechecks.ask("10.0.0.1", second)
    rechecks.ask("10.0.0.1", last)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(rechecks.run())
        await done.wait()
        running.cancel()
    assert checked == [second]


def test_one_address_has_a_quarter_of_what_is_sent() -> None:
    guard = Guard(Limits(sends_in_all=8), lambda: 0.0)
    with ExitStack() as stack:
        for host in ("10.0.0.1", "::ffff:10.0.0.1", "fd00::1", "fd00::2", "fd00:0:0:1::1", "127.0.0.1"):
            stack.enter_context(guard.send(host))
        for host in ("10.0.0.1", "fd00::3"):
            with pytest.raises(Refused), guard.send(host):
                pass
        for host in ("127.0.0.1", "::1"):
            stack.enter_context(guard.send(host))
        with pytest.raises(Refused), guard.send("10.0.0.2"):
            pass
    for host in ("10.0.0.1", "fd00::3"):
        with guard.send(host):
            pass
    assert not guard._sends


def test_listings_and_small_files_have_a_limit() -> None:
    guard = Guard(Limits(inline_bytes=100), lambda: 0.0)
    with ExitStack() as stack:
        for host in ("10.0.0.1", "10.0.0.1", "10.0.0.2"):
            stack.enter_context(guard.manifest(host))
        with pytest.raises(Refused), guard.manifest("10.0.0.1"):
            pass
    with guard.inline("10.0.0.1", 90):
        assert (guard.inline_left("10.0.0.1"), guard.inline_left("10.0.0.2")) == (10, 100)
    assert guard.inline_left("10.0.0.1") == 100


async def test_small_files_that_do_not_fit_are_told_of_all_the_same(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(inline_bytes=150)) as lab:
        digests = [lab.shelf.add(bytes([n]) * 100) for n in range(2)]
        for _ in range(2):
            body = (await lab.ask("POST", "/have", data=encode_have_query(digests, inline=True)))[1]
            told = parse_have_answer(body)
            assert [told[digest].data is not None for digest in digests] == [True, False]


async def test_listings_are_given_eight_at_a_time(tmp_path: Path) -> None:
    at_once, most, tree = 0, 0, bytes(1 << 20)

    async def manifest(_repo: object, _commit: object) -> bytes:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return tree

    async with serving(tmp_path, manifest=manifest) as lab:
        path = f"/manifests/model/a/b/{'c' * 40}"
        answers = await asyncio.gather(*(lab.ask("GET", path) for _ in range(20)))
        assert [(status, body == tree) for status, body, _ in answers] == [(200, True)] * 20
        assert (await lab.ask("HEAD", path))[:2] == (200, b"")
        assert most <= 8
