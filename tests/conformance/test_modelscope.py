"""The ModelScope SDK through the gateway, against the same SDK with the test hub's ModelScope itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.clients import clients, differences, run_script
from tests.conformance.environments import Environment
from tests.conformance.world import World, world

pytestmark = pytest.mark.timeout(600)


async def _run(client: Environment, base: Path, here: World, endpoint: str) -> dict[str, object]:
    variables = {"MODELSCOPE_ENDPOINT": endpoint, "MODELSCOPE_CACHE": str(base / "modelscope")}
    return await run_script(client, "modelscope_files", here.hub.url, base, **variables)


@clients("newest", "modelscope137")
async def test_modelscope(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        direct = await _run(client, tmp_path / "direct", here, here.hub.modelscope_url)
        settings = {"hub_modelscope": here.hub.modelscope_url}
        cold = await _run(client, tmp_path / "cold", here, await here.gateway("one", **settings))
        assert differences(direct, cold) == {}
        asked = here.hub.stats.total
        warm = await _run(client, tmp_path / "warm", here, await here.gateway("one"))
        assert differences(direct, warm) == {}
        assert here.hub.stats.total == asked, here.hub.stats.sent
