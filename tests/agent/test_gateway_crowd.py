"""Many at once at a real agent: sharing one transfer, reading slowly, doing nothing at all."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.agent.agents import Agent, eventually, lab
from tests.agent.hub_clients import Clients, _clients, curl, gateway  # noqa: F401 - a fixture
from tests.faults.conftest import _plain_client  # noqa: F401 - no token and no cache of whoever runs the tests
from tests.faults.machine import contents
from tests.hub import Generated, TestHub, dry_up, make_repo
from tests.hub.content import Content

pytestmark = pytest.mark.timeout(180)

MIB = 1 << 20
BIG = 12 * MIB
ONCE = 1.6 * BIG
"""Not twice; tails that looked slow are asked for again."""

NAME = "m.safetensors"
FILES: dict[str, Content] = {"config.json": b"{}", NAME: Generated(7, BIG)}


def target(path: str) -> str:
    """Of a file of the repo."""
    return f"/org/name/resolve/main/{path}"


async def test_two_clients_of_one_file_and_one_leaves(tmp_path: Path, clients: Clients) -> None:
    """One copy comes over the line."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        hub.inject(dry_up(512 << 10, route="cdn"))  # both are amid it until this is lifted
        stays = clients(gateway(one), "stays")
        leaves = clients(gateway(one), "leaves")
        first = await leaves.start(NAME)
        second = await stays.start(NAME)
        await leaves.has_got(256 << 10)
        await stays.has_got(256 << 10)
        first.kill()
        await first.communicate()
        hub.clear()
        assert (await stays.finish(second)).files == {NAME: contents(repo)[NAME]}
        assert hub.stats.total < ONCE
        assert (await leaves.download(NAME)).files == {NAME: contents(repo)[NAME]}
        assert hub.stats.total < ONCE
        assert len(one.blobs()) == 1


@asynccontextmanager
async def _hung_on(agent: Agent, path: str) -> AsyncIterator[socket.socket]:
    """A connection whose reader asked for a file and takes almost nothing."""
    host, port = agent.listener("local").split(":")
    loop = asyncio.get_running_loop()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        await loop.sock_connect(slow, (host, int(port)))
        await loop.sock_sendall(slow, f"GET {target(path)} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        assert await loop.sock_recv(slow, 1) == b"H"
        yield slow


async def test_slow_readers_cost_nobody_anything(tmp_path: Path, clients: Clients) -> None:
    """One byte now and then, of what is here and of what comes: others are served, and memory stays."""
    repo = make_repo("org/name", {"here.safetensors": Generated(3, 2 * BIG), **FILES})
    data = contents(repo)
    loop = asyncio.get_running_loop()
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one", fetch_connections="1")  # none is idle: no tail that looks slow is asked for again
        assert (await curl(gateway(one) + target("here.safetensors"), into=tmp_path / "here")).status == 200
        process = psutil.Process(one.pid)
        before = process.memory_info().rss
        fds = process.num_fds()
        async with AsyncExitStack() as hanging:
            slow = [await hanging.enter_async_context(_hung_on(one, "here.safetensors")) for _ in range(20)]
            slow += [await hanging.enter_async_context(_hung_on(one, NAME)) for _ in range(20)]
            users = [clients(gateway(one), f"client-{number}") for number in range(2)]
            for client in users:
                assert (await client.download()).files == data
                for reader in slow:
                    assert len(await loop.sock_recv(reader, 1)) == 1
            assert process.memory_info().rss - before < 24 * MIB
            assert hub.stats.total == sum(map(len, data.values())), "each file once"

        async def are_gone() -> bool:
            return bool(process.num_fds() <= fds + 20)

        await eventually(are_gone, 30, "the descriptors of readers that left are free")


async def test_a_thousand_connections_that_asked_once(tmp_path: Path, clients: Clients) -> None:
    """Kept alive and idle, as pools of clients are: the agent answers others, and nothing of them is left."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        assert (await curl(gateway(one) + target(NAME), into=tmp_path / "warm")).status == 200
        host, port = one.listener("local").split(":")
        process = psutil.Process(one.pid)
        fds, before = process.num_fds(), process.memory_info().rss
        idle = []
        head = f"HEAD {target(NAME)} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
        for _ in range(1000):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head)
            idle.append((reader, writer))
        for reader, _ in idle:
            async with asyncio.timeout(60):
                assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert process.memory_info().rss - before < 32 * MIB  # under 32 KiB each
        client = clients(gateway(one))
        got = await client.download()
        assert {name: hashlib.sha256(data).digest() for name, data in got.files.items()} == {
            name: hashlib.sha256(data).digest() for name, data in contents(repo).items()
        }
        for _, writer in idle:
            writer.close()

        async def are_gone() -> bool:
            return bool(process.num_fds() <= fds + 20)

        await eventually(are_gone, 30, "the descriptors are free")
