"""The settings: environment over file over default, and all mistakes at once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from edgecdn.errors import BadInput, SettingsInvalid
from edgecdn.settings import (
    DEFAULT_ENDPOINT,
    Setting,
    Settings,
    config_file,
    home_dir,
    load_settings,
    read_settings,
    settings_table,
)
from edgecdn.settings_values import (
    aliases,
    count,
    duration_s,
    endpoint,
    endpoints,
    folder,
    hours,
    items,
    local_listen,
    modelscope,
    patterns,
    rate,
)


def _load(home: Path, toml: str = "", **variables: str) -> Settings:
    (home / "config.toml").write_text(toml)
    return load_settings({"EDGECDN_HOME": str(home), **variables})


def test_every_setting_is_documented_and_has_an_environment_name() -> None:
    table = settings_table()
    assert len({s.name for s in table}) == len({s.variable for s in table}) == len({s.field for s in table})
    found_not_set = {"origins", "home", "offline"}
    assert {s.field for s in table} == {f.name for f in fields(Settings)} - found_not_set
    for setting in table:
        assert setting.help.strip().endswith(".")
        assert setting.unit
        assert setting.variable == "EDGECDN_" + setting.name.upper().replace(".", "_")
        assert setting.field == setting.name.replace(".", "_") or setting.unit == "seconds"
        setting.parse(setting.default({}))


def test_defaults(tmp_path: Path) -> None:
    loaded = load_settings({"EDGECDN_HOME": str(tmp_path / "absent")})
    assert loaded.hub_endpoints == (DEFAULT_ENDPOINT,)
    assert loaded.hub_modelscope == "https://www.modelscope.cn"
    assert loaded.cache_dir == Path("~/.cache/huggingface/hub").expanduser()
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.home == tmp_path / "absent"


def test_environment_over_file_over_default(tmp_path: Path) -> None:
    toml = "[hub]\nendpoints = ['https://file']\n[fetch]\nconnections = 3\npatience = '2m'\n"
    loaded = _load(tmp_path, toml, EDGECDN_HUB_ENDPOINTS="https://one/, https://two", HF_ENDPOINT="https://hf")
    assert loaded.hub_endpoints == ("https://one", "https://two")
    assert (loaded.fetch_connections, loaded.fetch_patience_s) == (3, 120.0)
    assert loaded.origins["hub.endpoints"] == "environment"
    assert loaded.origins["fetch.connections"] == "file"
    assert loaded.origins["cache.dir"] == "default"


@pytest.mark.parametrize("setting", settings_table(), ids=lambda s: s.name)
def test_each_can_be_set_in_the_environment(tmp_path: Path, setting: Setting) -> None:
    values = {
        "hub.endpoints": "https://h", "hub.token_for": "https://h", "plugin.offline_lan": "on",
        "hub.modelscope": "off", "cache.dir": "/c",
        "local.folders": "/a,/b", "fetch.connections": "5", "fetch.patience": "5s", "aliases": "a=o/n",
        "gateway.listen": "127.0.0.1:0", "lan.listen": "8378", "lan.allow": "10.0.0.0/8", "swarm.listen": "off",
        "discovery.mdns": "off", "discovery.peers": "a,10.0.0.2:9", "share.allow": "me/*", "share.deny": "*",
        "limits.upload": "80%", "limits.download": "20MB/s", "limits.wan": "100Mbit/s", "limits.hours": "08:00-18:00",
        "limits.hub_connections": "4",
    }  # fmt: skip
    assert setting.name in values, "a new setting: give it a value here"
    loaded = _load(tmp_path, "", **{setting.variable: values[setting.name]})
    assert loaded.origins[setting.name] == "environment"


def test_the_hub_clients_own_variables_are_defaults(tmp_path: Path) -> None:
    assert _load(tmp_path, HF_HUB_CACHE="/x").cache_dir == Path("/x")
    assert _load(tmp_path, HF_HOME="/h").cache_dir == Path("/h/hub")
    assert _load(tmp_path, XDG_CACHE_HOME="/xdg").cache_dir == Path("/xdg/huggingface/hub")
    assert _load(tmp_path, HF_HUB_CACHE="/x", EDGECDN_CACHE_DIR="/own").cache_dir == Path("/own")
    loaded = _load(tmp_path, HF_ENDPOINT="https://hf-mirror.com/")
    assert loaded.hub_endpoints == ("https://hf-mirror.com",)
    assert loaded.hub_modelscope == ""


def test_modelscope_follows_the_endpoints_unless_it_is_set(tmp_path: Path) -> None:
    assert _load(tmp_path, EDGECDN_HUB_ENDPOINTS="https://own").hub_modelscope == ""
    both = {"EDGECDN_HUB_ENDPOINTS": "https://own", "EDGECDN_HUB_MODELSCOPE": "https://ms"}
    assert _load(tmp_path, **both).hub_modelscope == "https://ms"
    assert _load(tmp_path, "[hub]\nmodelscope = 'off'\n").hub_modelscope == ""


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    toml = "[hub]\nendpoints = []\nendpoint = 'https://typo'\n[fetch]\nconnections = 99\n[fetchh]\nx = 1\n"
    with pytest.raises(SettingsInvalid) as caught:
        _load(tmp_path, toml, EDGECDN_FETCH_PATIENCE="soon", EDGECDN_HUB_TOKEN_FOR="ftp://x")
    lines = caught.value.message.splitlines()
    assert len(lines) == 7
    said = "\n".join(sorted(lines[1:]))
    for name in ("EDGECDN_FETCH_PATIENCE", "EDGECDN_HUB_TOKEN_FOR", "hub.endpoints", "fetch.connections"):
        assert f"  {name}: " in said
    assert "hub.endpoint: there is no such setting" in said
    assert "fetchh.x: there is no such setting" in said
    assert caught.value.exit_code == 2


def test_a_file_that_is_no_toml_is_one_mistake_among_others(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"[hub\n\xff")
    reading = read_settings({"EDGECDN_HOME": str(tmp_path), "EDGECDN_FETCH_CONNECTIONS": "0"})
    assert len(reading.problems) == 2
    assert str(config_file(tmp_path)) in reading.problems[0]


def test_misspelled_names_are_mistakes_and_those_of_later_parts_are_not(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        _load(tmp_path, EDGECDN_HUB_ENDPOINT="https://x", EDGECDN_ZZZ="1")
    said = caught.value.message
    assert "EDGECDN_HUB_ENDPOINT: there is no such setting; did you mean EDGECDN_HUB_ENDPOINTS?" in said
    assert "EDGECDN_ZZZ: there is no such setting." in said
    _load(
        tmp_path, "[watch]\nx = 1\n[webhook.y]\nz = 2\n", EDGECDN_WATCH_X="1", EDGECDN_WATCH_Y="2", EDGECDN_DISABLE="1"
    )


def test_home_is_absolute() -> None:
    assert home_dir({}) == Path("~/.local/share/edgecdn").expanduser()
    assert home_dir({"EDGECDN_HOME": "here"}) == Path("here").absolute()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("500ms", 0.5), ("1 d", 86400), (7, 7)],
)
def test_durations(text: object, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("value", ["", "soon", "-1", "1y", "1e3", "s", True, None, ["1"], "1,5s"])
def test_no_durations(value: object) -> None:
    with pytest.raises(BadInput):
        duration_s(value)


@pytest.mark.parametrize(
    "text",
    [
        "huggingface.co", "ftp://x", "http://", "https://user:secret@x", "https://x?y=1", "https://x#y",
        "https://x:0", "https://x:99999", "https://[::1", "file:///etc/passwd", 7, None, ["https://x"],
    ],
)  # fmt: skip
def test_no_endpoints(text: object) -> None:
    with pytest.raises(BadInput) as caught:
        endpoint(text)
    assert "secret" not in str(caught.value)


def test_values() -> None:
    assert endpoint(" https://x:8443/hub/ ") == "https://x:8443/hub"
    assert endpoints("https://a,https://b/,https://a/") == ("https://a", "https://b")
    assert modelscope("Off") == ""
    assert items(" a, ,b ") == items(["a", "b"]) == ("a", "b")
    assert count(1, 64)("64") == count(1, 64)(64) == 64
    assert folder("x") == Path("x").absolute()
    assert aliases("Mine=org/name, d=datasets/o/n") == aliases({"mine": "org/name", "d": "datasets/o/n"})


@pytest.mark.parametrize("value", ["0", "65", "x", "", True, 1.5, None])
def test_no_counts(value: object) -> None:
    with pytest.raises(BadInput):
        count(1, 64)(value)


@pytest.mark.parametrize("value", ["x", "x=y", "x=", "=o/n", "x=o/n/m", "x=../n", "a/b=o/n", {"x": 3}, ["x", 1]])
def test_no_aliases(value: object) -> None:
    with pytest.raises(BadInput):
        aliases(value)


@pytest.mark.parametrize(
    ("text", "bytes_s"),
    [
        ("20MB/s", 20_000_000), ("100Mbit/s", 12_500_000), ("100Mbit", 12_500_000), ("10 Mbps", 1_250_000),
        ("10MBps", 10_000_000), ("8kbps", 1000), ("off", None), (False, None),
    ],
)  # fmt: skip
def test_rates(text: object, bytes_s: int | None) -> None:
    assert rate(text).bytes_s == bytes_s


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "share.deny '*'"), (0, "'off' for no limit"), ("", "'off' for no limit"), ("0 MB/s", "'off'"),
        ("0%", "'off'"), ("50", "did you mean 50MB/s or 50Mbit/s?"), ("101%", "not a rate"), ("5 apples", "not a rate"),
    ],
)  # fmt: skip
def test_no_rates(text: object, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        rate(text)
    assert said in caught.value.message


def test_hours_are_read_as_people_write_them() -> None:
    assert hours("8:00 - 20:00") == hours("08:00-20:00")
    assert str(hours("22:30-24:00")) == "22:30-00:00"
    for wrong in ("8-20", "25:00-26:00", "8:0-9:00"):
        with pytest.raises(BadInput):
            hours(wrong)


def test_the_local_listener_is_of_this_machine() -> None:
    assert str(local_listen("8377")) == str(local_listen("127.0.0.1:8377"))
    assert local_listen("[::1]:0").port == 0
    for wrong in ("0.0.0.0:8377", "10.0.0.1:8377", "desk-1:8377", "off", ""):
        with pytest.raises(BadInput):
            local_listen(wrong)


def test_patterns_name_an_owner_and_a_name() -> None:
    assert patterns("*, lab/*, datasets/*, datasets/lab/x") == ("*", "lab/*", "datasets/*", "datasets/lab/x")
    for wrong, meant in (
        ("lab", "lab/*"),
        ("lab/", "lab/*"),
        ("datasets", "datasets/*"),
        ("datasets/lab", "datasets/lab/*"),
    ):
        with pytest.raises(BadInput) as caught:
            patterns(wrong)
        assert f"did you mean '{meant}'" in caught.value.message


def test_lists_are_known_by_their_parsers() -> None:
    assert {s.name for s in settings_table() if s.takes_several} == {
        "hub.endpoints", "local.folders", "lan.allow", "discovery.peers", "share.allow", "share.deny", "aliases",
    }  # fmt: skip
