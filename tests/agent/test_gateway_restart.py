"""What an agent knows of a repo that only unchanged tools asked for, after a restart and without a hub."""

from __future__ import annotations

import os
import subprocess
import sys
from asyncio import to_thread
from pathlib import Path

from tests.agent.agents import Agent, lab
from tests.hub import TestHub, make_repo
from tests.hub.content import Generated
from tests.hub.repos import Contents

LIMIT_S = 60
SNAPSHOT = "import huggingface_hub, sys; print(huggingface_hub.snapshot_download(sys.argv[1]))"


async def snapshot(agent: Agent, user: Path) -> Path:
    """`snapshot_download` of a user with a cache of their own, through the gateway."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "EDGECDN_"))},
        "HF_ENDPOINT": f"http://{agent.listener('local')}",
        "HF_HOME": str(user),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
    }
    done = await to_thread(
        subprocess.run, [sys.executable, "-c", SNAPSHOT, "org/name"],
        env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


async def test_a_branch_is_known_after_a_restart_without_a_hub(tmp_path: Path) -> None:
    files: Contents = {"config.json": b"{}", "model.safetensors": Generated(3, 3 << 20)}
    async with TestHub([make_repo("org/name", files)]) as hub, lab(tmp_path, hub) as made:
        one = await made.agent("one")
        first = await snapshot(one, tmp_path / "first")
        await one.stop_agent()
        await hub.go_down("hub")
        await hub.go_down("cdn")
        await one.start_agent()
        second = await snapshot(one, tmp_path / "second")
        for name in files:
            assert (second / name).read_bytes() == (first / name).read_bytes()
        assert second.name == first.name
