"""The libraries on top of huggingface_hub, through the gateway, against the same with the hub itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.clients import clients, differences, run_script
from tests.conformance.environments import Environment
from tests.conformance.world import world
from tests.hub import HubRepo

pytestmark = pytest.mark.timeout(600)


async def _compare(client: Environment, script: str, base: Path, repos: list[HubRepo]) -> None:
    """Directly; through an agent that has nothing; then through one whose peer has it all, at no cost for the hub."""
    async with world(base, *repos) as here:
        direct = await run_script(client, script, here.hub.url, base / "direct")
        one = await here.agent("one")
        cold = await run_script(client, script, await here.gateway("one"), base / "cold")
        assert differences(direct, cold) == {}
        for repo in repos:
            for file in repo.commits[repo.main].files.values():
                if file.lfs:
                    await one.gives(file.sha256)
        before = dict(here.hub.stats.by_route)
        peer = await run_script(client, script, await here.gateway("two"), base / "peer")
        assert differences(direct, peer) == {}
        assert here.hub.stats.by_route["cdn"] == before.get("cdn", 0), "what the peer has was asked of the hub"


@clients("newest", "transformers445", "transformers457")
async def test_transformers(client: Environment, tmp_path: Path, made_repos: list[HubRepo]) -> None:
    await _compare(client, "transformers_load", tmp_path, made_repos[:3])


@clients("newest")
async def test_diffusers(client: Environment, tmp_path: Path, made_repos: list[HubRepo]) -> None:
    await _compare(client, "diffusers_load", tmp_path, made_repos[3:4])


@clients("newest")
async def test_datasets(client: Environment, tmp_path: Path, made_repos: list[HubRepo]) -> None:
    await _compare(client, "datasets_load", tmp_path, made_repos[4:])


@clients("newest")
async def test_sentence_transformers(client: Environment, tmp_path: Path, minilm: HubRepo) -> None:
    await _compare(client, "sentences_load", tmp_path, [minilm])
