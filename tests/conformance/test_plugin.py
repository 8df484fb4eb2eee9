"""The plugin in every supported huggingface_hub: nothing is set but the hook, and the results are the hub's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.agents import Agent
from tests.conformance.clients import Seen, clients, differences, run_script
from tests.conformance.environments import Environment
from tests.conformance.low_limit import low_limit_agent
from tests.conformance.world import World, world
from tests.hub import HubRepo
from tests.plugin.clients import put_hook

pytestmark = pytest.mark.timeout(600)

PLUGIN_CLIENTS = clients("newest", "hub030", "hub036", "hub133", "hub2-noxet")


async def _hooked(client: Environment, script: str, here: World, agent: Agent, base: Path, *arguments: str) -> Seen:
    """Run it as a user with the hook does: the hub's own address, Xet left on."""
    site = put_hook(base / "site")
    more = {"PYTHONPATH": str(site), "EDGECDN_HOME": str(agent.home), "HF_HUB_DISABLE_XET": "0"}
    return await run_script(client, script, here.hub.url, base, *arguments, **more)


def _large(here: World) -> int:
    """Bytes of large files that the hub has sent, to whomever."""
    return here.hub.stats.by_route["cdn"]


@PLUGIN_CLIENTS
async def test_files(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        direct = await run_script(client, "hub_files", here.hub.url, tmp_path / "direct", here.commit)
        agent = await here.agent()
        cold = await _hooked(client, "hub_files", here, agent, tmp_path / "cold", here.commit)
        assert differences(direct, cold) == {}
        asked = _large(here)
        warm = await _hooked(client, "hub_files", here, agent, tmp_path / "warm", here.commit)
        assert differences(direct, warm) == {}
        assert _large(here) == asked, "the agent had it, and the hub was asked"


@PLUGIN_CLIENTS
async def test_listings_and_refusals(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        agent = await here.agent()
        for script in ("hub_listings", "hub_errors"):
            direct = await run_script(client, script, here.hub.url, tmp_path / f"{script}-direct", here.commit)
            hooked = await _hooked(client, script, here, agent, tmp_path / f"{script}-hooked", here.commit)
            assert differences(direct, hooked) == {}


@PLUGIN_CLIENTS
async def test_files_over_the_clients_limit(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        direct = await run_script(client, "hub_large", here.hub.url, tmp_path / "direct", "whole")
        agent = await low_limit_agent(here.lab, "one")
        hooked = await _hooked(client, "hub_large", here, agent, tmp_path / "hooked", "limited")
        assert differences(direct, hooked) == {}


@PLUGIN_CLIENTS
async def test_repos_on_xet(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        agent = await here.agent()
        direct = await run_script(client, "hub_xet", here.hub.url, tmp_path / "direct")  # with Xet off
        hooked = await _hooked(client, "hub_xet", here, agent, tmp_path / "hooked")
        assert differences(direct, hooked) == {}
        whole = await run_script(client, "hub_trap", here.hub.url, tmp_path / "whole", "after")
        trapped = tmp_path / "trapped"  # a listing from before names Xet
        await run_script(client, "hub_trap", here.hub.url, trapped, "before", HF_HUB_DISABLE_XET="0")
        assert differences(whole, await _hooked(client, "hub_trap", here, agent, trapped, "after")) == {}


@clients("newest", "transformers445", "transformers457")
async def test_transformers(client: Environment, tmp_path: Path, made_repos: list[HubRepo]) -> None:
    async with world(tmp_path, *made_repos[:3]) as here:
        direct = await run_script(client, "transformers_load", here.hub.url, tmp_path / "direct")
        hooked = await _hooked(client, "transformers_load", here, await here.agent(), tmp_path / "hooked")
        assert differences(direct, hooked) == {}
