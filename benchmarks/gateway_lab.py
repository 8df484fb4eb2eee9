"""A model of 1 GiB that a peer on 1 Gbit/s has, by users' tools: with the plugin, and through the gateway.

`python -m benchmarks tools-lan tools-lan-load`. Namespaces with cables of 1 Gbit/s; files lie in memory. Seconds are those
of the call (`snapshot_download`, `from_pretrained`) in a process that has imported what it needs. Beside them the same call
without an agent, from a hub on 1 Gbit/s: what the client and the machine make of such a line.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bare_swarm import in_a_lab
from benchmarks.gateway_tools import load_note
from benchmarks.lab_rivals import link_mbit
from tests.lab.hub import LabHub
from tests.lab.machine import Machine
from tests.lab.processes import base_variables
from tests.lab.world import World
from tests.plugin.clients import put_hook

__all__ = ["WAYS"]

REPO = "org/big"
_MBIT = 1000
_ROUNDS = 3
_LIMIT_S = 300.0
_ALONE = "no agent"
_BARS = {"plugin": "(bar 0.85)", "gateway": "(bar 0.75)", _ALONE: "(no bar)"}

_MAKE = """
import sys
from transformers import BertConfig, BertModel
# 1 GiB of weights, nearly all of it words: quickly made, quickly loaded.
config = BertConfig(vocab_size=250_000, hidden_size=1024, num_hidden_layers=1, num_attention_heads=16)
BertModel(config).save_pretrained(sys.argv[1])
"""

_SNAPSHOT = """
import json, time
from huggingface_hub import snapshot_download
began = time.perf_counter()
snapshot_download("org/big")
print(json.dumps(time.perf_counter() - began))
"""

_LOAD = """
import json, time
from transformers import BertModel
began = time.perf_counter()
BertModel.from_pretrained("org/big")
print(json.dumps(time.perf_counter() - began))
"""


@in_a_lab
def tools_lan(base: Path) -> str:
    """`snapshot_download` of what one peer has: bytes / seconds of the line's rate."""
    return asyncio.run(_lan(base / "tools-lan", _SNAPSHOT, loads=False))


@in_a_lab
def tools_lan_load(base: Path) -> str:
    """`from_pretrained` of it; its load alone, measured again with the cache full, is told apart."""
    return asyncio.run(_lan(base / "tools-lan", _LOAD, loads=True))


async def _lan(base: Path, script: str, *, loads: bool) -> str:
    base.mkdir(parents=True)
    try:
        model = base / "model"
        subprocess.run([sys.executable, "-c", _MAKE, str(model)], check=True, stderr=subprocess.DEVNULL)
        size = sum(path.stat().st_size for path in model.iterdir())
        async with World(base / "world") as world:
            hub = world.hub("--dir", f"{REPO}={model}", rate=_MBIT)
            holder = world.machine("holder", _MBIT)
            await holder.start_agent()
            await holder.fetch(REPO, limit_s=_LIMIT_S)
            takers = [world.machine(f"taker{number}", _MBIT) for number in range(len(_BARS) * _ROUNDS)]
            rate, by = link_mbit(holder.node, takers[0].node)
            times: dict[str, list[tuple[float, float]]] = {way: [] for way in _BARS}
            sent = 0
            for number, taker in enumerate(takers):
                way = list(_BARS)[number % len(_BARS)]
                hub.reset_stats()
                times[way].append(await _taken(hub, taker, script, way, again=loads))
                sent += 0 if way == _ALONE else int(hub.stats()["total"])
        floor_s = size * 8 / 1e6 / rate
        shown = [f"{size / (1 << 20):.0f} MiB, {by} {rate:.0f} Mbit/s"]
        shown += [_shown(way, found, floor_s) for way, found in times.items()]
        return f"{'; '.join(shown)}; the hub sent {sent / 1e6:.1f} MB beside that; {load_note()}"
    finally:
        shutil.rmtree(base, ignore_errors=True)


async def _taken(hub: LabHub, taker: Machine, script: str, way: str, *, again: bool) -> tuple[float, float]:
    """Seconds of the script on a machine that has nothing, and (where asked for) of the same once it has it."""
    agent = await taker.start_agent()
    await _sees_a_peer(taker)
    variables = _variables(hub, taker, way)
    try:
        first = await _seconds(taker, variables, script)
        return first, await _seconds(taker, variables, script) if again else 0.0
    finally:
        await agent.stop()
        shutil.rmtree(taker.cache)  # memory is not endless
        shutil.rmtree(taker.folder / "hf", ignore_errors=True)


def _variables(hub: LabHub, taker: Machine, way: str) -> dict[str, str]:
    """The environment of a user: with the hook and the agent's cache, or with a cache of their own."""
    variables = base_variables(taker.folder) | {
        "HF_HOME": str(taker.folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1", "DISABLE_SAFETENSORS_CONVERSION": "1",
    }  # fmt: skip
    if way != "plugin":
        return variables | {"HF_ENDPOINT": taker.control_url if way == "gateway" else hub.url}
    site = str(put_hook(taker.folder / "site"))
    own = {"EDGECDN_HOME": str(taker.home), "HF_HUB_CACHE": str(taker.cache), "PYTHONPATH": site}
    return variables | own | {"HF_ENDPOINT": hub.url}


async def _seconds(taker: Machine, variables: dict[str, str], script: str) -> float:
    process = await asyncio.create_subprocess_exec(
        *taker.node.command(sys.executable, "-c", script), env=variables,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(_LIMIT_S):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert b"edgecdn:" not in err, err.decode()  # the plugin's warning: it did without the agent
    return float(json.loads(out.splitlines()[-1]))


async def _sees_a_peer(machine: Machine) -> None:
    async with asyncio.timeout(60):
        while not (await _status(machine))["peers"]:
            await asyncio.sleep(0.1)


async def _status(machine: Machine) -> Any:
    return await machine.get("/edgecdn/v1/status")


def _shown(way: str, times: list[tuple[float, float]], floor_s: float) -> str:
    whole = [first for first, _ in times]
    text = f"{way}: {floor_s / statistics.median(whole):.3f} of the line"
    text += f" (best {floor_s / min(whole):.3f}; {', '.join(f'{one:.2f}' for one in whole)} s)"
    if any(again for _, again in times):
        load_s = statistics.median(again for _, again in times)
        text += f", of it {load_s:.2f} s load alone: {floor_s / (statistics.median(whole) - load_s):.3f} without that"
    return f"{text} {_BARS[way]}"


WAYS: dict[str, Callable[[Path], str]] = {"tools-lan": tools_lan, "tools-lan-load": tools_lan_load}
