"""Files through the gateway of a real agent, from a real hub that misbehaves; the oracle looks at the cache at the end."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from edgecdn_agent.lan.guard import Limits
from tests.agent.agents import Agent, eventually, lab
from tests.agent.standin import standing
from tests.faults.conftest import _plain_client  # noqa: F401 - no token and no cache of whoever runs the tests
from tests.faults.machine import contents
from tests.hub import Generated, HubRepo, TestHub, dry_up, make_repo, slow_total, wrong_bytes
from tests.hub.content import Content

MIB = 1 << 20
BIG = 24 * MIB
ONCE = 1.6 * BIG
"""Not twice; tails that looked slow were asked for again."""

NAME = "m.safetensors"
FILES: dict[str, Content] = {"config.json": b"{}", NAME: Generated(7, BIG)}
_CLIENT_S = 60.0


class Client:
    """A plain one, that keeps nothing."""

    def __init__(self, agent: Agent, session: aiohttp.ClientSession) -> None:
        self._agent, self._session = agent, session

    @asynccontextmanager
    async def asking(
        self, path: str = NAME, range_: str = "", method: str = "GET"
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that the test reads."""
        url = f"http://{self._agent.listener('local')}/org/name/resolve/main/{path}"
        headers = {"Range": range_} if range_ else {}
        async with asyncio.timeout(_CLIENT_S), self._session.request(method, url, headers=headers) as answer:
            yield answer

    async def get(self, path: str = NAME, range_: str = "") -> tuple[int, bytes]:
        """Status and the whole body."""
        async with self.asking(path, range_) as answer:
            return answer.status, await answer.read()

    async def until_cut(self, path: str = NAME, range_: str = "") -> tuple[int, bytes]:
        """Status, and what came before the connection was cut, or all."""
        got = bytearray()
        async with self.asking(path, range_) as answer:
            try:
                async for chunk in answer.content.iter_any():
                    got += chunk
            except aiohttp.ClientError:
                pass
            return answer.status, bytes(got)


@asynccontextmanager
async def client_of(agent: Agent) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield Client(agent, session)


def data_of(repo: HubRepo) -> bytes:
    return contents(repo)[NAME]


async def test_every_size_is_exact_and_kept(tmp_path: Path) -> None:
    """FAULTS 10: on its way, and from the cache."""
    sizes = (0, 1, (16 << 10) - 1, 16 << 10, (16 << 10) + 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 7)
    files: dict[str, Content] = {f"{size}.safetensors": Generated(size, size) for size in sizes}
    files |= {f"{size}.txt": b"x" * size for size in (0, 1, 16385)}
    repo = make_repo("org/name", files)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        async with client_of(one) as client:
            for path, data in contents(repo).items():
                assert await client.get(path) == (200, data), path
            hub.stats.reset()
            for path, data in contents(repo).items():
                assert await client.get(path) == (200, data), path
                if len(data) > 2:
                    assert await client.get(path, "bytes=1-1") == (206, data[1:2])
            assert hub.stats.total == 0


async def test_many_clients_share_one_transfer(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        hub.inject(slow_total(16 * MIB, route="cdn"))
        async with client_of(one) as client, asyncio.TaskGroup() as group:
            asked = [group.create_task(client.get()) for _ in range(4)]
            part = group.create_task(client.get(range_="bytes=0-99"))
        data = data_of(repo)
        assert all(task.result() == (200, data) for task in asked)
        assert part.result() == (206, data[:100])
        assert hub.stats.total < ONCE
        assert len(one.blobs()) == 1


async def test_several_backward_and_endless_ranges_of_what_nobody_has(tmp_path: Path) -> None:
    """FAULTS 9."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        data = data_of(repo)
        async with client_of(one) as client:
            assert (await client.get(range_=f"bytes={BIG}-"))[0] == 416
            assert await client.get(range_="bytes=-7") == (206, data[-7:])
            assert await client.get(range_=f"bytes=7-{10**30}") == (206, data[7:])
            for range_ in ("bytes=0-1,5-6", "bytes=9-5", "bytes=" + "9" * 400):
                assert await client.get(range_=range_) == (200, data), range_


async def test_wrong_bytes_of_the_right_size_never_become_a_file_at_a_client(tmp_path: Path) -> None:
    """FAULTS 50."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        hub.inject(wrong_bytes(offset=5 * MIB, route="cdn"))
        async with client_of(one) as client:
            status, got = await client.until_cut()
            assert len(got) <= BIG - MIB or status != 200
            for range_ in (f"bytes={len(got)}-", "bytes=100-199", ""):
                status, got = await client.until_cut(range_=range_)
                assert status == 502 or (status == 200 and len(got) <= BIG - MIB), range_
        assert not one.blobs()


async def test_the_client_of_the_hub_brings_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    """FAULTS 64: directly, into the very same cache."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        hub.inject(slow_total(16 * MIB, route="cdn"))
        code = "import sys; from huggingface_hub import hf_hub_download as d; d('org/name', sys.argv[1])"
        variables = one.variables() | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_CACHE": str(one.cache),
        }
        async with client_of(one) as client:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, NAME, env=variables, stderr=asyncio.subprocess.PIPE
            )
            assert await client.get() == (200, data_of(repo))
            _, said = await process.communicate()
            assert process.returncode == 0, said
            assert await client.get() == (200, data_of(repo))
        assert len(one.blobs()) == 1


async def test_an_agent_killed_on_the_way_and_its_client_goes_on(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = made.machine("one")
        await one.start_agent()
        hub.inject(slow_total(8 * MIB, route="cdn"))
        got = bytearray()
        async with client_of(one) as client, client.asking() as answer:
            got += await answer.content.readexactly(6 * MIB)
            one.kill_agent()
            with pytest.raises(aiohttp.ClientError):
                async for chunk in answer.content.iter_any():
                    got += chunk
        hub.clear()
        await one.start_agent()
        async with client_of(one) as client:
            status, rest = await client.get(range_=f"bytes={len(got)}-")
        assert (status, rest) == (200, data_of(repo)), "nobody knows any more whether what it has is right"


async def test_a_repo_removed_while_it_is_given(tmp_path: Path) -> None:
    """`hf cache rm`: who reads goes on, the next one gets it anew."""
    repo = make_repo("org/name", {NAME: Generated(7, 3 * BIG)})
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        async with client_of(one) as client:
            await client.get()
            async with client.asking() as answer:
                got = await answer.content.readexactly(10)
                shutil.rmtree(one.repo_dir())
                assert got + await answer.read() == data_of(repo)
            assert await client.get() == (200, data_of(repo))
        assert len(one.blobs()) == 1


async def test_a_hub_that_stalls_gives_its_first_bytes_at_once(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        hub.inject(dry_up(MIB // 2, route="cdn"))
        async with client_of(one) as client, client.asking() as answer:
            assert await answer.content.readexactly(1000) == data_of(repo)[:1000]
            hub.clear()
            assert len(await answer.read()) == BIG - 1000


async def test_a_thousand_idle_connections_starve_nobody(tmp_path: Path) -> None:
    """FAULTS 66: and nothing of them is left."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        async with client_of(one) as client:
            assert (await client.get())[0] == 200
            process = psutil.Process(one.pid)
            before = process.num_fds()
            host, port = one.listener("local").split(":")
            idle = [await asyncio.open_connection(host, int(port)) for _ in range(1000)]
            idle[0][1].write(b"GET / HT")
            assert (await client.get())[1] == data_of(repo)
            for _, writer in idle:
                writer.close()

            async def are_gone() -> bool:
                return bool(process.num_fds() <= before + 20)

            await eventually(are_gone, 20, "the descriptors are free")


@pytest.mark.parametrize("first", [b"", b"GET /hea", b"POST /edgecdn/v1/jobs HTTP/1.1\r\nHost: loc"])
async def test_who_never_asks_is_cut(tmp_path: Path, first: bytes) -> None:
    limits = Limits(connections=3, connections_in_all=6, idle_s=0.3, stall_s=120)
    async with standing(tmp_path / "home", limits=limits) as stand:
        assert stand.server.bound is not None
        at = (stand.server.bound.host, stand.server.bound.port)
        silent = [await asyncio.open_connection(*at) for _ in range(3)]
        for _, writer in silent:
            writer.write(first)
        reader, writer = await asyncio.open_connection(*at)  # one more than there may be
        async with asyncio.timeout(20):
            with pytest.raises(ConnectionError):
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if not await reader.read():
                    raise ConnectionResetError
            writer.close()
            for reader, writer in silent:
                assert await reader.read() == b""
                writer.close()
            while len(stand.server.connections):
                await asyncio.sleep(0.02)
