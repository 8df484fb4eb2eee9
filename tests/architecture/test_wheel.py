"""The wheel holds the three packages and what they need, and works where it is installed alone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"edgecdn", "edgecdn_agent", "edgecdn_trainer"}


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this tree, without a network: by the build backend of the test extra."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling, the build backend: `pip install hatchling`")
    base = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    _run(*pip, "--no-index", "--quiet", "--wheel-dir", str(base), str(ROOT), cwd=base)
    (built,) = base.glob("*.whl")
    return built


def test_it_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert len(tops) == len(PACKAGES) + 1
    assert {"edgecdn/aliases.toml", "edgecdn/py.typed"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or "test" in name.lower()]
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "edgecdn").rglob("*.py")}
    assert sources <= set(names)


def test_it_works_installed_alone(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "alone"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index", "--quiet"]
    _run(*pip, "--target", str(target), str(wheel), cwd=tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import edgecdn, edgecdn_agent, edgecdn_trainer; "
        "from edgecdn.shortnames import lookup; "  # reads the table that is no Python
        "print(edgecdn.__file__, edgecdn.__version__, lookup('qwen-7b', None, {})[1])"
    )
    out = _run(sys.executable, "-I", "-S", "-c", code, cwd=tmp_path)  # no site-packages: nothing but the wheel
    assert out.startswith(str(target / "edgecdn"))
    assert out.split()[-1] == "Qwen/Qwen-7B"
    (script,) = (target / "bin").glob("edgecdn*")
    assert "edgecdn.cli.main" in script.read_text()
