"""Runs a script with a client of the suite and returns what it saw; compares what two runs saw."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.environments import ENVIRONMENTS, Environment
from tests.faults.machine import TOKEN

__all__ = ["Seen", "clients", "differences", "run_command", "run_script"]

SCRIPTS = Path(__file__).parent / "scripts"
LIMIT_S = 200.0
"""A safety net: importing transformers alone takes seconds on a busy machine."""

Seen = dict[str, Any]
"""What a script saw: step to result."""


def clients(*names: str) -> pytest.MarkDecorator:
    """Parametrise a test by client environments; all but the newest only where CONFORMANCE=all."""
    chosen = names if os.environ.get("CONFORMANCE") == "all" else tuple(name for name in names if name == "newest")
    return pytest.mark.parametrize("client", [ENVIRONMENTS[name] for name in chosen], ids=chosen)


async def run_script(client: Environment, script: str, endpoint: str, base: Path, *arguments: str, **more: str) -> Seen:
    """Run `scripts/SCRIPT.py` with HF_ENDPOINT and a home of its own below `base`; `more`: variables."""
    command = (str(client.python), "-W", "ignore", str(SCRIPTS / f"{script}.py"), *arguments)
    out = await run_command(client, command, endpoint, base, **more)
    found: Seen = json.loads(out.splitlines()[-1])
    return found


async def run_command(client: Environment, command: tuple[str, ...], endpoint: str, base: Path, **more: str) -> str:
    """Run a command of the client to its end; its stdout. Fails with what it said when it fails."""
    if not client.is_ready:
        pytest.skip(f"the environment {client.name} is not made: `make conformance`")
    base.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=base, env=_variables(endpoint, base) | more,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(LIMIT_S):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, f"{command} ended with {process.returncode}\n{err.decode()[-4000:]}{out.decode()}"
    assert out.strip(), f"{command} says nothing\n{err.decode()[-4000:]}"
    return out.decode()


def _variables(endpoint: str, base: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(base / "user"),
        "HF_HOME": str(base / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "RIGHT_TOKEN": TOKEN,
        "NO_PROXY": "*",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "CUDA_VISIBLE_DEVICES": "",
    }


def differences(direct: Seen, through: Seen) -> dict[str, tuple[Any, Any]]:
    """Steps whose results differ: (with the hub, through the gateway). Empty is what is wanted."""
    return {
        name: _narrowed(direct.get(name), through.get(name))
        for name in _all(direct, through)
        if direct.get(name) != through.get(name)
    }


def _narrowed(one: Any, other: Any) -> tuple[Any, Any]:
    """Of two objects, only what differs."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one, other
    keys = [key for key in _all(one, other) if one.get(key) != other.get(key)]
    return {key: one.get(key) for key in keys}, {key: other.get(key) for key in keys}


def _all(one: Seen, other: Seen) -> Iterable[str]:
    return dict.fromkeys([*one, *other])
