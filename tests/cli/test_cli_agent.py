"""`edgecdn agent ..`, `status`, `peers`, `top`, against an agent that is a process of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecdn.agent_link import find_agent
from edgecdn.cli.main import run
from edgecdn.errors import AgentHangs, AgentNotRunning, BadInput, SystemFailed
from edgecdn.upkeep.agent_process import (
    agent_command,
    agent_log,
    agent_pid,
    answering_agent,
    start_agent,
    stop_agent,
    waited_for,
)
from edgecdn.upkeep.systemd_unit import install_unit, remove_unit, unit_path, unit_text
from edgecdn_agent.run_file import HomeLock
from tests.agent.agent_process import COMMAND, agent_process
from tests.cli.machine import Outcome
from tests.hub.process import ROOT

Command = Callable[..., Outcome]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [n for n in os.environ if n.startswith(("EDGECDN_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGECDN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "home"


@pytest.fixture
def edgecdn(home: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def command(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run(arguments)
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return command


@pytest.mark.parametrize(
    "command", [("status",), ("agent", "status", "--json"), ("peers", "--json"), ("top", "--once"), ("top",)]
)
def test_without_an_agent_it_is_exit_8(edgecdn: Command, command: tuple[str, ...]) -> None:
    done = edgecdn(*command)
    assert (done.code, done.out) == (8, "")
    assert "agent is not running" in done.err
    assert "edgecdn agent start" in done.err


def test_what_a_running_agent_shows(home: Path, edgecdn: Command) -> None:
    with agent_process(home) as (process, _):
        status = edgecdn("status", "--json")
        assert status.code == 0
        shown = {"version", "agent_id", "uptime_s", "peers", "jobs", "cache", "totals", "listeners", "name"}
        assert set(status.json) == shown
        assert "agent desk-1 (" in edgecdn("status").out
        assert status.json["cache"] == {"repos": 3, "bytes": 5}
        assert set(status.json["totals"]) == {"in_by_source", "out_lan"}
        assert "3 repos" in edgecdn("agent", "status").out
        peers = edgecdn("peers", "--json").json
        assert [set(p) for p in peers] == [{"id", "name", "addresses", "version", "last_seen_s"}]
        assert peers[0]["addresses"] == ["192.0.2.7"]
        assert edgecdn("peers").out.startswith("desk-2")
        assert "peer desk-2: in 0 B/s, out 0 B/s" in edgecdn("top", "--once").out
        assert edgecdn("top", "--json").json["name"] == "desk-1"
        again = edgecdn("agent", "start")
        assert again.code == 0
        assert f"running already (process {process.pid})" in again.err


def _top() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgecdn", "top"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_top_without_a_terminal_is_lines_until_ctrl_c(home: Path) -> None:
    with agent_process(home), _top() as top:
        assert top.stdout is not None
        assert top.stderr is not None
        assert top.stdout.readline().startswith("desk-1: in")
        top.send_signal(signal.SIGINT)
        assert top.wait(20) == 0
        assert top.stderr.read() == ""


def test_top_on_a_terminal_is_a_screen(home: Path) -> None:
    ours, theirs = pty.openpty()
    with agent_process(home):
        command = [sys.executable, "-m", "edgecdn", "top"]
        env = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=env) as top:
            shown = b""
            while b"peer desk-2" not in shown:
                shown += os.read(ours, 4096)
            assert b"desk-1   in 0 B/s" in shown
            assert b"IN ALL" in shown
            top.send_signal(signal.SIGINT)
            assert top.wait(20) == 0
    os.close(ours)
    os.close(theirs)


def test_top_ends_with_8_when_the_agent_does(home: Path) -> None:
    with agent_process(home) as (agent, _), _top() as top:
        assert top.stdout is not None
        assert top.stderr is not None
        top.stdout.readline()
        agent.kill()
        assert top.wait(20) == 8
        assert "agent is not running" in top.stderr.read()


def test_start_and_stop(home: Path, edgecdn: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    address, failing = start_agent(home, COMMAND)
    assert failing == {}
    try:
        assert agent_pid(home) == address.run.pid
        assert find_agent(home) == address
        assert os.getpgid(address.run.pid) == os.getsid(address.run.pid) == address.run.pid  # of no terminal
        assert agent_log(home).stat().st_mode & 0o777 == 0o600
        began = time.monotonic()
        done = edgecdn("agent", "stop")
        assert time.monotonic() - began < 5
        assert (done.code, done.out) == (0, "")
        assert f"process {address.run.pid}) has stopped" in done.err
        assert agent_pid(home) is None
        assert edgecdn("status").code == 8
        assert "No agent serves" in edgecdn("agent", "stop").err
    finally:
        _end(address.run.pid)


def test_an_agent_that_ends_at_once_says_why(home: Path) -> None:
    home.mkdir()
    (home / "agent.log").write_text("from before\n")
    with pytest.raises(SystemFailed, match="the port is mine") as caught:
        start_agent(
            home,
            [
                sys.executable,
                "-c",
                "print('edgecdn: the port is mine', flush=True); print('  later'); raise SystemExit(3)",
            ],
        )
    assert str(agent_log(home)) in caught.value.remedy
    with pytest.raises(SystemFailed, match="said nothing"):
        start_agent(home, [sys.executable, "-c", "pass"])


def test_an_agent_that_gets_not_ready_is_told_of(home: Path) -> None:
    with pytest.raises(AgentNotRunning, match="not ready after") as caught:
        start_agent(home, [sys.executable, "-c", "import time; time.sleep(3)"], limit_s=0.3)
    assert caught.value.exit_code == 8


def test_an_agent_that_does_not_stop_is_told_of(home: Path, edgecdn: Command) -> None:
    with agent_process(home) as (process, _):
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(SystemFailed, match="did not stop"):
            stop_agent(home, limit_s=0.3)
        for command in (("agent", "status"), ("agent", "start")):
            done = edgecdn(*command)
            assert done.code == 8
            assert f"process {process.pid}) hangs" in done.err
            assert "`edgecdn agent stop`" in done.err
            assert f"kill -9 {process.pid}" in done.err


def test_one_that_holds_the_home_and_is_not_to_be_found_is_told_of(home: Path, edgecdn: Command) -> None:
    with HomeLock(home):
        done = edgecdn("status")
        assert done.code == 8
        assert f"process {os.getpid()}) hangs, or is just starting" in done.err
        with pytest.raises(AgentHangs):
            answering_agent(home, starting_s=0.2)
    assert answering_agent(home) is None


def test_where_ports_were_taken_start_says_which(home: Path, edgecdn: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECDN_DISCOVERY_MDNS", "off")
    monkeypatch.setenv("EDGECDN_SWARM_LISTEN", "off")
    monkeypatch.setenv("EDGECDN_GATEWAY_LISTEN", "127.0.0.1:0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("EDGECDN_LAN_LISTEN", f"127.0.0.1:{port}")
        try:
            done = edgecdn("agent", "start")
            address = find_agent(home)
            assert done.code == 0, done.err
            assert address is not None
            used = address.run.listeners["lan"].rpartition(":")[2]
            assert used != str(port)
            assert f"lan {used} instead of {port}." in done.err
            assert "firewall" in done.err
            assert "local" not in done.err.split("uses others")[1].split(".")[0]
        finally:
            pid = agent_pid(home)
            edgecdn("agent", "stop")
            if pid is not None:
                _end(pid)


def test_stop_says_who_waited(home: Path, edgecdn: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    address, _ = start_agent(home, COMMAND)
    try:
        command = [sys.executable, "-m", "edgecdn", "fetch", "slow-1", "--quiet"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT) as waiting:
            deadline = time.monotonic() + 30
            while waited_for(home) != 1:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert (
                "1 file or fetch was waited for: unless it is back in a second, tools begin anew"
                in edgecdn("agent", "stop").err
            )
            waiting.wait(30)
    finally:
        _end(address.run.pid)


def test_row38_stop_after_a_kill_signals_nobody(home: Path, edgecdn: Command) -> None:
    with agent_process(home) as (process, _):
        process.kill()
        process.wait(20)
    (home / "agent.lock").write_text(str(os.getpid()))  # the number went to somebody else: this process
    assert edgecdn("agent", "stop").code == 0


def test_run_becomes_the_agent(home: Path) -> None:
    package = home.parent / "fake" / "edgecdn_agent"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("import os, sys; print(os.getpid(), sys.argv[1:])")
    env = os.environ | {"PYTHONPATH": f"{package.parent}:{ROOT}"}
    with subprocess.Popen(
        [sys.executable, "-m", "edgecdn", "agent", "run", "--log-format", "json", "--verbose"],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    ) as process:
        out, _ = process.communicate(timeout=20)
    assert out.strip() == f"{process.pid} ['--log-format', 'json', '--verbose']"


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that writes down what it was asked, and fails where a file says so."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "systemctl"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nif [ -e {tmp_path}/broken ]; then echo "Failed to connect to bus" >&2; exit 1; fi\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tmp_path / "asked"


def test_install_and_uninstall(home: Path, edgecdn: Command, systemctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/data/my 100% cache")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    done = edgecdn("agent", "install")
    assert done.code == 0
    assert "loginctl enable-linger" in done.err
    assert "HF_TOKEN is not put" in done.err
    unit = Path(done.out.strip())
    assert unit == unit_path(os.environ)
    text = unit.read_text()
    assert f'ExecStart="{sys.executable}" "-P" "-m" "edgecdn_agent"' in text
    assert f'Environment="EDGECDN_HOME={home}"' in text
    assert 'Environment="HF_HUB_CACHE=/data/my 100%% cache"' in text
    assert "hf_secret" not in text
    assert systemctl.read_text().splitlines() == ["--user daemon-reload", "--user enable --now edgecdn.service"]
    assert edgecdn("agent", "install").code == 0  # our own, unchanged: written again
    assert edgecdn("agent", "uninstall").code == 0
    assert not unit.exists()
    assert systemctl.read_text().splitlines()[-2:] == ["--user disable --now edgecdn.service", "--user daemon-reload"]
    gone = edgecdn("agent", "uninstall")
    assert gone.code == 0
    assert "There is no" in gone.err


def test_a_unit_that_the_user_changed_is_not_lost(home: Path, edgecdn: Command, systemctl: Path) -> None:
    unit = Path(edgecdn("agent", "install").out.strip())
    unit.write_text(unit.read_text().replace("RestartSec=5", "RestartSec=77"))
    for command in ("install", "uninstall"):
        refused = edgecdn("agent", command)
        assert refused.code == 2
        assert "--force" in refused.err
        assert "RestartSec=77" in unit.read_text()
    forced = edgecdn("agent", "install", "--force")
    assert forced.code == 0
    kept = unit.with_name("edgecdn.service.kept")
    assert str(kept) in forced.err
    assert "RestartSec=77" in kept.read_text()
    assert "RestartSec=5\n" in unit.read_text()
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert edgecdn("agent", "install").code == 2
    assert edgecdn("agent", "uninstall", "--force").code == 0


def test_without_systemd_it_says_what_to_do(
    home: Path, edgecdn: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = edgecdn("agent", "install")
    assert done.code == 1
    assert "@reboot edgecdn agent start" in done.err
    assert not unit_path(os.environ).exists()


def test_without_a_user_manager_it_says_what_to_do(
    home: Path, edgecdn: Command, systemctl: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken").touch()
    done = edgecdn("agent", "install")
    assert done.code == 1
    assert "Failed to connect to bus" in done.err
    assert "systemctl --user enable --now" in done.err


def test_uninstall_without_a_user_manager_says_how_to_do_it_by_hand(
    home: Path, edgecdn: Command, systemctl: Path, tmp_path: Path
) -> None:
    unit = Path(edgecdn("agent", "install").out.strip())
    (tmp_path / "broken").touch()
    done = edgecdn("agent", "uninstall")
    assert done.code == 1
    assert f"rm {unit}" in done.err
    assert "enable" not in done.err
    assert unit.exists()


def test_install_beside_a_running_agent_starts_no_second(home: Path, edgecdn: Command, systemctl: Path) -> None:
    with agent_process(home):
        done = edgecdn("agent", "install")
    assert "An agent runs already" in done.err
    assert systemctl.read_text().splitlines()[-1] == "--user enable edgecdn.service"


def test_units_are_read_back_as_they_were_meant(tmp_path: Path) -> None:
    text = unit_text(
        agent_command("a b", 'c"d', "e$f", "g%h"),
        tmp_path,
        {"EDGECDN_LAN_LISTEN": "off", "EDGECDN_WEBHOOK_SECRETS_GITEE": "x", "OTHER": "y"},
    )
    assert r'"a b" "c\"d" "e$$f" "g%%h"' in text
    assert 'Environment="EDGECDN_LAN_LISTEN=off"' in text
    assert "GITEE" not in text
    assert "OTHER" not in text
    with pytest.raises(BadInput):
        (tmp_path / "edgecdn.service").write_bytes(b"\xff")
        install_unit(tmp_path / "edgecdn.service", text, start=False)
    assert not remove_unit(tmp_path / "none.service")


def _end(pid: int) -> None:
    """What was started detached is a child of this process all the same."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
