"""`fetch` without an agent: the lab is joined for the time of the fetch, and nothing of that is left behind."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import psutil
import pytest

from edgecdn.once import run_once
from tests.agent.agents import Agent, AgentLab, lab
from tests.agent.commands import began, once_agents, ran, result, soon
from tests.faults.conftest import _plain_client  # noqa: F401 - no token and no cache of whoever runs the tests
from tests.faults.machine import contents, files_in
from tests.hub import Generated, TestHub, dry_up, make_repo
from tests.hub.content import Content

pytestmark = pytest.mark.timeout(180)

FILES: dict[str, Content] = {"config.json": b"{}", "m.safetensors": Generated(7, 12 << 20)}
TOTAL = (12 << 20) + 2


def scratch(machine: Agent) -> Path:
    """Where its commands put temporary files."""
    folder = machine.base / "scratch"
    folder.mkdir(exist_ok=True)
    return folder


def assert_nothing_is_left(machine: Agent) -> None:
    """Of an agent for one fetch."""
    assert list(scratch(machine).iterdir()) == []
    left = {path.name for path in machine.home.iterdir()}
    assert left & {"run.json", "agent.lock", "jobs.json", "api-token", "agent-id"} == set()
    mine = str(machine.home)
    assert [p.pid for p in psutil.process_iter() if mine in _home_of(p)] == []


def _home_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("EDGECDN_HOME", "") if "--once" in process.cmdline() else ""
    except psutil.Error:
        return ""


async def test_it_takes_all_from_a_peer(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        await ran(one, "fetch", "org/name")
        await one.gives(repo.commits[repo.main].files["m.safetensors"].sha256)
        hub.stats.reset()
        two = made.machine("two", discovery_peers=one.lan)
        got = result(await ran(two, "fetch", "org/name", "--json", TMPDIR=str(scratch(two))))
        assert got["bytes_by_source"] == {"cache": 0, "lan": TOTAL, "mirror": 0, "origin": 0}
        assert files_in(got["path"]) == contents(repo)
        assert hub.stats.total == 0
        assert sum(seen.sent for seen in hub.stats.requests) < 100_000
        assert_nothing_is_left(two)

        hub.stats.reset()
        before = scratch(two).stat().st_mtime_ns
        again = result(await ran(two, "fetch", "org/name", "--json", TMPDIR=str(scratch(two))))
        assert again["bytes_by_source"]["cache"] == TOTAL
        placed = await ran(two, "fetch", "org/name", "--local-dir", str(two.base / "mine"), TMPDIR=str(scratch(two)))
        assert files_in(two.base / "mine") == contents(repo)
        assert placed.code == 0
        assert scratch(two).stat().st_mtime_ns == before, "no agent is started where nothing is missing"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_its_agent_ends_with_the_command(tmp_path: Path, how: signal.Signals) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, lab(tmp_path, hub) as made:
        hub.inject(dry_up(3 << 18, route="cdn"))
        one = made.machine("one", discovery_peers="127.0.0.1:9")
        command = await began(one, "fetch", "org/name", TMPDIR=str(scratch(one)))
        await soon(lambda: hub.stats.sent["org/name", "m.safetensors"], what="the fetch")
        (once,) = once_agents(command.pid)
        command.send_signal(how)
        done = await one.finish(command)
        assert done.code == (130 if how is signal.SIGINT else -how)
        took_s = await soon(lambda: _is_over(once), 4, "its end")
        assert took_s < 2
        assert_nothing_is_left(one)
        hub.clear()
        got = result(await ran(one, "fetch", "org/name", "--json"))
        assert got["bytes_by_source"]["origin"] + got["bytes_by_source"]["cache"] == TOTAL


def _is_over(pid: int) -> bool:
    """Nobody may wait for it in a container without an init: what is left is then no more than its number."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


_BROKEN = pytest.mark.parametrize(
    "broken",
    [{"lan_listen": "192.0.2.1:1"}, {"swarm_listen": "192.0.2.1:1"}, {"gateway_listen": "127.0.0.1:1"},
     {"lan_listen": "off", "swarm_listen": "off"}, {"TMPDIR": "/dev/null/none", "PYTHONDONTWRITEBYTECODE": "1"}],
    ids=",".join,
)  # fmt: skip


@_BROKEN
async def test_a_lab_that_cannot_be_joined_is_done_without(tmp_path: Path, broken: dict[str, str]) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one = made.machine("one", discovery_peers="127.0.0.1:9")
        done = await ran(one, "fetch", "org/name", **broken)
        assert done.code == 0, done.err
        assert files_in(done.out.strip()) == contents(repo)


@_BROKEN
async def test_an_agent_that_cannot_begin_says_so_and_is_not_waited_for(
    tmp_path: Path, broken: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = AgentLab(tmp_path, (), {}).machine("one", discovery_peers="127.0.0.1:9")
    plain = {name: value for name, value in broken.items() if name.isupper()}
    settings = {name: value for name, value in broken.items() if name not in plain}
    for name, value in (one.variables(**settings) | plain).items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO, "edgecdn.once"):
        async with run_once() as address:
            assert bool(address) is not bool(caplog.messages)
    assert "TimeoutError" not in caplog.text


async def test_an_agent_killed_during_the_fetch_is_done_without(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        hub.inject(dry_up(8 << 20, route="cdn"))
        one = made.machine("one", discovery_peers="127.0.0.1:9")
        command = await began(one, "fetch", "org/name", "--json", TMPDIR=str(scratch(one)))
        await soon(lambda: one.kept() >= 2 << 20, what="the fetch")
        (once,) = once_agents(command.pid)
        os.kill(once, signal.SIGKILL)
        hub.clear()
        done = await one.finish(command)
        got = result(done)
        assert files_in(got["path"]) == contents(repo)
        assert got["bytes_by_source"]["cache"] >= 2 << 20, "what it had brought is gone on with"
