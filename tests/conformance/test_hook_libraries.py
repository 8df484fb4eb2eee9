"""The hook under the libraries people use: transformers loads through a real agent, online and offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.agents import lab
from tests.conformance.clients import clients
from tests.conformance.environments import Environment
from tests.hub import HubRepo, TestHub
from tests.plugin.clients import User
from tests.plugin.test_plugin_agents import GETS

pytestmark = pytest.mark.timeout(300)

LOAD = """
import http.client, json, os, sys, warnings
def tell(*what): print("TOLD " + json.dumps(what), flush=True)
warnings.simplefilter("ignore")
from transformers import AutoModel, AutoTokenizer
import torch; torch.manual_seed(0)  # parts that the file lacks are made up
name = os.environ["MODEL"]
model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
tell("sum", round(float(sum(p.double().sum() for p in model.parameters())), 6))
tell("ids", tokenizer("edgecdn")["input_ids"])
"""


@clients("newest", "transformers445", "transformers457")
@pytest.mark.parametrize("model", ["made/bert", "made/sharded"])
async def test_transformers(client: Environment, model: str, made_repos: list[HubRepo], tmp_path: Path) -> None:
    if not client.is_ready:
        pytest.skip(f"the environment {client.name} is not made: `make conformance`")
    for repo in made_repos:
        repo.xet = True
    async with TestHub(made_repos, cdn=False) as hub, lab(tmp_path / "lab", hub) as made:
        for repo in made_repos:
            repo.xet = False
        plain = User(tmp_path / "plain", hub.url, tmp_path / "no", python=client.python, hook=False)
        right = (await plain.run(LOAD, MODEL=model)).told
        for repo in made_repos:
            repo.xet = True
        one = await made.agent("one")
        user = User(tmp_path / "user", hub.url, one.home, python=client.python)
        for _ in range(2):
            ran = await user.run(GETS + LOAD, MODEL=model)
            assert ran.told == right
            assert ran.warnings == []
        assert user.blobs(model)

        await one.fetch_here(model)  # all of it, and what `main` is: loads bring only what they load
        two = await made.agent("two", plugin_offline_lan="on")
        await two.knows(1)
        asked = len(hub.stats.requests)
        offline = User(tmp_path / "offline", hub.url, two.home, python=client.python)
        assert (await offline.run(GETS + LOAD, MODEL=model, HF_HUB_OFFLINE="1")).told == right
        assert not [s for s in list(hub.stats.requests)[asked:] if "hf_hub/" in s.headers.get("User-Agent", "")]
