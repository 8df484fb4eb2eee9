"""`config`: shown with its origin, written without losing a comment, refused with a suggestion."""

from __future__ import annotations

import tomllib

import pytest

from edgecdn.settings import settings_table
from edgecdn.upkeep.settings_file import with_value, without_value
from edgecdn_agent.run_file import HomeLock
from tests.cli.machine import Machine


def _file(machine: Machine) -> dict[str, object]:
    return tomllib.loads((machine.home / "config.toml").read_text())


def test_shows_all_with_origin(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("config", "set", "fetch.connections", "4")
    monkeypatch.setenv("EDGECDN_FETCH_PATIENCE", "2m")
    rows = {row["name"]: row for row in machine("config", "show", "--json").json}
    assert set(rows) == {setting.name for setting in settings_table()}
    assert (rows["fetch.connections"]["value"], rows["fetch.connections"]["origin"]) == (4, "file")
    assert (rows["fetch.patience"]["value"], rows["fetch.patience"]["origin"]) == (120.0, "environment")
    assert (rows["local.folders"]["value"], rows["local.folders"]["origin"]) == ([], "default")
    assert all(row["unit"] and row["help"] for row in rows.values())
    assert machine("config", "show", "cache.dir", "--json").json["value"] == str(machine.cache)
    assert "cache.dir = " in machine("config", "show", "cache.dir").out
    assert machine("config", "path").out.strip() == str(machine.home / "config.toml")


def test_set_keeps_comments_and_unset_goes_back(machine: Machine) -> None:
    machine.home.mkdir()
    (machine.home / "config.toml").write_text("# mine\n[hub]  # hubs\nendpoints = ['http://a']\n")
    assert machine("config", "set", "hub.endpoints", "http://b", "http://c/").code == 0
    text = (machine.home / "config.toml").read_text()
    assert "# mine" in text
    assert "# hubs" in text
    assert _file(machine) == {"hub": {"endpoints": ["http://b", "http://c"]}}
    assert machine("config", "set", "cache.dir", "~/x").code == 0
    assert _file(machine)["cache"] == {"dir": "~/x"}
    assert machine("config", "unset", "hub.endpoints").code == 0
    assert "# mine" in (machine.home / "config.toml").read_text()
    assert _file(machine)["hub"] == {}
    assert "was not set" in machine("config", "unset", "hub.endpoints").err
    assert not list(machine.home.glob("*.tmp"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("share.deny", ["a/b", "c/d"]),
        ("share.allow", ["lab/*", "datasets/lab/*"]),
        ("lan.allow", ["10.0.0.0/8", "192.168.1.0/24"]),
        ("discovery.peers", ["10.0.0.1:8378", "desk-2:9"]),
    ],
)
def test_every_list_takes_several_values(machine: Machine, name: str, values: list[str]) -> None:
    done = machine("config", "set", name, *values)
    assert done.code == 0, done.err
    head, _, last = name.partition(".")
    assert _file(machine)[head] == {last: values}
    assert machine("config", "show", name, "--json").json["value"] == values


def test_a_full_or_read_only_home_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECDN_HOME", "/proc/edgecdn")  # nobody, root neither, makes a folder there
    for command in (("config", "set", "fetch.connections", "4"), ("agent", "start")):
        done = machine(*command)
        assert done.code in (1, 7)
        assert "/proc/edgecdn" in done.err


def test_aliases(machine: Machine) -> None:
    assert machine("config", "set", "aliases.Mine", "org/tiny").code == 0
    assert machine("config", "set", "aliases.mine2.5", "datasets/org/other").code == 0
    assert _file(machine) == {"aliases": {"mine": "org/tiny", "mine2.5": "datasets/org/other"}}
    assert machine("config", "show", "aliases", "--json").json["value"]["mine"] == "org/tiny"
    machine.fetch("mine", "--include", "*.json")
    assert machine("ls", "mine", "--json").json["repo"] == "org/tiny"
    assert machine("config", "unset", "aliases.mine").code == 0
    assert _file(machine) == {"aliases": {"mine2.5": "datasets/org/other"}}


@pytest.mark.parametrize(
    "arguments",
    [
        ("fetch.connections", "many"),
        ("fetch.connections", "1", "2"),
        ("hub.endpoints", "ftp://x"),
        ("hub.token_for", "http://user:pass@host"),
        ("fetch.patience", "long"),
        ("aliases.x", "no-owner"),
        ("aliases.x", "a/b", "c/d"),
        ("hub", "x"),
        ("limits.upload", "0"),
        ("limits.upload", ""),
        ("limits.wan", "50"),
        ("gateway.listen", "0.0.0.0:8377"),
        ("gateway.listen", "off"),
        ("share.deny", "lab"),
        ("share.deny", "a/b", "datasets"),
    ],
)
def test_wrong_values_are_not_written(machine: Machine, arguments: tuple[str, ...]) -> None:
    done = machine("config", "set", *arguments)
    assert done.code == 2
    assert not (machine.home / "config.toml").exists()


def test_unknown_names_get_a_suggestion(machine: Machine) -> None:
    for command in (("set", "fetch.conections", "4"), ("unset", "fetch.conections"), ("show", "fetch.conections")):
        done = machine("config", *command)
        assert done.code == 2
        assert "did you mean fetch.connections" in done.err


def test_all_mistakes_at_once_and_the_rest_is_shown(machine: Machine) -> None:
    machine.home.mkdir()
    (machine.home / "config.toml").write_text("[fetch]\nconnections = 0\npatience = 'x'\n[nope]\na = 1\n")
    done = machine("config", "show", "--json")
    assert done.code == 2
    assert all(name in done.err for name in ("fetch.connections", "fetch.patience", "nope.a"))
    assert "cache.dir" in {row["name"] for row in done.json}
    assert machine("config", "set", "fetch.connections", "3").code == 0  # so they can be corrected one by one
    assert machine("config", "set", "fetch.patience", "5s").code == 0
    assert "nope.a" in machine("ls").err


def test_a_file_that_is_no_toml_is_not_overwritten(machine: Machine) -> None:
    machine.home.mkdir()
    (machine.home / "config.toml").write_text("= broken")
    assert machine("config", "set", "fetch.connections", "3").code == 2
    assert (machine.home / "config.toml").read_text() == "= broken"
    assert machine("config", "show").code == 2


def test_the_environment_that_wins_is_named(machine: Machine) -> None:
    assert "EDGECDN_HUB_ENDPOINTS" in machine("config", "set", "hub.endpoints", "http://x").err


@pytest.mark.parametrize("text", ["", "hub.endpoints = ['http://a']\n", "[hub]\n", "[fetch]\nconnections = 3 # few\n"])
def test_round_trip(text: str) -> None:
    written = with_value(text, "hub.endpoints", ["http://z"])
    assert tomllib.loads(written)["hub"]["endpoints"] == ["http://z"]
    assert "endpoints" not in without_value(written, "hub.endpoints")


def test_refusals_say_where_to_look_and_unknown_names_can_go(machine: Machine) -> None:
    several = machine("config", "set", "fetch.connections", "1", "2")
    assert "takes one value, not 2" in several.err
    assert "`edgecdn config show fetch.connections`" in several.err
    assert "config show fetch.patience" in machine("config", "set", "fetch.patience", "long").err
    machine.home.mkdir(exist_ok=True)
    (machine.home / "config.toml").write_text("[nope]\na = 1\n")
    assert machine("config", "unset", "nope.a").code == 0
    assert _file(machine) == {"nope": {}}


def test_a_running_agent_is_told_of_after_a_change(machine: Machine) -> None:
    assert "starts again" not in machine("config", "set", "fetch.connections", "4").err
    with HomeLock(machine.home):
        assert (
            "`edgecdn agent stop`, then `edgecdn agent start`" in machine("config", "set", "fetch.connections", "5").err
        )
        assert "reads it when it starts again" in machine("config", "unset", "fetch.connections").err
        assert "starts again" not in machine("config", "unset", "fetch.connections").err
