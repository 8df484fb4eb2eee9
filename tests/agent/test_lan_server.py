"""What the LAN server answers: exact bytes, the same 404 for all that is not given, no sense in nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp
import pytest

from edgecdn.digest import DigestKind
from edgecdn.lan_wire import (
    BlobState,
    Hello,
    encode_have_query,
    encode_rotten,
    parse_event,
    parse_have_answer,
    parse_hello,
    parse_ref,
    parse_refusal,
)
from edgecdn.names import CommitId, RepoId, Revision
from edgecdn.pace import Pace
from edgecdn.settings_values import Listen
from edgecdn_agent.holdings.held_files import Holding
from edgecdn_agent.lan.guard import Limits
from edgecdn_agent.lan.parts import LanParts
from edgecdn_agent.lan.server import LanServer
from edgecdn_agent.listeners import Listeners
from tests.agent.lan_lab import AGENT, HELLO, FolderShelf, serving

DATA = bytes(range(256)) * 1200
UNKNOWN = "ab" * 32


async def test_hello(tmp_path: Path) -> None:
    async with serving(tmp_path) as lab:
        status, body, headers = await lab.ask("GET", "/hello")
        assert (status, parse_hello(body), headers["Edgecdn-Protocol"]) == (200, HELLO, "1")


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 16_385, 262_144, 262_145])
@pytest.mark.parametrize("rate", [None, 2_000_000])
async def test_sizes_at_the_edges_are_exact(tmp_path: Path, size: int, rate: int | None) -> None:
    """FAULTS 10."""
    data = os.urandom(size)
    async with serving(tmp_path, upload=Pace(rate)) as lab:
        digest = lab.shelf.add(data)
        status, body, headers = await lab.ask("GET", f"/blobs/{digest}")
        assert (status, body, headers["Content-Length"]) == (200, data, str(size))
        assert headers["ETag"] == f'"{digest}"'
        assert headers["Edgecdn-Protocol"] == "1"
        for start, stop in [(0, 1), (size // 2, size), (size - 1, size)] if size else []:
            status, body, headers = await lab.ask(
                "GET", f"/blobs/{digest}", headers={"Range": f"bytes={start}-{stop - 1}"}
            )
            assert (status, body) == (206, data[start:stop])
            assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        status, body, headers = await lab.ask("HEAD", f"/blobs/{digest}")
        assert (status, body, headers["Content-Length"]) == (200, b"", str(size))
        async with asyncio.timeout(20):
            while lab.sent["127.0.0.1"] != size + (2 + size - size // 2 if size else 0):
                await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        ("bytes=5-9", 206, DATA[5:10]),
        ("bytes=5-", 206, DATA[5:]),
        ("bytes=-7", 206, DATA[-7:]),
        ("bytes=-9999999999", 206, DATA),
        ("bytes=0-9999999999999999999", 206, DATA),
        ("bytes=9-5", 416, b""),
        ("bytes=0-1,5-6", 416, b""),
        ("bytes=-", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=99999999999999999999999-", 416, b""),
        ("bytes=0-99999999999999999999999", 416, b""),
        (f"bytes={len(DATA)}-", 416, b""),
        ("bytes=\u0665-\u0666", 416, b""),
        ("bytes=" + "0-1," * 500, 416, b""),
        ("lines=1-2", 200, DATA),
    ],
)
async def test_ranges(tmp_path: Path, asked: str, status: int, body: bytes) -> None:
    """FAULTS 9."""
    async with serving(tmp_path) as lab:
        digest = lab.shelf.add(DATA)
        answer = await lab.ask("GET", f"/blobs/{digest}", headers={"Range": asked})
        assert answer[:2] == (status, body)
        if status == 416:
            assert answer[2]["Content-Range"] == f"bytes */{len(DATA)}"


async def test_a_range_of_another_file_is_not_mixed_in(tmp_path: Path) -> None:
    async with serving(tmp_path) as lab:
        digest = lab.shelf.add(DATA)
        headers = {"Range": "bytes=5-9", "If-Range": f'"{UNKNOWN}"'}
        assert (await lab.ask("GET", f"/blobs/{digest}", headers=headers))[:2] == (200, DATA)


async def test_secret_unknown_and_nonsense_are_told_apart_by_nobody(tmp_path: Path) -> None:
    """FAULTS 44: byte for byte."""
    async with serving(tmp_path) as lab:
        secret = lab.shelf.add(DATA, secret=True)
        names = [str(secret), UNKNOWN, "ab" * 20, "xyz", "AB" * 32, "..%2f..%2fetc%2fpasswd", "%00", "a" * 3000]
        seen = set()
        for kind in ("blobs", "trees"):
            for name in names:
                status, body, headers = await lab.ask("GET", f"/{kind}/{name}")
                headers.pop("Date")
                seen.add((status, body, tuple(headers.items())))
        assert len(seen) == 1
        assert next(iter(seen))[0] == 404
        have = await lab.ask("POST", "/have", data=encode_have_query([secret], inline=True))
        assert have[:2] == (200, b'{"blobs":{}}')
        for digest in (str(secret), UNKNOWN):
            assert (await lab.ask("POST", "/rotten", json={"digest": digest, "piece": 0}))[:2] == (204, b"")
        assert not lab.shelf.rechecked


async def test_have_tells_what_is_held_and_what_is_coming(tmp_path: Path) -> None:
    coming = BlobState(77, complete=False)
    async with serving(tmp_path, downloading=dict) as lab:
        large, small = lab.shelf.add(DATA), lab.shelf.add(b"{}", DigestKind.GIT_SHA1)
        other = lab.shelf.add(b"secret", secret=True)
        object.__setattr__(lab.server._parts, "downloading", lambda: {other: coming})
        for inline in (False, True):
            query = encode_have_query([large, small, other], inline=inline)
            status, body, _ = await lab.ask("POST", "/have", data=query)
            assert status == 200
            told = parse_have_answer(body)
            assert told[large] == BlobState(len(DATA), root=lab.shelf.trees[large].root.hex())
            assert told[small] == BlobState(2, data=b"{}" if inline else None)
            assert told[other] == coming
        assert (await lab.ask("GET", f"/trees/{large}"))[1] == lab.shelf.trees[large].layer
        assert (await lab.ask("HEAD", f"/trees/{large}"))[:2] == (200, b"")


async def test_small_files_fill_an_answer_and_no_more(tmp_path: Path) -> None:
    async with serving(tmp_path) as lab:
        digests = [lab.shelf.add(os.urandom(65_536)) for _ in range(80)]
        told = parse_have_answer((await lab.ask("POST", "/have", data=encode_have_query(digests, inline=True)))[1])
        assert len(told) == 80
        assert sum(state.data is not None for state in told.values()) == 64


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"digests":3}', b'{"digests":["zz"]}', b"\xff\xfe", b'{"digests":' + b"[" * 200_000,
        b'{"x":' + b'{"x":' * 90_000, b'{"digests":[],"inline":1}', json.dumps({"digests": [UNKNOWN] * 4097}).encode(),
    ],
)  # fmt: skip
async def test_nonsense_is_refused(tmp_path: Path, body: bytes) -> None:
    """FAULTS 8."""
    async with serving(tmp_path) as lab:
        for path in ("/have", "/rotten"):
            assert (await lab.ask("POST", path, data=body))[0] == 400
        assert (await lab.ask("GET", "/hello"))[0] == 200


async def test_what_is_too_long_is_not_read(tmp_path: Path) -> None:
    """FAULTS 8, 45: neither said so in advance, nor found out, nor packed small."""
    async with serving(tmp_path) as lab:

        async def endless() -> object:
            for _ in range(100):
                yield bytes(64 << 10)

        assert (await lab.ask("POST", "/have", data=bytes(600 << 10)))[0] == 413
        with suppress(OSError):  # the rest of it met a closed connection
            assert (await lab.ask("POST", "/have", data=endless()))[0] == 413
        packed = {"Content-Encoding": "gzip"}
        assert (await lab.ask("POST", "/have", data=b"\x1f\x8b" + bytes(1000), headers=packed))[0] == 400


async def test_manifests_and_refs(tmp_path: Path) -> None:
    commit = CommitId("c" * 40)

    async def manifest(repo: RepoId, asked: CommitId) -> bytes | None:
        return f"{repo} {asked}".encode() if asked == commit else None

    async def ref(repo: RepoId, revision: Revision) -> CommitId | None:
        return commit if (str(repo), str(revision)) in {("datasets/a/b", "refs/pr/1"), ("gpt2", "main")} else None

    async with serving(tmp_path, manifest=manifest, ref=ref) as lab:
        assert (await lab.ask("GET", f"/manifests/dataset/a/b/{commit}"))[1] == f"datasets/a/b {commit}".encode()
        assert (await lab.ask("GET", f"/manifests/model/gpt2/{commit}"))[1] == f"gpt2 {commit}".encode()
        assert parse_ref((await lab.ask("GET", "/refs/dataset/a/b/refs/pr/1"))[1]) == commit
        assert parse_ref((await lab.ask("GET", "/refs/model/gpt2/main"))[1]) == commit
        nothing = (await lab.ask("GET", f"/blobs/{UNKNOWN}"))[:2]
        for path in (f"/manifests/model/a/b/{'d' * 40}", "/refs/model/a/b/main", "/nowhere", "/refs/model"):
            assert (await lab.ask("GET", path))[:2] == nothing
        for path in ("/refs/model/%2e%2e/b/main", "/refs/thing/a/b/main", "/manifests/model/a/b/short"):
            assert (await lab.ask("GET", path))[0] == 400


async def test_another_protocol_is_told_which_are_spoken(tmp_path: Path) -> None:
    async with serving(tmp_path) as lab:
        for version in ("0", "2", "99999999999999999", "1.0", "\u0661", ""):
            status, body, headers = await lab.ask("GET", "/hello", headers={"Edgecdn-Protocol": version})
            assert (status, headers["Edgecdn-Protocol"]) == (426, "1")
            assert parse_refusal(body) == "speaks protocols 1 to 1, this agent 1 to 1"
        newer = json.dumps({"digests": [], "inline": False, "since": 3, "nested": {"a": [1]}})
        assert (await lab.ask("POST", "/have", data=newer, headers={"Edgecdn-Protocol": "1"}))[0] == 200


async def test_strangers_get_nothing(tmp_path: Path) -> None:
    near = {"127.0.0.1"}
    async with serving(tmp_path, allows=lambda host: host in near) as lab:
        assert (await lab.ask("GET", "/hello"))[0] == 200
        near.clear()  # the address went away: the connection that is open is of no use either
        assert (await lab.ask("GET", "/hello"))[:2] == (403, b"")
        reader, writer = await asyncio.open_connection(lab.address.host, lab.address.port)
        writer.write(b"GET /edgecdn/v1/hello HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(ConnectionError):
            assert await reader.read() == b""
            raise ConnectionResetError
        writer.close()


async def test_a_blob_called_rotten_is_read_again_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as lab:
        digest, other = lab.shelf.add(DATA), lab.shelf.add(b"x" * 99)
        await lab.ask("POST", "/rotten", data=encode_rotten(digest, 0))  # it was not given yet
        assert (await lab.ask("GET", f"/blobs/{digest}"))[0] == 200
        assert (await lab.ask("HEAD", f"/trees/{other}"))[0] == 200
        for asked in (other, other, digest):  # one a minute, of one peer
            assert (await lab.ask("POST", "/rotten", data=encode_rotten(asked, 0)))[0] == 204
        async with asyncio.timeout(20):
            while not lab.shelf.rechecked:
                await asyncio.sleep(0.01)
        assert lab.shelf.rechecked == [other]


async def test_who_asks_is_a_hint(tmp_path: Path) -> None:
    hints: list[tuple[str, int]] = []
    async with serving(tmp_path, suggest=lambda host, port: hints.append((host, port))) as lab:
        for agent in (f"{AGENT}:9000", "nonsense", f"{AGENT}:0", f"{AGENT}:99999"):
            await lab.ask("GET", "/hello", headers={"Edgecdn-Agent": agent})
        assert hints == [("127.0.0.1", 9000)]


async def test_events(tmp_path: Path) -> None:
    changes: Listeners[None] = Listeners()
    peers = ["10.0.0.2:8378"]
    limits = Limits(beat_s=0.2, change_s=0.05)
    parts = {"changes": [lambda call: changes.subscribe(lambda _: call())], "told_peers": lambda: list(peers)}
    async with serving(tmp_path, limits, **parts) as lab, lab.session.get(f"{lab.url}/events") as stream:

        async def following() -> object:
            async with asyncio.timeout(20):
                return parse_event(await stream.content.readline())

        first = parse_event(await stream.content.readline())
        assert isinstance(first.hello, Hello)
        for _ in range(50):
            changes.tell(None)
        seen = [parse_event(await stream.content.readline()) for _ in range(3)]
        assert [event.changed for event in seen] == [True, False, False]
        assert [event.beat for event in seen[1:]] == [1, 2]
        peers.append("10.0.0.3:8378")
        async with asyncio.timeout(20):
            while (event := parse_event(await stream.content.readline())).peers is None:
                pass
        assert event.peers == peers
        await lab.server.close()  # ends the streams, at once
        async with asyncio.timeout(1.5):
            await stream.content.read()


async def test_a_new_peer_is_told_before_the_beat(tmp_path: Path) -> None:
    changes: Listeners[None] = Listeners()
    peers = ["10.0.0.2:8378"]
    parts = {"peer_changes": [lambda call: changes.subscribe(lambda _: call())], "told_peers": lambda: list(peers)}
    async with serving(tmp_path, Limits(beat_s=60), **parts) as lab, lab.session.get(f"{lab.url}/events") as stream:
        assert parse_event(await stream.content.readline()).hello is not None
        peers.append("10.0.0.3:8378")
        changes.tell(None)
        async with asyncio.timeout(20):
            event = parse_event(await stream.content.readline())
        assert (event.changed, event.peers) == (False, peers)


async def test_speed(tmp_path: Path) -> None:
    async with serving(tmp_path) as lab:
        status, body, _ = await lab.ask("GET", "/speed?bytes=3000001")
        assert (status, body) == (200, bytes(3_000_001))
        for bad in ("", "?bytes=0", "?bytes=-1", "?bytes=1e3", "?bytes=99999999999", "?bytes=" + "9" * 5000):
            assert (await lab.ask("GET", f"/speed{bad}"))[0] == 400
        async with AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(lab.session.get(f"{lab.url}/speed?bytes=268435456"))
            status, _, headers = await lab.ask("GET", "/speed?bytes=10")
            assert (status, headers["Retry-After"]) == (429, "1")


async def test_a_port_that_is_taken_is_replaced(tmp_path: Path) -> None:
    """FAULTS 22."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = LanServer(
            LanParts(shelf=FolderShelf(tmp_path), hello=lambda: HELLO, allows=lambda _: True),
        )
        real = await server.start(Listen("127.0.0.1", port))
        try:
            assert real.port not in (0, port)
            _, writer = await asyncio.open_connection("127.0.0.1", real.port)
            writer.close()
        finally:
            await server.close()
            await server.close()


async def test_a_file_that_changed_is_not_given(tmp_path: Path) -> None:
    async with serving(tmp_path) as lab:
        digest = lab.shelf.add(DATA)
        lab.shelf.held[digest].path.write_bytes(DATA[:-1])
        assert (await lab.ask("GET", f"/blobs/{digest}"))[0] == 404
        assert lab.shelf.withdrawn == [digest]


async def test_a_file_that_went_away_is_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path) as lab:
        digest = lab.shelf.add(DATA)
        lab.shelf.held[digest].path.unlink()
        assert (await lab.ask("GET", f"/blobs/{digest}"))[0] == 404
        query = encode_have_query([lab.shelf.add(b"1"), digest], inline=True)
        assert (await lab.ask("POST", "/have", data=query))[0] == 200


async def test_a_file_cut_while_it_is_sent_ends_the_connection(tmp_path: Path) -> None:
    """FAULTS 25, by a file that gets shorter: no short body ever looks whole, and the blob is withdrawn."""
    async with serving(tmp_path) as lab:
        digest = lab.shelf.add(bytes(64 << 20))
        async with lab.session.get(f"{lab.url}/blobs/{digest}") as response:
            await response.content.readexactly(1000)
            os.truncate(lab.shelf.held[digest].path, 1000)
            with pytest.raises((OSError, aiohttp.ClientPayloadError)):
                await response.content.read()
        assert lab.shelf.withdrawn == [digest]


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    async with serving(tmp_path) as lab:
        digest = lab.shelf.add(bytes(8 << 20))

        def count() -> int:
            links = []
            for fd in Path("/proc/self/fd").iterdir():
                try:
                    links.append(fd.readlink())
                except OSError:
                    continue
            return sum(link.is_relative_to(tmp_path) for link in links)

        async with lab.session.get(f"{lab.url}/blobs/{digest}") as response:
            await response.content.readany()  # and the reader leaves
        await lab.ask("GET", f"/blobs/{digest}", headers={"Range": "bytes=9-5"})
        await lab.ask("HEAD", f"/blobs/{digest}")
        async with asyncio.timeout(20):
            while count():
                await asyncio.sleep(0.01)


async def test_a_pace_holds_for_all_together(tmp_path: Path) -> None:
    pace = Pace(4_000_000)
    async with serving(tmp_path, upload=pace) as lab:
        digest = lab.shelf.add(bytes(1_000_000))
        loop = asyncio.get_running_loop()
        began = loop.time()
        answers = await asyncio.gather(*(lab.ask("GET", f"/blobs/{digest}") for _ in range(4)))
        assert all(len(answer[1]) == 1_000_000 for answer in answers)
        assert loop.time() - began >= 0.85  # a burst of a tenth is free


async def test_a_holding_of_another_file_is_checked_on_the_open_descriptor(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"not it")

    def swap(_holding: Holding) -> int:
        return os.open(tmp_path / "other", os.O_RDONLY)

    async with serving(tmp_path) as lab:
        digest = lab.shelf.add(DATA)
        lab.shelf.opener = swap
        assert (await lab.ask("GET", f"/blobs/{digest}"))[0] == 404
        assert lab.shelf.withdrawn == [digest]
