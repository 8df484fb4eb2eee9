"""Agents that die, hang, restart, or left their files behind: real processes, real signals."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecdn.agent_link import AgentLink, find_agent, is_locked
from edgecdn.control import FetchRequest, RunInfo
from edgecdn.errors import AgentNotRunning, AgentRunning
from edgecdn.events import BytesReceived, Event
from edgecdn_agent.run_file import HomeLock, agent_id, api_token, remove_run_file, write_run_file
from tests.agent.agent_process import COMMAND, agent_process, wait_for
from tests.hub.process import ROOT

pytestmark = pytest.mark.timeout(180)


async def _lose(home: Path, process: subprocess.Popen[bytes], how: signal.Signals) -> float:
    """Have it fetch, then `how`; returns how long after that the caller knew."""
    address = find_agent(home)
    assert address is not None
    came = asyncio.Event()

    def listener(event: Event) -> None:
        if isinstance(event, BytesReceived):
            came.set()

    async with AgentLink(address) as link:
        fetching = asyncio.create_task(link.fetch(FetchRequest("slow-a"), listener))
        await asyncio.wait_for(came.wait(), 5)
        began = time.monotonic()
        process.send_signal(how)
        with pytest.raises(AgentNotRunning) as caught:
            await fetching
        took_s = time.monotonic() - began
    assert caught.value.exit_code == 8
    assert "goes on" in caught.value.remedy
    return took_s


@pytest.mark.parametrize(("how", "limit_s"), [(signal.SIGKILL, 1.0), (signal.SIGSTOP, 5.0), (signal.SIGTERM, 2.0)])
async def test_an_agent_lost_during_a_fetch_is_known_within_5_s(
    tmp_path: Path, how: signal.Signals, limit_s: float
) -> None:
    with agent_process(tmp_path) as (process, _):
        assert await _lose(tmp_path, process, how) < limit_s


async def test_jobs_go_on_after_kill_9_and_after_a_stop(tmp_path: Path) -> None:
    with agent_process(tmp_path) as (process, _):
        await _lose(tmp_path, process, signal.SIGKILL)
    with agent_process(tmp_path) as (process, address):
        async with AgentLink(address) as link:
            await _state(link, "running")
        process.terminate()
        began = time.monotonic()
        assert process.wait(5) == 0
        assert time.monotonic() - began < 5
    assert not (tmp_path / "run.json").exists()
    (tmp_path / "release").touch()
    with agent_process(tmp_path) as (_, address):
        async with AgentLink(address) as link:
            await _state(link, "done")
        async with asyncio.timeout(20):
            while json.loads((tmp_path / "jobs.json").read_bytes()) != []:
                await asyncio.sleep(0.01)


async def _state(link: AgentLink, wanted: str) -> None:
    async with asyncio.timeout(20):
        while [(j.title, j.state) for j in await link.jobs()] != [("slow-a", wanted)]:
            await asyncio.sleep(0.02)


async def test_a_hung_agent_does_not_answer_a_question(tmp_path: Path) -> None:
    with agent_process(tmp_path) as (process, address):
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        async with AgentLink(address) as link:
            with pytest.raises(AgentNotRunning, match="no answer"):
                await link.status()
        assert time.monotonic() - began < 5


def test_a_second_agent_of_one_home_says_so(tmp_path: Path) -> None:
    with agent_process(tmp_path) as (process, _):
        with pytest.raises(AgentRunning, match=str(process.pid)) as caught, HomeLock(tmp_path):
            pass
        assert caught.value.exit_code == 1
        assert str(tmp_path) in caught.value.message
        second = subprocess.run(
            COMMAND,
            check=False,
            cwd=ROOT,
            env=os.environ | {"EDGECDN_HOME": str(tmp_path)},
            capture_output=True,
            timeout=20,
        )
        assert second.returncode
        assert b"AgentRunning" in second.stderr
        assert find_agent(tmp_path) is not None


def test_row38_what_a_killed_agent_left_is_no_agent(tmp_path: Path) -> None:
    with agent_process(tmp_path) as (process, _):
        process.kill()
        process.wait(5)
        assert (tmp_path / "run.json").exists()
        assert (tmp_path / "agent.lock").exists()
        assert find_agent(tmp_path) is None
    token = (tmp_path / "api-token").read_text()
    with agent_process(tmp_path) as (second, address):
        assert address.run.pid == second.pid
        assert (tmp_path / "api-token").read_text() == token


def test_row38_a_process_that_got_the_number_is_no_agent(tmp_path: Path) -> None:
    api_token(tmp_path)
    write_run_file(tmp_path, RunInfo(os.getpid(), "1", "a" * 32, {"local": "127.0.0.1:1"}, time.time()))
    assert find_agent(tmp_path) is None
    (tmp_path / "agent.lock").write_text(str(os.getpid()))
    assert find_agent(tmp_path) is None
    with HomeLock(tmp_path):
        assert is_locked(tmp_path)
        assert find_agent(tmp_path) is not None
    assert find_agent(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", '{"pid":1}', '{"pid":"x","version":"1","agent_id":"a","listeners":{},"started_at":0}'],
)
def test_a_run_file_that_is_none_is_no_agent(tmp_path: Path, text: str) -> None:
    with HomeLock(tmp_path):
        api_token(tmp_path)
        (tmp_path / "run.json").write_text(text)
        assert find_agent(tmp_path) is None


def test_files_that_others_planted_are_not_followed(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    other.mkdir()
    with HomeLock(home):
        api_token(home)
        write_run_file(other, RunInfo(1, "1", "a" * 32, {"local": "192.0.2.1:1"}, 0.0))
        (home / "run.json").symlink_to(other / "run.json")
        assert find_agent(home) is None
        (home / "run.json").unlink()
        os.mkfifo(home / "run.json")
        assert find_agent(home) is None


@pytest.fixture
def lax_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("lax_umask")
def test_id_and_token_are_kept_private_and_made_anew_when_broken(tmp_path: Path) -> None:
    ident, token = agent_id(tmp_path), api_token(tmp_path)
    assert len(bytes.fromhex(ident)) == 16
    assert (agent_id(tmp_path), api_token(tmp_path)) == (ident, token)
    for name in ("agent-id", "api-token"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    (tmp_path / "agent-id").write_text("")
    (tmp_path / "api-token").chmod(0o644)
    assert agent_id(tmp_path) != ident
    assert api_token(tmp_path) == token
    assert (tmp_path / "api-token").stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["agent-id", "api-token"]


def test_a_run_file_of_another_process_is_left_alone(tmp_path: Path) -> None:
    write_run_file(tmp_path, RunInfo(1, "1", "a" * 32, {}, 0.0))
    remove_run_file(tmp_path)
    assert (tmp_path / "run.json").exists()


def test_one_who_looks_does_not_keep_an_agent_from_starting(tmp_path: Path) -> None:
    (tmp_path / "agent.lock").touch()
    with (tmp_path / "agent.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        process = subprocess.Popen(COMMAND, cwd=ROOT, env=os.environ | {"EDGECDN_HOME": str(tmp_path)})
        with process:
            try:
                time.sleep(0.5)  # most of it is the interpreter's start; the patience of the lock is a second
                fcntl.flock(looking, fcntl.LOCK_UN)
                wait_for(tmp_path, process)
            finally:
                process.kill()
