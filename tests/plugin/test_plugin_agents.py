"""The plugin with real agents: unmodified scripts get verified files placed, whoever has them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.agents import AgentLab, eventually, lab
from tests.hub import TestHub, make_repo, slow_total, stall, wrong_bytes
from tests.plugin.clients import Ran, User

MODEL, PRIVATE = "org/model", "org/private"
WEIGHTS = os.urandom(5 << 20)
FILES = {"config.json": b"{}", "sub/vocab.txt": b"words\n" * 10, "model.safetensors": WEIGHTS}
DOWNLOAD = f"tell(snapshot_download({MODEL!r}))"
TOKEN = "hf_who_may"
GETS = """
import http.client
putrequest = http.client.HTTPConnection.putrequest
def counted(self, method, url, **more):
    if method == "GET" and "/resolve/" in url: tell("GET", url)
    return putrequest(self, method, url, **more)
http.client.HTTPConnection.putrequest = counted
"""
"""Tells of every download through the socket of the agent."""


@pytest.fixture
async def hub() -> AsyncIterator[TestHub]:
    repos = [make_repo(MODEL, FILES, xet=True), make_repo(PRIVATE, FILES, private=True)]
    async with TestHub(repos, tokens={TOKEN: ["*"]}) as made:
        yield made


@pytest.fixture
async def made(hub: TestHub, tmp_path: Path) -> AsyncIterator[AgentLab]:
    async with lab(tmp_path / "lab", hub) as agents:
        yield agents


def whole(ran: Ran) -> None:
    assert ran.code == 0, ran.err
    folder = next(told for told in ran.told if isinstance(told, str))
    assert {name: Path(folder, name).read_bytes() for name in FILES} == FILES
    assert [told for told in ran.told if told != folder] == []


def direct(hub: TestHub) -> list[str]:
    """Downloads that did not come by an agent."""
    return [
        seen.path
        for seen in hub.stats.requests
        if "hf_hub/" in seen.headers.get("User-Agent", "") and "/resolve/" in seen.path
    ]


async def test_a_model_nobody_has_is_brought_once_and_placed(hub: TestHub, made: AgentLab, tmp_path: Path) -> None:
    one = await made.agent("one")
    for name in ("first", "second"):
        user = User(tmp_path / name, hub.url, one.home)
        whole(await user.run(GETS + DOWNLOAD))
    assert len(WEIGHTS) <= hub.stats.sent[MODEL, "model.safetensors"] < 2 * len(WEIGHTS), "one copy"
    blobs = {path.stat().st_ino for path in one.cache.rglob("blobs/*") if path.is_file()}
    placed = {path.stat().st_ino for path in (tmp_path / "first").rglob("blobs/*") if path.is_file()}
    assert placed <= blobs
    assert len(placed) == len(FILES)


async def test_in_the_agents_own_cache_nothing_is_there_twice(hub: TestHub, made: AgentLab, tmp_path: Path) -> None:
    one = await made.agent("one")
    user = User(tmp_path / "user", hub.url, one.home)
    whole(await user.run(GETS + DOWNLOAD, HF_HUB_CACHE=str(one.cache)))
    folder = one.cache / "models--org--model" / "blobs"
    assert len(list(folder.iterdir())) == len(FILES)


async def test_a_peer_has_it(hub: TestHub, made: AgentLab, tmp_path: Path) -> None:
    one = await made.agent("one")
    await one.fetch_here(MODEL)
    await one.gives(hub.state.repos["model", MODEL].resolve("main").files["model.safetensors"].sha256)  # type: ignore[union-attr]
    sent = hub.stats.sent[MODEL, "model.safetensors"]
    two = await made.agent("two")
    await two.knows(1)
    whole(await User(tmp_path / "user", hub.url, two.home).run(GETS + DOWNLOAD))
    assert hub.stats.sent[MODEL, "model.safetensors"] == sent


async def test_two_processes_at_once(hub: TestHub, made: AgentLab, tmp_path: Path) -> None:
    one = await made.agent("one")
    hub.inject(slow_total(3 << 20))
    user = User(tmp_path / "user", hub.url, one.home)
    started = [await user.start(GETS + DOWNLOAD) for _ in range(2)]
    for process in started:
        whole(await user.finish(process))
    assert len(WEIGHTS) <= hub.stats.sent[MODEL, "model.safetensors"] < 2 * len(WEIGHTS), "one copy"


async def test_a_private_repo_needs_the_callers_token(hub: TestHub, made: AgentLab, tmp_path: Path) -> None:
    one = await made.agent("one")
    code = f"""
from huggingface_hub.errors import RepositoryNotFoundError
try: hf_hub_download({PRIVATE!r}, "config.json", token={{}})
except RepositoryNotFoundError: tell("no")
else: tell("yes")
"""
    user = User(tmp_path / "user", hub.url, one.home)
    assert (await user.run(code.format(False))).told == ["no"]
    assert (await user.run(code.format(repr(TOKEN)))).told == ["yes"]
    other = User(tmp_path / "other", hub.url, one.home)
    assert (await other.run(code.format(False))).told == ["no"]
    assert TOKEN not in one.log


async def test_an_agent_that_is_killed_is_replaced_by_the_hub(hub: TestHub, made: AgentLab, tmp_path: Path) -> None:
    one = await made.agent("one")
    hub.state.repos["model", MODEL].xet = False
    hub.inject(slow_total(1 << 20))
    user = User(tmp_path / "user", hub.url, one.home)
    process = await user.start(DOWNLOAD)
    async with asyncio.timeout(40):
        while not hub.stats.sent[MODEL, "model.safetensors"]:
            await asyncio.sleep(0.02)
    one.kill_agent()
    hub.clear()
    ran = await user.finish(process)
    whole(ran)
    assert len(ran.warnings) == 1, ran.err


async def test_an_agent_that_is_restarted_goes_on_with_its_partial(
    hub: TestHub, made: AgentLab, tmp_path: Path
) -> None:
    one = await made.agent("one")
    hub.inject(slow_total(1 << 20))
    user = User(tmp_path / "user", hub.url, one.home)
    patient = "import edgecdn_hook; edgecdn_hook.AWAY_S = edgecdn_hook.STARTING_S = 60\n"  # this machine may be slow
    process = await user.start(GETS + patient + DOWNLOAD)
    async with asyncio.timeout(40):
        while hub.stats.sent[MODEL, "model.safetensors"] < 1 << 20:
            await asyncio.sleep(0.02)
    assert await one.stop_agent() == 0
    hub.clear()
    await one.start_agent()
    ran = await user.finish(process)
    whole(ran)
    assert ran.warnings == []
    assert direct(hub) == []
    assert hub.stats.sent[MODEL, "model.safetensors"] < 2 * len(WEIGHTS)


async def test_what_a_program_waits_for_is_cancelled_soon_after_its_end(
    hub: TestHub, made: AgentLab, tmp_path: Path
) -> None:
    one = await made.agent("one")
    hub.inject(slow_total(64 << 10))
    process = await User(tmp_path / "user", hub.url, one.home).start(DOWNLOAD)
    async with asyncio.timeout(40):
        while not hub.stats.sent[MODEL, "model.safetensors"]:
            await asyncio.sleep(0.02)
    refused = await one.run("cancel", MODEL)
    assert refused.code == 2
    assert "a program waits for it or did so seconds ago" in refused.err
    process.kill()
    await process.communicate()

    async def cancelled() -> bool:
        return (await one.run("cancel", MODEL)).code == 0

    await eventually(cancelled, 25)


async def test_an_agent_that_hangs_is_replaced_by_the_hub(hub: TestHub, made: AgentLab, tmp_path: Path) -> None:
    one = await made.agent("one")
    hub.state.repos["model", MODEL].xet = False
    os.kill(one.pid, signal.SIGSTOP)
    try:
        ran = await User(tmp_path / "user", hub.url, one.home).run(DOWNLOAD)
    finally:
        os.kill(one.pid, signal.SIGCONT)
    whole(ran)
    assert len(ran.warnings) == 1


async def test_wrong_bytes_stop_a_load(hub: TestHub, made: AgentLab, tmp_path: Path) -> None:
    one = await made.agent("one", fetch_patience="2s")
    hub.inject(wrong_bytes(path="model.safetensors"))
    user = User(tmp_path / "user", hub.url, one.home)
    ran = await user.tried(DOWNLOAD)
    assert ran.code == 1
    assert "IntegrityError" in ran.err
    assert not any(len(name) == 64 for name in user.blobs(MODEL))


async def test_a_slow_hub_is_no_hung_agent(hub: TestHub, made: AgentLab, tmp_path: Path) -> None:
    one = await made.agent("one")
    hub.inject(stall(path="*config.json"))
    user = User(tmp_path / "user", hub.url, one.home)
    process = await user.start(DOWNLOAD)
    async with asyncio.timeout(40):
        while not hub.faults.hits:
            await asyncio.sleep(0.02)
    await asyncio.sleep(4)  # what is tested is time itself
    hub.clear()
    ran = await user.finish(process)
    whole(ran)
    assert ran.warnings == []


async def test_offline_the_lab_has_it(hub: TestHub, made: AgentLab, tmp_path: Path) -> None:
    one = await made.agent("one")
    await one.fetch_here(MODEL)
    two = await made.agent("two", plugin_offline_lan="on")
    await two.knows(1)
    asked = len(hub.stats.requests)
    whole(await User(tmp_path / "user", hub.url, two.home).run(GETS + DOWNLOAD, HF_HUB_OFFLINE="1"))
    three = await made.agent("three")
    ran = await User(tmp_path / "not", hub.url, three.home).tried(DOWNLOAD, HF_HUB_OFFLINE="1")
    assert ran.code == 1
    assert not [seen for seen in list(hub.stats.requests)[asked:] if "hf_hub/" in seen.headers.get("User-Agent", "")]


async def test_a_folder_of_ones_own_is_filled_through_the_gateway(hub: TestHub, made: AgentLab, tmp_path: Path) -> None:
    one = await made.agent("one")
    user = User(tmp_path / "user", hub.url, one.home)
    ran = await user.run(GETS + f"tell(snapshot_download({MODEL!r}, local_dir='here'))")
    assert {name: (user.base / "here" / name).read_bytes() for name in FILES} == FILES
    assert sum(isinstance(told, list) for told in ran.told) == len(FILES)
    assert len(WEIGHTS) <= hub.stats.sent[MODEL, "model.safetensors"] < 2 * len(WEIGHTS), "one copy"
