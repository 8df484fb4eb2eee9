"""huggingface_hub through the gateway, against the same version with the hub itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.clients import Seen, clients, differences, run_script
from tests.conformance.environments import Environment
from tests.conformance.low_limit import low_limit_agent
from tests.conformance.world import gateway, world

pytestmark = pytest.mark.timeout(600)

HUB_CLIENTS = clients("newest", "hub030", "hub036", "hub133", "hub2-noxet")


@HUB_CLIENTS
async def test_files(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        direct = await run_script(client, "hub_files", here.hub.url, tmp_path / "direct", here.commit)
        cold = await run_script(client, "hub_files", await here.gateway(), tmp_path / "cold", here.commit)
        assert differences(direct, cold) == {}
        asked = here.hub.stats.total
        warm = await run_script(client, "hub_files", await here.gateway(), tmp_path / "warm", here.commit)
        assert differences(direct, warm) == {}
        assert here.hub.stats.total == asked, here.hub.stats.sent


@HUB_CLIENTS
async def test_files_of_a_peer(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        one = await here.agent("one")
        direct = await run_script(client, "hub_files", here.hub.url, tmp_path / "direct", here.commit)
        for wanted in ("org/model", "org/model@dev", "org/many", "tiny", "datasets/org/data"):
            await one.fetch_here(wanted, include=("*",))
        for name in ("org/model", "tiny"):
            repo = here.hub.state.repos["model", name]
            for file in repo.commits[repo.main].files.values():
                if file.lfs:
                    await one.gives(file.sha256)
        two = await here.gateway("two")
        before = here.hub.stats.by_route["cdn"]
        through = await run_script(client, "hub_files", two, tmp_path / "through", here.commit)
        assert differences(direct, through) == {}
        assert here.hub.stats.by_route["cdn"] == before, "what the peer has was asked of the hub"


@HUB_CLIENTS
async def test_listings(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        direct = await run_script(client, "hub_listings", here.hub.url, tmp_path / "direct", here.commit)
        through = await run_script(client, "hub_listings", await here.gateway(), tmp_path / "through", here.commit)
        assert differences(direct, through) == {}


@HUB_CLIENTS
async def test_refusals(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        direct = await run_script(client, "hub_errors", here.hub.url, tmp_path / "direct")
        through = await run_script(client, "hub_errors", await here.gateway(), tmp_path / "through")
        assert differences(direct, through) == {}


@HUB_CLIENTS
async def test_file_system(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        direct = await run_script(client, "hub_fs", here.hub.url, tmp_path / "direct")
        through = await run_script(client, "hub_fs", await here.gateway(), tmp_path / "through")
        assert differences(direct, through) == {}


@HUB_CLIENTS
async def test_command_line(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        direct = await run_script(client, "hub_cli", here.hub.url, tmp_path / "direct")
        through = await run_script(client, "hub_cli", await here.gateway(), tmp_path / "through")
        assert differences(direct, through) == {}


@HUB_CLIENTS
async def test_a_repo_on_xet_comes_by_plain_http(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        direct = await run_script(client, "hub_xet", here.hub.url, tmp_path / "direct")  # with Xet off
        on = {"HF_HUB_DISABLE_XET": "0"}
        through = await run_script(client, "hub_xet", await here.gateway(), tmp_path / "through", **on)
        assert differences(direct, through) == {}


@HUB_CLIENTS
async def test_a_listing_from_before_names_xet(client: Environment, tmp_path: Path) -> None:
    """The trap: by a listing that it kept, the client asks for Xet and sends no HEAD. Xet is off, as `env` has it."""
    async with world(tmp_path) as here:
        whole = await run_script(client, "hub_trap", here.hub.url, tmp_path / "direct", "after")
        await run_script(client, "hub_trap", here.hub.url, tmp_path / "trapped", "before", HF_HUB_DISABLE_XET="0")
        through = await run_script(client, "hub_trap", await here.gateway(), tmp_path / "trapped", "after")
        assert differences(whole, through) == {}


@clients("newest", "hub133", "hub2-noxet")
async def test_files_over_the_clients_limit(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        direct = await run_script(client, "hub_large", here.hub.url, tmp_path / "direct", "whole")
        one = gateway(await low_limit_agent(here.lab, "one"))
        through = await run_script(client, "hub_large", one, tmp_path / "through", "limited")
        assert differences(direct, through) == {}


@HUB_CLIENTS
async def test_files_over_the_limit_where_the_cache_is_the_agents(client: Environment, tmp_path: Path) -> None:
    """The way that works for every version."""
    async with world(tmp_path) as here:
        direct = await run_script(client, "hub_large", here.hub.url, tmp_path / "direct", "whole")
        one = await low_limit_agent(here.lab, "one")
        shared = {"HF_HUB_CACHE": str(one.cache)}
        through = await run_script(client, "hub_large", gateway(one), tmp_path / "through", "limited", **shared)
        assert differences(_files(direct), _files(through)) == {}


def _files(seen: Seen) -> Seen:
    """Without the cache, which is the agent's and not where the script looks."""
    return {name: value for name, value in seen.items() if name != "cache"}
