"""One hub for all command tests; every test has its own home and cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.cli.machine import MOVING, SMALL, TINY, Machine
from tests.hub import HubProcess


@pytest.fixture(scope="session")
def hub() -> Iterator[HubProcess]:
    """`org/tiny`: a config and two files of 2 MiB; `org/small`, `org/moving`: a config and one of 64 KiB."""
    repos = ("--generate", f"{TINY}=2x2MiB", "--generate", f"{SMALL}=1x64KiB", "--generate", f"{MOVING}=1x64KiB")
    with HubProcess(*repos, "--modelscope") as running:
        yield running


@pytest.fixture
def machine(
    hub: HubProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Machine:
    """A fresh home and an empty cache, talking to the test hub."""
    env = {
        "EDGECDN_HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "EDGECDN_HUB_ENDPOINTS": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    for name in [n for n in os.environ if n.startswith(("EDGECDN_", "HF_"))]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return Machine(tmp_path / "home", tmp_path / "cache", env, capsys)
