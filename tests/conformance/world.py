"""The repos every client meets, the hub that has them, and the two ways to it: directly, and through an agent."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.agent.agents import Agent, AgentLab, lab
from tests.faults.machine import TOKEN
from tests.hub import HubRepo, TestHub, make_repo, many_files, status
from tests.hub.content import Generated, chunks_of

__all__ = ["World", "gateway", "hub_repos", "world"]

MiB = 1 << 20


def safetensors(tensor_bytes: int, seed: int = 1) -> bytes:
    """A real one, with a single tensor."""
    entry = {"weight": {"dtype": "U8", "shape": [tensor_bytes], "data_offsets": [0, tensor_bytes]}}
    header = json.dumps(entry).encode()
    return struct.pack("<Q", len(header)) + header + b"".join(chunks_of(Generated(seed, tensor_bytes)))


def hub_repos() -> list[HubRepo]:
    """Repos of every kind. Commits differ, so that a mixed-up revision shows."""
    model = make_repo(
        "org/model",
        {
            "config.json": b'{"model_type": "bert"}\n',
            "README.md": b"---\nlicense: mit\n---\n# A model\n",
            ".gitattributes": b"*.safetensors filter=lfs\n",
            "model.safetensors": safetensors(3 * MiB),
            "sub/dir/deep.txt": b"deep\n",
            "sub/other.bin": Generated(2, 2 * MiB + 17),
            "empty.txt": b"",
            "odd name+%20#é.txt": b"odd\n",
        },
    )
    first = model.main
    model.tags["v1"] = first
    model.add_commit({"config.json": b'{"on": "dev"}\n'}, branch="dev")
    model.add_commit({"config.json": b'{"on": "feature"}\n'}, branch="feature/new")
    model.pull_requests["refs/pr/1"] = model.add_commit({"config.json": b'{"of": "pr"}\n'}, branch="pr-1")
    del model.branches["pr-1"]
    model.add_commit({"config.json": b'{"on": "main", "second": true}\n'}, title="second")
    weights = {"config.json": b"{}\n", "model.safetensors": safetensors(MiB, 7)}
    return [
        model,
        make_repo("tiny", {"config.json": b"{}\n", "model.safetensors": safetensors(64 << 10, 3)}),
        make_repo("org/many", many_files(130, pattern="data/{:04d}.txt")),
        make_repo("org/data", {"README.md": b"# data\n", "data/train.csv": b"a,b\n1,2\n3,4\n"}, repo_type="dataset"),
        make_repo("org/space", {"app.py": b"print(1)\n"}, repo_type="space"),
        make_repo("org/gated", weights, gated="manual"),
        make_repo("org/private", weights, private=True),
        make_repo("org/disabled", weights),
        make_repo("org/xet", {"config.json": b"{}\n", "model.safetensors": safetensors(2 * MiB, 9)}, xet=True),
    ]


def test_hub(*repos: HubRepo) -> TestHub:
    """The hub with those repos and more. Pages are short, and one repo is disabled, as the Hub says it."""
    refused = status(403, {"X-Error-Message": "Access to this resource is disabled."}, path="*org/disabled*")
    return TestHub(
        [*hub_repos(), *repos], tokens={TOKEN: ["*"]}, cdn_host="127.0.0.2", aliases={"org/old-name": "org/model"}, page_size=50,
        faults=[refused], modelscope=True,
    )  # fmt: skip


@dataclass
class World:
    """A hub and agents that use it."""

    hub: TestHub
    lab: AgentLab
    base: Path

    async def gateway(self, name: str = "one", **settings: str) -> str:
        """The address of an agent for hub clients; the agent is started with the first call."""
        return gateway(await self.agent(name, **settings))

    async def agent(self, name: str = "one", **settings: str) -> Agent:
        """An agent, started with the first call."""
        there = next((agent for agent in self.lab.agents if agent.name == name), None)
        return there or await self.lab.agent(name, **settings)

    @property
    def commit(self) -> str:
        """The first commit of org/model, which its tag v1 names."""
        return self.hub.state.repos["model", "org/model"].tags["v1"]


def gateway(agent: Agent) -> str:
    """Where an agent serves hub clients."""
    return f"http://{agent.listener('local')}"


@asynccontextmanager
async def world(base: Path, *repos: HubRepo) -> AsyncIterator[World]:
    """A hub with the suite's repos and `repos`, and no agent yet."""
    async with test_hub(*repos) as hub, lab(base / "lab", hub) as made:
        yield World(hub, made, base)
