"""The package keeps its shape: short modules, short functions, light imports."""

from __future__ import annotations

import ast
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for folder in ("edgecdn", "agent/edgecdn_agent") for path in (ROOT / folder).rglob("*.py"))
HEAVY = {
    "aiohttp",
    "huggingface_hub",
    "hf_xet",
    "libtorrent",
    "torch",
    "transformers",
    "rich",
    "click",
    "yarl",
    "sqlite3",
    "asyncio",
}


def _lengths(path: Path) -> dict[str, int]:
    """Lines of each function, decorators and docstring included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f"{path.name}:{n.lineno} {n.name}": (n.end_lineno or n.lineno) - n.lineno + 1 for n in functions}


def test_modules_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert len(lines) > 30
    assert {name: count for name, count in lines.items() if count > 500} == {}
    assert statistics.median(lines.values()) <= 150


def test_functions_are_short() -> None:
    lengths = {name: count for path in MODULES for name, count in _lengths(path).items()}
    assert {name: count for name, count in lengths.items() if count > 80} == {}
    counts = sorted(lengths.values())
    assert counts[len(counts) * 9 // 10] <= 30
    assert statistics.median(counts) <= 10


def test_every_module_says_what_it_is_and_what_it_exports() -> None:
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        if path.name not in ("__init__.py", "__main__.py", "version.py"):
            names = [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
            assert "__all__" in names, path


def _imported_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after `code`."""
    tell = "; import json, sys; print('\\n' + json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code + tell], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_edgecdn_loads_nothing_heavy() -> None:
    loaded = _imported_by("import edgecdn")
    assert "edgecdn" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["-h"]])
def test_the_help_loads_no_network(arguments: list[str]) -> None:
    loaded = _imported_by(f"from edgecdn.cli.main import run; assert run({arguments!r}) == 0")
    assert "click" in loaded
    assert loaded & (HEAVY - {"click"}) == set()


def test_every_command_in_the_help_exists() -> None:
    code = (
        "import click; from edgecdn.cli.main import main; c = click.Context(main); "
        "assert all(main.get_command(c, name).name == name for name in main.list_commands(c))"
    )
    assert "click" in _imported_by(code)
