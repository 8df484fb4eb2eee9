"""`edgecdn hook` on real environments, and what the one file that enters them may not do."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path

import pytest

from edgecdn.cli.main import run
from edgecdn.plugin.bundle import hook_source, pth_source
from tests.agent.agents import lab
from tests.faults.machine import ROOT
from tests.hub import TestHub


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGECDN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    venv.create(tmp_path / "env", with_pip=False)
    return tmp_path / "env"


def python(environment: Path, code: str, **env: str) -> str:
    done = subprocess.run(
        [environment / "bin" / "python", "-c", code], env=os.environ | env, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.strip()


def state(environment: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert run(["hook", "status", "--python", str(environment), "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


LOADED = "import sys; print('edgecdn_hook' in sys.modules, any(hasattr(f, 'is_edgecdn') for f in sys.meta_path))"


def test_it_comes_and_goes_without_a_trace(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path for path in environment.rglob("*") if "__pycache__" not in path.parts}
    assert state(environment, capsys) | {"installed": True} != state(environment, capsys)
    assert run(["hook", "install", "--python", str(environment)]) == 0
    found = state(environment, capsys)
    assert (found["installed"], found["outdated"], found["kind"], found["agent"]) == (True, False, "venv", False)
    assert python(environment, LOADED) == "True True"
    assert python(environment, LOADED, EDGECDN_DISABLE="1") == "False False"
    added = {path for path in environment.rglob("*") if path.is_file()} - before
    assert {path.name.split(".")[0] for path in added} == {"edgecdn_hook"}
    assert run(["hook", "remove", "--python", str(environment / "bin" / "python")]) == 0
    assert python(environment, LOADED) == "False False"
    assert {path for path in environment.rglob("*") if "__pycache__" not in path.parts} == before
    assert run(["hook", "remove", "--python", str(environment)]) == 0


def test_an_older_one_is_told_and_replaced(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["hook", "install", "--python", str(environment)])
    module = next(environment.rglob("edgecdn_hook.py"))
    module.write_text("# edgecdn hook 0.0.1\n")
    assert state(environment, capsys)["outdated"] is True
    assert state(environment, capsys)["version"] == "0.0.1"
    assert run(["hook", "install", "--python", str(environment)]) == 0
    assert module.read_text() == hook_source()


def test_what_is_not_ours_is_left_alone(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = next(environment.rglob("site-packages")) / "edgecdn_hook.py"
    own.write_text("mine = 1\n")
    assert run(["hook", "install", "--python", str(environment)]) == 2
    assert run(["hook", "remove", "--python", str(environment)]) == 2
    assert own.read_text() == "mine = 1\n"
    assert run(["hook", "status", "--python", "/nowhere/python"]) == 2


def test_an_environment_that_is_gone_is_said_to_be_this_shells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "gone"))
    assert run(["hook", "status"]) == 2
    said = capsys.readouterr().err
    assert f"VIRTUAL_ENV of this shell names {tmp_path / 'gone'}" in said
    assert "deactivate" in said
    assert run(["hook", "status", "--python", str(tmp_path / "none")]) == 2
    assert "VIRTUAL_ENV" not in capsys.readouterr().err


async def test_status_says_whether_loads_go_by_the_agent(environment: Path, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "EDGECDN_"))}
    environ["EDGECDN_HOME"] = str(tmp_path / "home")

    def hook(*arguments: str, **env: str) -> str:
        command = [sys.executable, "-m", "edgecdn", "hook", *arguments, "--python", str(environment)]
        done = subprocess.run(command, env=environ | env, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout

    def used(**env: str) -> tuple[bool, str]:
        found = json.loads(hook("status", "--json", **env))
        return found["used"], found["why"]

    assert used() == (False, "there is no hook: `edgecdn hook install`")
    hook("install")
    assert "no huggingface_hub" in used()[1]
    library = next(environment.rglob("site-packages")) / "huggingface_hub-1.0.dist-info"
    library.mkdir()
    (library / "METADATA").write_text("Name: huggingface_hub\nVersion: 1.0\n")
    assert "agent is not running" in used()[1]
    async with TestHub([]) as hub, lab(tmp_path / "lab", hub) as made:
        one = await made.agent("one")
        environ["EDGECDN_HOME"] = str(one.home)
        assert used(HF_ENDPOINT=hub.url + "/") == (True, "")
        by_gateway = used(HF_ENDPOINT=f"http://{one.listener('local')}")
        assert by_gateway[0]
        assert "is the gateway" in by_gateway[1]
        for endpoint, told in (("", "https://huggingface.co"), ("https://mirror.example", "https://mirror.example")):
            found = used(HF_ENDPOINT=endpoint)
            assert not found[0]
            assert f"config set hub.endpoints {told} {hub.url}" in found[1]
            assert ("unset HF_ENDPOINT" in found[1]) == bool(endpoint)
        assert "used: no: tools ask https://huggingface.co" in hook("status")
        assert "EDGECDN_DISABLE" in used(EDGECDN_DISABLE="1")[1]


def test_a_broken_hook_keeps_no_python_from_starting(environment: Path) -> None:
    run(["hook", "install", "--python", str(environment)])
    module = next(environment.rglob("edgecdn_hook.py"))
    module.write_text("raise RuntimeError\n")
    assert python(environment, "print(1)") == "1"
    module.unlink()
    for compiled in environment.rglob("edgecdn_hook*.pyc"):
        compiled.unlink()
    assert python(environment, "print(1)") == "1"


def test_the_file_is_of_the_standard_library_alone_and_of_python_3_9() -> None:
    tree = ast.parse(hook_source(), feature_version=(3, 9))
    imported = {
        name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    imported |= {(node.module or ".").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)
    names = Counter(node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    names.update(
        node.targets[0].id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    )
    assert [name for name, count in names.items() if count > 1] == []
    assert "edgecdn.plugin" not in re.sub(r"`[^`]*`", "", hook_source())


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12", "3.13"])
def test_it_loads_in_older_and_newer_pythons(version: str, tmp_path: Path) -> None:
    kept = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    found = [*map(str, kept), *filter(None, [shutil.which(f"python{version}")])]
    if not found:
        pytest.skip(f"there is no Python {version} here")
    (tmp_path / "edgecdn_hook.py").write_text(hook_source())
    code = "import sys; sys.path.insert(0, '.'); import edgecdn_hook as h; print(h.enable(), h.find_agent('/nowhere'))"
    done = subprocess.run(
        [found[0], "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "None"], done.stderr


def test_starting_python_loads_nothing_for_it(environment: Path) -> None:
    code = "import sys; print(' '.join(sorted(m for m in sys.modules)))"
    bare = set(python(environment, code).split())
    run(["hook", "install", "--python", str(environment)])
    assert set(python(environment, code).split()) - bare <= {"edgecdn_hook", "__future__"}


def test_the_pth_is_one_guarded_line() -> None:
    lines = pth_source().splitlines()
    assert lines[0].startswith("# edgecdn hook ")
    assert len(lines) == 2
    assert lines[1].startswith("import os; exec(")
