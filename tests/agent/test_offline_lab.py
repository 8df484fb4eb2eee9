"""No hub answers: what the lab has can be fetched, by commit or, if the user says so, by name; and hubs correct it later."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.agent.agents import Agent, AgentLab, lab
from tests.agent.commands import jobs, ran, result, the_job
from tests.faults.conftest import _plain_client  # noqa: F401 - no token and no cache of whoever runs the tests
from tests.faults.machine import contents, files_in
from tests.hub import Generated, HubRepo, TestHub, make_repo
from tests.hub.content import Content

pytestmark = pytest.mark.timeout(180)

CONFIG = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8, "num_hidden_layers": 1,
          "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10, "max_position_embeddings": 8}  # fmt: skip
WORDS = np.arange(80, dtype=np.float32).reshape(10, 8)
PADDING = np.zeros(3 << 20, dtype=np.uint8)
WEIGHTS = save({"embeddings.word_embeddings.weight": WORDS, "padding": PADDING}, metadata={"format": "pt"})
FILES: dict[str, Content] = {
    "config.json": json.dumps(CONFIG).encode(),
    "README.md": b"# name",
    "vocab.txt": b"a b",
    "model.safetensors": WEIGHTS,
    "modeling.py": b"import os",
    "other/m.bin": b"pickled",
    "merges.dat": b"?",
}
HARMLESS = ("config.json", "README.md", "vocab.txt", "model.safetensors")
ASK = "--accept-lan-manifest"
Lab = tuple[TestHub, HubRepo, AgentLab, Agent]


@asynccontextmanager
async def _holder(base: Path, files: dict[str, Content]) -> AsyncIterator[Lab]:
    """A lab in which one has all files, and whose hub does not answer any more."""
    repo = make_repo("org/name", files)
    async with TestHub([repo]) as hub, lab(base, hub, fetch_patience="5s") as made:
        one = await made.agent("one")
        assert (await ran(one, "fetch", "org/name", "--all-formats")).code == 0
        for file in repo.commits[repo.main].files.values():
            await one.gives(file.etag)
        await hub.go_down("hub")
        await hub.go_down("cdn")
        yield hub, repo, made, one


def _provisional(machine: Agent) -> list[str]:
    file = machine.home / "provisional.json"
    return [row["commit"] for row in json.loads(file.read_bytes())] if file.exists() else []


async def _asker(made: AgentLab, one: Agent, *, by_agent: bool) -> Agent:
    two = made.machine("two", discovery_peers=one.lan)
    if by_agent:
        await two.start_agent()
        await two.knows(1)
    return two


@pytest.mark.parametrize("by_agent", [True, False], ids=["agent", "alone"])
async def test_a_name_needs_the_users_word_then_brings_what_is_harmless(tmp_path: Path, by_agent: bool) -> None:
    async with _holder(tmp_path, FILES) as (hub, repo, made, one):
        two = await _asker(made, one, by_agent=by_agent)
        refused = await ran(two, "fetch", "org/name")
        assert refused.code == 6
        hostname = (await one.hello()).name
        assert f"; {hostname}" in refused.err  # and some of its id: all agents here are of one machine
        assert f" of the lab has org/name at {repo.main[:12]}, which only a hub could confirm" in refused.err
        assert f"add {ASK}" in refused.err
        assert not two.cache.exists() or list(two.cache.glob("models--*")) == []

        done = await ran(two, "fetch", "org/name", ASK, "--all-formats")
        path = Path(done.out.strip())
        assert path.name == repo.main
        assert "(3.1 MB from the lab, 100 % of the line saved)" in done.err
        assert files_in(path) == {name: contents(repo)[name] for name in HARMLESS}
        assert "Left out until a hub confirms the listing: merges.dat, modeling.py, other/m.bin." in done.err
        assert _provisional(two) == [repo.main]
        assert two.offline(allow_patterns=list(HARMLESS)) == path
        if not by_agent:
            assert await _loaded(two) == "3160.0"

        await hub.come_back("hub")
        await hub.come_back("cdn")
        confirmed = await ran(two, "fetch", "org/name", "--all-formats")
        assert confirmed.code == 0
        assert f"confirms the listing of {repo.main[:12]} that came from the lab." in confirmed.err
        assert files_in(confirmed.out.strip()) == contents(repo)
        assert _provisional(two) == []


async def test_a_commit_whose_listing_is_here(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub, fetch_patience="5s") as made:
        one = await made.agent("one")
        await ran(one, "fetch", "org/name", "--all-formats")
        two = await _asker(made, one, by_agent=True)
        await ran(two, "fetch", "org/name", "--include", "config.json")
        for file in repo.commits[repo.main].files.values():
            await one.gives(file.etag)
        await hub.go_down("hub")
        await hub.go_down("cdn")
        got = result(await ran(two, "fetch", f"org/name@{repo.main}", "--all-formats", "--json"))
        assert files_in(got["path"]) == contents(repo), "a hub's own listing: every file of it"
        assert got["bytes_by_source"]["lan"] > 3 << 20
        by_name = await ran(two, "fetch", "org/name")
        assert by_name.code == 0
        assert f"using the commit of main that was last seen here ({repo.main[:12]})" in by_name.err
        other = await ran(two, "fetch", f"org/name@{'a' * 40}")
        assert other.code == 6
        assert "of the lab" not in other.err


async def test_hf_hub_offline_is_kept_by_the_lab(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub, fetch_patience="5s") as made:
        one = await made.agent("one")
        await ran(one, "fetch", "org/name", "--all-formats")
        await one.gives(repo.commits[repo.main].files["model.safetensors"].sha256)
        two = await _asker(made, one, by_agent=True)
        hub.stats.reset()
        refused = await ran(two, "fetch", "org/name", HF_HUB_OFFLINE="1")
        assert refused.code == 6
        assert ASK in refused.err
        got = result(await ran(two, "fetch", "org/name", ASK, "--json", HF_HUB_OFFLINE="1"))
        assert files_in(got["path"]) == {name: contents(repo)[name] for name in HARMLESS}
        assert list(hub.stats.requests) == []
        assert _provisional(two) == [repo.main]


async def _loaded(machine: Agent) -> str:
    """What transformers makes of it, in a process that can ask nobody: the sum of the weights it was made with."""
    code = (
        "from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained('org/name')\n"
        "print(model.embeddings.word_embeddings.weight.sum().item())\n"
    )
    environ = machine.variables() | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    loading = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", code, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(loading.communicate(), 50)
    assert loading.returncode == 0, err.decode()
    return out.decode().splitlines()[-1]


async def test_44_a_false_listing_brings_nothing_dangerous_and_is_corrected(tmp_path: Path) -> None:
    """A peer says of the hub's commit that it has other files: its own hub says so, and it is believed there."""
    true = make_repo("org/name", FILES)
    lie: dict[str, Content] = {**FILES, "config.json": b'{"auto_map": 1}', "adapter_config.json": b"{}", "model.safetensors": Generated(12, 1 << 20),
           "evil.py": b"import os", "evil.bin": b"pickle"}  # fmt: skip
    false = make_repo("org/name", lie)
    commit = false.commits.pop(false.main)
    false.commits[true.main] = type(commit)(true.main, commit.files)
    false.branches["main"] = true.main
    async with TestHub([false]) as liars, TestHub([true]) as hub, lab(tmp_path, hub, fetch_patience="3s") as made:
        liar = made.machine("liar", liars)
        await liar.start_agent()
        assert (await ran(liar, "fetch", "org/name", "--all-formats")).code == 0
        await liar.gives(commit.files["model.safetensors"].sha256)
        await hub.go_down("hub")
        await hub.go_down("cdn")
        two = await _asker(made, liar, by_agent=True)
        got = result(await ran(two, "fetch", "org/name", ASK, "--all-formats", "--json"))
        assert set(files_in(got["path"])) == {*HARMLESS, "adapter_config.json"}
        later = await ran(two, "fetch", "org/name", "--all-formats")
        assert "evil.py" in later.err, "asked for again without the flag, it is still only a claim"
        assert set(files_in(got["path"])) == {*HARMLESS, "adapter_config.json"}
        pinned = await ran(two, "fetch", f"org/name@{true.main}", "--all-formats")
        assert "evil.py" in pinned.err
        assert set(files_in(got["path"])) == {*HARMLESS, "adapter_config.json"}
        assert await _asked_of(two, true.main) == 404, "what only peers vouch for is not passed on"

        await hub.come_back("hub")
        await hub.come_back("cdn")
        await two.stop_agent()
        broken_off = await ran(two, "fetch", "org/name", "--include", "config.json", EDGECDN_CRASH="publish.5")
        assert broken_off.code not in (0, 6)
        assert f"does not confirm the listing of {true.main[:12]}" in broken_off.err
        assert _provisional(two) == [true.main], "until the hub's listing is written, the false one stands there"
        corrected = await ran(two, "fetch", "org/name", "--include", "config.json")
        assert corrected.code == 0
        assert f"does not confirm the listing of {true.main[:12]}" in corrected.err
        assert files_in(got["path"]).keys() == {"config.json", "README.md", "vocab.txt"}, "what was false is gone"
        assert (await ran(two, "fetch", "org/name", "--all-formats")).code == 0
        assert files_in(got["path"]) == contents(true)
        assert _provisional(two) == []


async def _asked_of(machine: Agent, commit: str) -> int:
    return (await machine.ask("GET", f"/manifests/model/org/name/{commit}"))[0]


async def test_a_job_that_nobody_waits_for_goes_on_when_a_hub_is_back(tmp_path: Path) -> None:
    repo = make_repo("org/name", {"config.json": b"{}"})
    async with TestHub([repo]) as hub, lab(tmp_path, hub, fetch_patience="1s") as made:
        one = made.machine("one")
        request = {"id": "a1b2c3d4e5f6", "request": {"model": "org/name"}}
        one.home.mkdir(parents=True)
        (one.home / "jobs.json").write_text(json.dumps([request]))
        await hub.go_down("hub")
        await one.start_agent()
        waiting = await the_job(one, lambda job: job["state"] == "waiting")
        assert "No source is reachable" in waiting["detail"]
        await hub.come_back("hub")
        joined = result(await ran(one, "fetch", "org/name", "--json"))
        assert joined["files"] == 1
        async with asyncio.timeout(40):
            while {job["state"] for job in await jobs(one)} != {"done"}:
                await asyncio.sleep(0.05)
