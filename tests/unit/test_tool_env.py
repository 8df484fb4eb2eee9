"""The variables for tools, and how they are taken back."""

from __future__ import annotations

import subprocess

import pytest

from edgecdn.settings import DEFAULT_ENDPOINT, load_settings
from edgecdn.tool_env import exports, foreign_hub, own_hub, shell_lines, takes_back

URL = "http://127.0.0.1:45678"
MIRROR = "https://hf-mirror.com"


def _applied(environ: dict[str, str], changes: dict[str, str] | dict[str, str | None]) -> dict[str, str]:
    merged: dict[str, str | None] = {**environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def test_what_is_set_points_to_the_gateway() -> None:
    found = exports(URL, {})
    assert found["HF_ENDPOINT"] == URL
    assert found["MODEL_ENDPOINT"] == URL + "/"
    assert found["HF_HUB_DISABLE_XET"] == found["DISABLE_SAFETENSORS_CONVERSION"] == "1"
    assert "MODELSCOPE_ENDPOINT" not in found
    assert "NO_PROXY" not in found
    assert exports(URL, {}, modelscope=True)["MODELSCOPE_ENDPOINT"] == URL


@pytest.mark.parametrize(
    "before",
    [
        {},
        {"HF_ENDPOINT": MIRROR, "PATH": "/bin"},
        {"HF_HUB_DISABLE_XET": "1", "http_proxy": "http://proxy:3128"},
        {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "lab.example,127.0.0.1"},
        {"HF_HUB_ENABLE_HF_TRANSFER": "1"},
        {"HF_HUB_ENABLE_HF_TRANSFER": "0"},
    ],
)
def test_taken_back_the_environment_is_as_it_was(before: dict[str, str]) -> None:
    once = _applied(before, exports(URL, before))
    twice = _applied(once, exports("http://127.0.0.1:5", once, modelscope=True))
    for changed in (once, twice):
        left = _applied(changed, takes_back(changed))
        kept = {name: value for name, value in left.items() if not name.lower().startswith("no_proxy")}
        assert kept == {name: value for name, value in before.items() if name.lower() != "no_proxy"}
        assert ("NO_PROXY" in left) == ("NO_PROXY" in before)
    assert takes_back(before) == {}


@pytest.mark.parametrize("on", ["1", "true", "YES", "On"])
def test_pieces_side_by_side_are_turned_off_where_they_are_on(on: str) -> None:
    assert exports(URL, {"HF_HUB_ENABLE_HF_TRANSFER": on})["HF_HUB_ENABLE_HF_TRANSFER"] == "0"
    assert "HF_HUB_ENABLE_HF_TRANSFER" not in exports(URL, {})
    assert "HF_HUB_ENABLE_HF_TRANSFER" not in exports(URL, {"HF_HUB_ENABLE_HF_TRANSFER": "0"})


def test_a_proxy_is_not_asked_for_loopback() -> None:
    found = exports(URL, {"HTTP_PROXY": "http://proxy:3128", "no_proxy": "lab.example, localhost"})
    assert found["NO_PROXY"] == found["no_proxy"] == "lab.example,localhost,127.0.0.1,::1"
    assert exports(URL, {"all_proxy": "socks5://x", "NO_PROXY": "*"})["no_proxy"] == "*"


@pytest.mark.parametrize(
    ("endpoint", "hub"),
    [
        (None, ""),
        (MIRROR, MIRROR),
        (URL, ""),
        (URL + "/", ""),
        ("http://localhost:8377", ""),
        ("http://127.0.0.1:8377/", ""),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
    ],
)
def test_a_gateway_is_no_hub_of_the_users(endpoint: str | None, hub: str) -> None:
    environ = {"EDGECDN_ENV_URL": URL} | ({} if endpoint is None else {"HF_ENDPOINT": endpoint})
    assert own_hub(environ) == hub


def test_an_agent_started_in_such_a_shell_asks_the_users_hub(tmp_path: object) -> None:
    for before, hub in (({}, DEFAULT_ENDPOINT), ({"HF_ENDPOINT": MIRROR}, MIRROR)):
        environ = _applied({**before, "EDGECDN_HOME": str(tmp_path)}, exports(URL, before))
        assert load_settings(environ).hub_endpoints == (hub,)
    assert load_settings({"EDGECDN_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:8377"}).hub_modelscope


def test_a_hub_that_the_agent_does_not_ask_is_told_of() -> None:
    asked = (MIRROR + "/", "https://huggingface.co")
    assert foreign_hub({"HF_ENDPOINT": MIRROR}, asked) == ""
    assert foreign_hub({"HF_ENDPOINT": "https://HuggingFace.co:443"}, asked) == ""
    assert foreign_hub({"HF_ENDPOINT": "https://other.example"}, asked) == "https://other.example"
    assert foreign_hub({"HF_ENDPOINT": "https://other.example"}, ()) == ""  # it did not tell
    assert foreign_hub({}, asked) == ""
    environ = _applied({"HF_ENDPOINT": "https://other.example"}, exports(URL, {"HF_ENDPOINT": "https://other.example"}))
    assert foreign_hub(environ, asked) == "https://other.example"  # the one from before


def test_values_are_quoted_for_the_shell() -> None:
    odd = "a b'c\\d$(touch x)"
    (line,) = shell_lines({"HF_ENDPOINT": odd}, "sh")
    said = subprocess.run(["sh", "-c", f'{line}; printf %s "$HF_ENDPOINT"'], capture_output=True, text=True, check=True)
    assert said.stdout == odd
    assert shell_lines({"A": "it's\\", "B": None}, "fish") == ["set -gx A 'it\\'s\\\\'", "set -e B"]
    assert shell_lines({"B": None}, "sh") == ["unset B"]
