"""`edgecdn env` and `edgecdn run`, with a real agent, without one, and with one that hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.agents import Agent, lab
from tests.cli.machine import Outcome
from tests.faults.machine import ROOT
from tests.hub import TestHub, make_repo

LIMIT_S = 40.0
MIRROR = "https://mirror.example"
SHOW = (sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))")


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    """A running agent with a hub."""
    async with TestHub([make_repo("org/name", {"config.json": b"{}"})]) as hub, lab(tmp_path, hub) as made:
        yield await made.agent("one")


def _said(home: Path, *arguments: str, **environ: str) -> Outcome:
    """`edgecdn ..` as a user's shell runs it; the environment is only what is told here."""
    base = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "EDGECDN_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", "edgecdn", *arguments],
        check=False, env=base | environ, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=LIMIT_S,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Outcome(done.returncode, done.stdout, done.stderr)


def _url(agent: Agent) -> str:
    return f"http://{agent.listener('local')}"


async def test_a_shell_gets_the_variables(agent: Agent) -> None:
    told = _said(agent.home, "env")
    assert (told.code, told.err) == (0, "")
    shell = ["sh", "-c", f"{told.out}\n" + 'printf "%s|%s|%s" "$HF_ENDPOINT" "$HF_HUB_DISABLE_XET" "$MODEL_ENDPOINT"']
    seen = subprocess.run(shell, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    assert seen.stdout == f"{_url(agent)}|1|{_url(agent)}/"
    assert f"set -gx HF_ENDPOINT '{_url(agent)}'" in _said(agent.home, "env", "--shell", "fish").out.splitlines()
    assert _said(agent.home, "env", "--json").json["HF_ENDPOINT"] == _url(agent)


async def test_modelscope_is_told_where_the_agent_serves_it(agent: Agent, tmp_path: Path) -> None:
    assert "MODELSCOPE_ENDPOINT" not in _said(agent.home, "env", "--json").json
    async with lab(tmp_path / "other", *agent.hubs, hub_modelscope="http://127.0.0.1:9") as made:
        other = await made.agent("other")
        assert _said(other.home, "env", "--json").json["MODELSCOPE_ENDPOINT"] == _url(other)


async def test_a_command_gets_them(agent: Agent) -> None:
    ran = _said(agent.home, "run", "--", *SHOW)
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["HF_ENDPOINT"] == _url(agent)
    assert json.loads(ran.out)["DISABLE_SAFETENSORS_CONVERSION"] == "1"


async def test_a_client_that_is_run_gets_its_files_through_the_agent(agent: Agent, tmp_path: Path) -> None:
    code = "from huggingface_hub import hf_hub_download as get; print(open(get('org/name', 'config.json')).read())"
    (hub,) = agent.hubs
    assert isinstance(hub, TestHub)
    ran = await agent.run(
        "run", "--", sys.executable, "-c", code, variables={"HF_HOME": str(tmp_path / "hf")}, hubs=agent.hubs
    )
    assert (ran.code, ran.out) == (0, "{}\n"), ran.err
    assert "without edgecdn" not in ran.err
    assert all("hf_hub" not in seen.headers.get("User-Agent", "") for seen in hub.stats.asked("GET", "/resolve/"))


async def test_the_probe_asks_no_hub(agent: Agent) -> None:
    (hub,) = agent.hubs
    assert isinstance(hub, TestHub)
    before = len(hub.stats.requests)
    assert _said(agent.home, "env").code == 0
    assert len(hub.stats.requests) == before


async def test_a_hub_of_the_users_own_is_not_overridden(agent: Agent) -> None:
    told = _said(agent.home, "env", HF_ENDPOINT=MIRROR)
    assert (told.code, told.out) == (2, "")
    assert f"HF_ENDPOINT is {MIRROR}, which the agent does not ask" in told.err
    assert "config set hub.endpoints" in told.err
    ran = _said(agent.home, "run", "--", *SHOW, HF_ENDPOINT=MIRROR)
    assert (ran.code, json.loads(ran.out)["HF_ENDPOINT"]) == (0, MIRROR)
    assert "runs without edgecdn" in ran.err
    (hub,) = agent.hubs
    assert isinstance(hub, TestHub)
    assert json.loads(_said(agent.home, "run", "--", *SHOW, HF_ENDPOINT=hub.url).out)["HF_ENDPOINT"] == _url(agent)


async def test_row63_an_agent_that_hangs_is_none(agent: Agent) -> None:
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    try:
        told = _said(agent.home, "env")
        assert (told.code, told.out) == (8, "")
        assert "no answer for 1 s" in told.err
        ran = _said(agent.home, "run", "--", *SHOW)
        assert "HF_ENDPOINT" not in json.loads(ran.out)
    finally:
        agent.process.send_signal(signal.SIGCONT)


async def test_switched_off_nothing_is_set_and_commands_run_as_they_are(agent: Agent) -> None:
    told = _said(agent.home, "env", EDGECDN_DISABLE="1")
    assert (told.code, told.out) == (0, "")
    assert "EDGECDN_DISABLE" in told.err
    exported: dict[str, str] = _said(agent.home, "env", "--json").json
    nothing: dict[str, str] = {}
    back = _said(agent.home, "env", EDGECDN_DISABLE="1", **exported)
    assert "unset HF_ENDPOINT" in back.out.splitlines()
    for variables in (nothing, exported):
        ran = _said(agent.home, "run", "--", *SHOW, EDGECDN_DISABLE="on", **variables)
        assert ran.err == f"edgecdn: EDGECDN_DISABLE is set. {sys.executable} runs without edgecdn.\n"
        assert not exported.keys() & json.loads(ran.out).keys()
    assert "HF_ENDPOINT" in json.loads(_said(agent.home, "run", "--", *SHOW, EDGECDN_DISABLE="0").out)


async def test_what_was_set_is_taken_back_when_the_agent_is_gone(agent: Agent) -> None:
    (hub,) = agent.hubs
    assert isinstance(hub, TestHub)
    user = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    exported = {**user, **_said(agent.home, "env", "--json", **user).json}
    agent.kill_agent()
    told = _said(agent.home, "env", **exported)
    assert told.code == 8
    assert f"export HF_ENDPOINT={hub.url}" in told.out.splitlines()
    assert "unset MODEL_ENDPOINT" in told.out.splitlines()
    assert "HF_HUB_DISABLE_XET" not in told.out  # the user's own
    left = json.loads(_said(agent.home, "run", "--", *SHOW, **exported).out)
    assert {name: left.get(name) for name in user} == user
    assert "MODEL_ENDPOINT" not in left
    assert _said(agent.home, "env", "--unset", **exported).out == told.out


def test_without_an_agent_nothing_is_set(tmp_path: Path) -> None:
    told = _said(tmp_path / "home", "env")
    assert (told.code, told.out) == (8, "")
    assert "edgecdn agent start" in told.err
    stale = _said(tmp_path / "home", "env", HF_ENDPOINT="http://127.0.0.1:8377")
    assert (stale.code, stale.out) == (8, "unset HF_ENDPOINT\n")
    assert _said(tmp_path / "home", "env", HF_ENDPOINT=MIRROR).out == ""


def test_without_an_agent_a_command_runs_as_it_is(tmp_path: Path) -> None:
    ran = _said(tmp_path / "home", "run", "--", *SHOW, HF_ENDPOINT=MIRROR)
    assert (ran.code, json.loads(ran.out)["HF_ENDPOINT"]) == (0, MIRROR)
    assert len(ran.err.splitlines()) == 1
    assert "runs without edgecdn" in ran.err


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -TERM $$"), -signal.SIGTERM),
        (("no-such-command-here",), 127),
        (("/",), 126),
        (("sh", "-c", "echo --help -x"), 0),
    ],
)
def test_exit_code_and_signal_are_the_commands(tmp_path: Path, command: tuple[str, ...], code: int) -> None:
    assert _said(tmp_path / "home", "run", "--", *command).code == code
    assert _said(tmp_path / "home", "run", *command).code == code


def test_run_needs_a_command(tmp_path: Path) -> None:
    assert _said(tmp_path / "home", "run").code == 2
    assert _said(tmp_path / "home", "run", "--").code == 2
    assert _said(tmp_path / "home", "run", "--nonsense", "x").code == 2


def test_a_closed_pipe_ends_the_command_as_in_a_shell(tmp_path: Path) -> None:
    line = f"{sys.executable} -m edgecdn run -- yes | head -1"
    env = {"PATH": os.environ["PATH"], "EDGECDN_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        ["sh", "-c", line], cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    assert done.stdout == "y\n"
    assert "Broken pipe" not in done.stderr
