"""Hub, machines and proxy of the lab do what the tests on them rely on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from tests.hub import slow_total
from tests.lab.asking import session_in
from tests.lab.namespaces import our_namespaces
from tests.lab.processes import python
from tests.lab.proxy import Spoil
from tests.lab.world import World

MIB = 1 << 20
LIMIT_S = 20


async def test_a_fetch_without_an_agent_crosses_the_line_at_its_rate(world: World) -> None:
    hub = world.hub("--generate", "org/big=1x8MiB", rate=50)
    machine = world.machine("one")
    started = time.monotonic()
    ran = await machine.edgecdn("fetch", "org/big", "--json")
    took = time.monotonic() - started
    assert ran.code == 0, ran.err
    assert took > 8 * MIB * 8 / 50e6
    assert hub.stats()["total"] >= 8 * MIB
    assert len(machine.blobs()) == 2
    hub.reset_stats()
    hub.inject(slow_total(1))
    assert hub.stats()["total"] == 0


async def test_a_machine_has_an_agent_that_is_ready_when_it_answers(world: World, tmp_path: Path) -> None:
    machine = world.machine("one")
    machine.agent_command = (python(), "-c", STANDIN)
    await machine.start_agent(lan_listen="0.0.0.0:8378")
    assert 0 < machine.ready_s < 10
    assert (await machine.get("/healthz"))["home"] == str(machine.home)
    assert (await machine.get("/healthz"))["lan"] == "0.0.0.0:8378"
    assert (await machine.get("/healthz"))["name"] == "one"
    machine.pause()
    with pytest.raises(TimeoutError):
        async with session_in(machine.node.space, 0.3) as session, session.get(machine.control_url + "/healthz"):
            pass
    machine.resume()
    assert await machine.get("/healthz")
    await machine.kill()
    assert machine.agent is not None
    assert not machine.agent.running


async def test_an_agent_that_cannot_start_says_why(world: World) -> None:
    machine = world.machine("one")
    machine.agent_command = (python(), "-c", "raise SystemExit('the disk is made of cheese')")
    with pytest.raises(AssertionError, match="made of cheese"):
        await machine.start_agent()


async def test_everything_ends_with_the_world(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with World(tmp_path) as world:
            hub = world.hub("--generate", "org/small=1x1MiB")
            program = await world.machine("one").start("sleep", "60")
            hub_pid, name = hub.pid, hub.node.space.name
            raise ZeroDivisionError
    assert not program.running
    assert not Path(f"/proc/{hub_pid}").exists()
    assert name not in our_namespaces()


async def test_the_oracle_finds_a_wrong_blob(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not what its name says"):
        async with World(tmp_path) as world:
            blob = world.machine("one").cache / "models--org--name" / "blobs" / ("0" * 64)
            blob.parent.mkdir(parents=True)
            blob.write_bytes(b"rotten")


@pytest.mark.parametrize(
    ("spoil", "got"),
    [
        (Spoil(), b"0123456789"),
        (Spoil(corrupt_at=3), b"012\xcc456789"),
        (Spoil(corrupt_every=4), b"\xcf123\xcb567\xc79"),
        (Spoil(cut_after=6), b"012345"),
        (Spoil(cut_after=0), b""),
    ],
)
async def test_the_proxy_spoils(world: World, spoil: Spoil, got: bytes) -> None:
    reader, writer = await _through_proxy(world, spoil)
    async with asyncio.timeout(LIMIT_S):
        assert await reader.read() == got
    writer.close()


async def test_the_proxy_resets_and_is_silent(world: World) -> None:
    reader, writer = await _through_proxy(world, Spoil(reset_every=5))
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(ConnectionResetError):
            while await reader.read(100):
                pass
    writer.close()
    proxy = world.proxies[0]
    proxy.spoil = Spoil(silent_after=5)
    reader, writer = await _connect(world)
    async with asyncio.timeout(LIMIT_S):
        assert await reader.readexactly(5) == b"01234"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reader.read(1)
    assert proxy.connections == 2
    writer.close()


async def test_machines_hear_what_the_proxy_lets_through(world: World) -> None:
    hub = world.hub("--generate", "org/big=1x1MiB")
    host, port = hub.cdn_url.removeprefix("http://").split(":")
    proxy = await world.proxy("middle", 9000, (host, int(port)))
    proxy.set(cut_after=10)
    machine = world.machine("one")
    async with session_in(machine.node.space) as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get("http://10.77.0.2:9000/")
        proxy.set()
        async with session.get("http://10.77.0.2:9000/") as answer:
            assert answer.status == 403  # an unsigned request, says the CDN


async def _through_proxy(world: World, spoil: Spoil) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    holder = world.machine("holder")
    listener = holder.node.space.socket()
    listener.bind((holder.address, 9000))
    world.servers.append(await asyncio.start_server(_digits, sock=listener))
    proxy = await world.proxy("middle", 9000, (holder.address, 9000))
    proxy.spoil = spoil
    world.machine("taker")
    return await _connect(world)


async def _connect(world: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    taker = world.machines[-1].node.space.socket()
    taker.setblocking(False)
    await asyncio.get_running_loop().sock_connect(taker, (world.network.nodes["middle"].address, 9000))
    return await asyncio.open_connection(sock=taker)


async def _digits(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"0123456789")
    await writer.drain()
    writer.close()


STANDIN = """
import http.server, json, os, pathlib, socket
home = pathlib.Path(os.environ["EDGECDN_HOME"])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"home": str(home), "lan": os.environ["EDGECDN_LAN_LISTEN"], "name": socket.gethostname()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
(home / "run.json").write_text(json.dumps({"listeners": {"local": f"127.0.0.1:{server.server_port}"}}))
server.serve_forever()
"""
"""Stands in for the agent: its run file and one answer."""
