"""Every test here gets a machine, and ends with the oracle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from huggingface_hub import constants

from tests.faults.machine import Machine
from tests.faults.mounts import Mounts


@pytest.fixture(autouse=True)
def _plain_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token, no proxy and no cache of whoever runs the tests."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN", "EDGECDN_CRASH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "nobody's-cache"))


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    """Small file systems; unmounted when the machine has been checked."""
    made = Mounts()
    yield made
    made.close()


@pytest_asyncio.fixture
async def machine(mounts: Mounts, tmp_path: Path) -> AsyncIterator[Machine]:
    """A machine with nothing on it."""
    made = Machine(tmp_path)
    yield made
    await made.close()
    made.check()
