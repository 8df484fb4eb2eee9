"""The ModelScope SDK and repos that are not for everybody, through the gateway and directly; nothing of them stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.clients import clients, differences, run_script
from tests.conformance.environments import Environment
from tests.conformance.world import World, world

pytestmark = pytest.mark.timeout(600)


async def _run(client: Environment, base: Path, here: World, endpoint: str) -> dict[str, object]:
    variables = {
        "MODELSCOPE_ENDPOINT": endpoint,
        "MODELSCOPE_CACHE": str(base / "modelscope"),
        "MODELSCOPE_API_MAX_RETRIES": "1",
    }
    return await run_script(client, "modelscope_access", here.hub.url, base, **variables)


@clients("newest", "modelscope137")
async def test_modelscope_access(client: Environment, tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        direct = await _run(client, tmp_path / "direct", here, here.hub.modelscope_url)
        one = await here.agent("one", hub_modelscope=here.hub.modelscope_url)
        through = await _run(client, tmp_path / "through", here, await here.gateway("one"))
        logged_in = through.pop("private, logged in")  # directly, the session is for another host than the stand-in's
        direct.pop("private, logged in")
        assert differences(direct, through) == {}
        assert isinstance(logged_in, dict)
        assert "model.safetensors" in logged_in
        assert not list(one.cache.glob("*private*"))
        assert not list(one.cache.glob("*gated*"))
