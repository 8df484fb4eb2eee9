"""The settings: one table that feeds TOML, environment, `config show` and the docs.

A field of `Settings` is one setting: its dotted name, its default, its unit, its help and the
parser that turns text or a TOML value into its type. Order: environment over `config.toml` over
the default. All mistakes are reported at once.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from edgecdn.errors import BadInput, SettingsInvalid
from edgecdn.settings_values import (
    Hours,
    Listen,
    Rate,
    aliases,
    count,
    duration_s,
    endpoint,
    endpoints,
    folder,
    folders,
    hours,
    listen,
    local_listen,
    modelscope,
    networks,
    patterns,
    peers,
    rate,
    switch,
)
from edgecdn.tool_env import MARKS, own_hub

__all__ = [
    "DEFAULT_ENDPOINT",
    "Reading",
    "Setting",
    "Settings",
    "config_file",
    "home_dir",
    "load_settings",
    "read_settings",
    "refuse_problems",
    "settings_table",
]

_TRUE = frozenset({"1", "on", "yes", "true"})
_NO_SETTINGS = frozenset({"EDGECDN_HOME", "EDGECDN_CRASH", "EDGECDN_DISABLE"}) | MARKS
_LATER = frozenset({"precache", "watch", "webhook"})
"""Tables of parts of edgecdn that are not built yet: what is set in them is nobody's mistake."""

DEFAULT_ENDPOINT = "https://huggingface.co"
DEFAULT_MODELSCOPE = "https://www.modelscope.cn"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `default` is text as a user would type it; computed ones say so in `help`."""

    name: str
    unit: str
    help: str
    parse: Callable[[object], Any]
    default: Callable[[Mapping[str, str]], object]

    @property
    def field(self) -> str:
        """Its name in `Settings`: `hub.endpoints` is hub_endpoints."""
        return next(f.name for f in _setting_fields() if f.metadata["setting"].name == self.name)

    @property
    def takes_several(self) -> bool:
        """Whether it is a list (or a table): what its own parser makes of the default tells."""
        return isinstance(self.parse(self.default({})), (tuple, Mapping))

    @property
    def variable(self) -> str:
        """Its environment variable: `hub.endpoints` is EDGECDN_HUB_ENDPOINTS."""
        return "EDGECDN_" + self.name.replace(".", "_").upper()


def _setting(name: str, parse: Callable[[object], Any], default: object, unit: str, help_: str) -> Any:
    computed = default if callable(default) else lambda _environ: default
    return field(metadata={"setting": Setting(name, unit, help_, parse, computed)})


def _default_endpoints(environ: Mapping[str, str]) -> object:
    return own_hub(environ) or DEFAULT_ENDPOINT


def _default_cache(environ: Mapping[str, str]) -> object:
    if environ.get("HF_HUB_CACHE"):
        return environ["HF_HUB_CACHE"]
    hf_home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    return str(Path(hf_home, "hub"))


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, parsed. `sources` tells where each value came from: environment, file or default."""

    hub_endpoints: tuple[str, ...] = _setting(
        "hub.endpoints",
        endpoints,
        _default_endpoints,
        "URLs",
        "Hubs, in order: the first that answers is believed for names and commits; all give bytes. "
        "Default: HF_ENDPOINT, else " + DEFAULT_ENDPOINT + ".",
    )
    hub_token_for: str = _setting(
        "hub.token_for",
        endpoint,
        "",
        "URL",
        "The one hub the user's token (HF_TOKEN, `hf auth login`) is sent to. Default: huggingface.co "
        "where it is among the endpoints, else the first endpoint unless it is a known public mirror.",
    )
    hub_modelscope: str = _setting(
        "hub.modelscope",
        modelscope,
        "",
        "URL, or off",
        "ModelScope as a second source of the same bytes. Default: "
        + DEFAULT_MODELSCOPE
        + ", but off when hub.endpoints is set and this is not.",
    )
    cache_dir: Path = _setting(
        "cache.dir",
        folder,
        _default_cache,
        "folder",
        "The Hugging Face cache that is the store. "
        "Default: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub.",
    )
    local_folders: tuple[Path, ...] = _setting(
        "local.folders",
        folders,
        (),
        "folders",
        "Folders (NFS too) with hub caches or plain model folders; files in them are adopted by hash.",
    )
    fetch_connections: int = _setting(
        "fetch.connections",
        count(1, 64),
        16,
        "connections",
        "Most connections to one hub at a time; fewer are used when more bring nothing.",
    )
    fetch_patience_s: float = _setting(
        "fetch.patience",
        duration_s,
        "60s",
        "seconds",
        "How long a fetch waits while no source gives a byte, before it gives up (and can be resumed).",
    )
    gateway_listen: Listen = _setting(
        "gateway.listen",
        local_listen,
        "127.0.0.1:8377",
        "HOST:PORT",
        "Where the agent serves this machine, on loopback only: control, metrics. "
        "Port taken: another is used (run.json tells).",
    )
    lan_listen: Listen | None = _setting(
        "lan.listen", listen, "0.0.0.0:8378", "HOST:PORT, or off", "Where the agent serves its peers over HTTP."
    )
    lan_allow: tuple[IPv4Network | IPv6Network, ...] = _setting(
        "lan.allow",
        networks,
        (),
        "networks",
        "Who is a peer. Default: private and link-local networks this machine is on, loopback, discovery.peers.",
    )
    swarm_listen: Listen | None = _setting(
        "swarm.listen", listen, "0.0.0.0:8379", "HOST:PORT, or off", "Where BitTorrent v2 is spoken with peers."
    )
    discovery_mdns: bool = _setting(
        "discovery.mdns", switch, "on", "on or off", "Find agents on the same network by multicast DNS."
    )
    discovery_peers: tuple[Listen, ...] = _setting(
        "discovery.peers", peers, (), "HOST:PORT", "Agents of other networks; what they know is asked of them."
    )
    share_allow: tuple[str, ...] = _setting(
        "share.allow",
        patterns,
        (),
        "OWNER/NAME patterns",
        "Repos to share with peers though no hub calls them public (own, gated); data sets begin with `datasets/`.",
    )
    share_deny: tuple[str, ...] = _setting(
        "share.deny",
        patterns,
        (),
        "OWNER/NAME patterns",
        "Repos never to share (`lab/*`: all of an owner); wins over everything. `*` shares nothing.",
    )
    limits_upload: Rate = _setting(
        "limits.upload", rate, "95%", "rate", "Most that is sent to peers: a rate, a share of the link, or off."
    )
    limits_download: Rate = _setting("limits.download", rate, "off", "rate", "Most that is taken from peers.")
    limits_wan: Rate = _setting("limits.wan", rate, "off", "rate", "Most that is taken from hubs and mirrors.")
    limits_hub_connections: int = _setting(
        "limits.hub_connections",
        count(1, 64),
        8,
        "connections",
        "Most connections to the hub of machines that take a file together; to be set alike on all of them.",
    )
    limits_hours: Hours = _setting(
        "limits.hours", hours, "00:00-24:00", "HH:MM-HH:MM", "When the limits hold, local time; outside they do not."
    )
    plugin_offline_lan: bool = _setting(
        "plugin.offline_lan",
        switch,
        "off",
        "on or off",
        "With HF_HUB_OFFLINE, programs with the plugin get from the lab what their cache lacks; no hub is asked, and "
        "what the lab says a name stands for is believed, as with --accept-lan-manifest.",
    )
    aliases: Mapping[str, str] = _setting(
        "aliases", aliases, {}, "NAME=OWNER/REPO", "Your own short names; they win over the shipped ones."
    )
    origins: Mapping[str, str] = field(default_factory=dict)
    home: Path = field(default_factory=Path)
    offline: bool = False
    """HF_HUB_OFFLINE: no hub is asked for anything, as the hub's own client does it."""


def settings_table() -> tuple[Setting, ...]:
    """Every setting, in the order they are documented."""
    return tuple(f.metadata["setting"] for f in _setting_fields())


def home_dir(environ: Mapping[str, str]) -> Path:
    """The folder of one agent: config, state, token. EDGECDN_HOME, else ~/.local/share/edgecdn."""
    return Path(environ.get("EDGECDN_HOME") or "~/.local/share/edgecdn").expanduser().absolute()


def config_file(home: Path) -> Path:
    """Where the user's settings are kept."""
    return home / "config.toml"


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found: values by field name (those that are right), where each setting came from, all mistakes."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    problems: tuple[str, ...]
    home: Path


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read `config.toml` and the environment.

    Raises SettingsInvalid with every mistake, one a line.
    """
    reading = read_settings(environ)
    refuse_problems(reading)
    offline = (os.environ if environ is None else environ).get("HF_HUB_OFFLINE", "").strip().lower() in _TRUE
    return Settings(**reading.values, origins=reading.origins, home=reading.home, offline=offline)


def refuse_problems(reading: Reading) -> None:
    """Raise SettingsInvalid with every mistake, if there is one."""
    if reading.problems:
        raise SettingsInvalid(
            "\n".join(
                ["The settings are wrong:", *(f"  {p}" if p.endswith("?") else f"  {p}." for p in reading.problems)]
            )
        )


def read_settings(environ: Mapping[str, str] | None = None) -> Reading:
    """Read `config.toml` and the environment, and collect what is wrong."""
    environ = os.environ if environ is None else environ
    home = home_dir(environ)
    problems: list[str] = []
    in_file = _flatten(_read_toml(config_file(home), problems))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for f in _setting_fields():
        setting: Setting = f.metadata["setting"]
        raw, origin = _raw_value(setting, environ, in_file)
        origins[setting.name] = origin
        try:
            values[f.name] = setting.parse(raw)
        except BadInput as error:
            where = setting.variable if origin == "environment" else setting.name
            problems.append(f"{where}: {str(error).rstrip('.')}")
    problems += _unknown(in_file, {s.name for s in settings_table()})
    ours = [name for name in environ if name.startswith("EDGECDN_") and name not in _NO_SETTINGS]
    problems += _unknown(ours, {s.variable for s in settings_table()})
    if origins["hub.modelscope"] == "default" and origins["hub.endpoints"] == "default" and not own_hub(environ):
        values["hub_modelscope"] = DEFAULT_MODELSCOPE
    return Reading(values, origins, tuple(problems), home)


def _unknown(names: Iterable[str], known: set[str]) -> list[str]:
    """A mistake for each name that is no setting, and of no part of edgecdn that is to come."""
    found: list[str] = []
    for name in names:
        part = name.removeprefix("EDGECDN_").replace(".", "_").partition("_")[0].lower()
        if name not in known and part not in _LATER:
            nearest = get_close_matches(name, known, 1, cutoff=0.8)
            found.append(f"{name}: there is no such setting" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return found


def _setting_fields() -> tuple[Field[Any], ...]:
    return tuple(f for f in fields(Settings) if "setting" in f.metadata)


def _raw_value(setting: Setting, environ: Mapping[str, str], in_file: Mapping[str, object]) -> tuple[object, str]:
    if setting.variable in environ:
        return environ[setting.variable], "environment"
    if setting.name in in_file:
        return in_file[setting.name], "file"
    return setting.default(environ), "default"


def _read_toml(path: Path, problems: list[str]) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"{path}: cannot be read: {error}")
        return {}


def _flatten(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name != "aliases":
            flat.update(_flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
