"""Parsers of setting values: from environment text or a TOML value to a checked type. Pure but for `~`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import time
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from edgecdn.errors import BadInput

__all__ = [
    "Hours",
    "Listen",
    "Rate",
    "aliases",
    "count",
    "duration_s",
    "endpoint",
    "endpoints",
    "folder",
    "folders",
    "hours",
    "items",
    "listen",
    "local_listen",
    "modelscope",
    "networks",
    "patterns",
    "peers",
    "rate",
    "switch",
]

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-_]*\Z")
_TARGET = re.compile(r"(datasets/)?[A-Za-z0-9_][\w.\-]*/[A-Za-z0-9_][\w.\-]*\Z", re.ASCII)
_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)\Z")


_BYTES_S = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kbit": 125, "mbit": 125_000, "gbit": 125_000_000}
_BITS_S = {"bps": "bit", "Bps": "B"}
"""`Mbps` are bits, `MBps` bytes: the one place where the case of a letter counts."""

_RATE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|[A-Za-z]+(?:/s)?)\Z")
_TIME = r"([01]?\d|2[0-3]|24(?=:00)):([0-5]\d)"
_HOURS = re.compile(rf"{_TIME}\s*-\s*{_TIME}\Z")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?\Z")


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen. Port 0: any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes per second, or a share (0 to 1) of the machine's link; both None: no limit."""

    bytes_s: int | None = None
    share: float | None = None

    def __str__(self) -> str:
        if self.share is not None:
            return f"{self.share * 100:g}%"
        return "off" if self.bytes_s is None else f"{self.bytes_s / 1e6:g}MB/s"


@dataclass(frozen=True, slots=True)
class Hours:
    """A part of each day, local time; it may go past midnight. Equal ends: the whole day."""

    start: time
    stop: time

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.stop:%H:%M}"

    def covers(self, moment: time) -> bool:
        """Whether `moment` lies in it."""
        if self.start < self.stop:
            return self.start <= moment < self.stop
        return moment >= self.start or moment < self.stop


def items(value: object) -> tuple[str, ...]:
    """A list: comma-separated text, or a TOML array of texts."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise BadInput(f"{value!r} is not a list of texts")


def endpoint(value: object) -> str:
    """An http(s) base URL without a trailing slash; empty stays empty."""
    text = _text(value).strip().rstrip("/")
    if not text:
        return ""
    try:
        parts = urlsplit(text)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as error:
        raise BadInput(f"{text[:120]!r} is not a URL: {error}") from error
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not port_is_valid
        or parts.query
        or parts.fragment
    ):
        raise BadInput(f"{text[:120]!r} is not the http(s) URL of a hub")
    if parts.username or parts.password:
        raise BadInput("a hub's URL must not carry a user or password; use `hf auth login`")
    return text


def endpoints(value: object) -> tuple[str, ...]:
    """At least one hub, none twice."""
    parsed = tuple(dict.fromkeys(endpoint(part) for part in items(value)))
    if not parsed:
        raise BadInput("at least one hub is needed")
    return parsed


def modelscope(value: object) -> str:
    """A URL, or a word for off."""
    return "" if _text(value).strip().lower() in ("", "off", "no", "false", "0") else endpoint(value)


def folder(value: object) -> Path:
    """An absolute path; `~` and relative paths are resolved against the user's own."""
    text = _text(value)
    if not text or "\0" in text:
        raise BadInput(f"{text!r} is not a folder")
    return Path(text).expanduser().absolute()


def folders(value: object) -> tuple[Path, ...]:
    """Any number of folders."""
    return tuple(folder(part) for part in items(value))


def count(lowest: int, highest: int) -> Callable[[object], int]:
    """A whole number between two bounds, both included."""

    def parse(value: object) -> int:
        try:
            number = int(str(value))
        except ValueError as error:
            raise BadInput(f"{value!r} is not a whole number") from error
        if isinstance(value, bool) or not lowest <= number <= highest:
            raise BadInput(f"{value!r} is not between {lowest} and {highest}")
        return number

    return parse


def duration_s(value: object) -> float:
    """Seconds, from `90`, `90s`, `1.5m`, `2h`, `500ms`."""
    match = _QUANTITY.match(str(value).strip())
    factor = _SECONDS.get(match["unit"].lower()) if match else None
    if match is None or factor is None or isinstance(value, bool):
        raise BadInput(f"{value!r} is not a duration (90, 90s, 2m, 1h)")
    return float(match["number"]) * factor


def aliases(value: object) -> Mapping[str, str]:
    """Short names: a TOML table, or `name=owner/repo,...`; a value may begin with `datasets/`."""
    if isinstance(value, Mapping):
        pairs = [(str(name), _text(target)) for name, target in value.items()]
    else:
        pairs = [(name.strip(), target.strip()) for name, _, target in (part.partition("=") for part in items(value))]
    for name, target in pairs:
        if not _ALIAS.match(name) or not _TARGET.match(target):
            raise BadInput(f"{name[:80]!r} = {target[:120]!r} is not a short name and a repo (OWNER/NAME)")
    return {name.lower(): target for name, target in pairs}


def listen(value: object) -> Listen | None:
    """`HOST:PORT` or `PORT` (any address is 0.0.0.0); None for off."""
    text = str(value).strip()
    if text.lower() in ("", "off", "no", "false"):
        return None
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise BadInput(f"{text[:80]!r} is not an address to listen on (0.0.0.0:8378, 8378 or off)")
    return Listen(_host(host.strip("[]") or "0.0.0.0"), int(port))  # noqa: S104 - a setting's own word for "all"


def local_listen(value: object) -> Listen:
    """As `listen`, but on loopback alone: it is for programs of this machine; a bare port is 127.0.0.1's."""
    text = str(value).strip()
    found = listen(f"127.0.0.1:{text}" if text.isascii() and text.isdigit() else text)
    if found is None:
        raise BadInput("it cannot be off: commands of this machine reach the agent there (127.0.0.1:8377)")
    try:
        is_local = found.host == "localhost" or ip_address(found.host).is_loopback
    except ValueError:
        is_local = False
    if not is_local:
        raise BadInput(f"{text[:80]!r} is not on loopback, and this is for this machine only (127.0.0.1:8377)")
    return found


def patterns(value: object) -> tuple[str, ...]:
    """Patterns of repos: `*`, or with an owner and a name (`lab/*`, `datasets/lab/*`)."""
    found = tuple(part.strip() for part in items(value))
    for pattern in found:
        owner, _, name = pattern.removeprefix("datasets/").removeprefix("spaces/").partition("/")
        if not name and not (owner == "*" and pattern in ("*", "datasets/*", "spaces/*")):
            meant = f"{pattern.rstrip('/') or 'OWNER'}/*"
            raise BadInput(f"{pattern[:80]!r} is no OWNER/NAME pattern and fits no repo (did you mean {meant[:80]!r}?)")
    return found


def peers(value: object) -> tuple[Listen, ...]:
    """Agents by `HOST` or `HOST:PORT`; the port is 8378 where none is said."""
    found: list[Listen] = []
    for item in items(value):
        host, _, port = item.rpartition(":") if re.search(r"\]?:\d+\Z", item) else (item, "", "8378")
        if not 0 < int(port) <= 65535:
            raise BadInput(f"{item[:80]!r} has an impossible port")
        found.append(Listen(_host(host.strip("[]")), int(port)))
    return tuple(dict.fromkeys(found))


def networks(value: object) -> tuple[IPv4Network | IPv6Network, ...]:
    """Networks (`10.1.0.0/16`) or single addresses."""
    try:
        return tuple(ip_network(item, strict=False) for item in items(value))
    except ValueError as error:
        raise BadInput(f"{error}"[:160]) from error


def rate(value: object) -> Rate:
    """`20MB/s`, `100Mbit/s`, `100Mbps`, `80%` of the link, or `off` for no limit."""
    text = str(value).strip()
    if text.lower() in ("off", "no", "false"):
        return Rate()
    match = _RATE.match(text)
    number = float(match["number"]) if match else 0.0
    unit = match["unit"].removesuffix("/s") if match else ""
    unit = (unit[:-3] + _BITS_S[unit[-3:]] if unit[-3:] in _BITS_S else unit).lower()
    if unit == "%" and 0 < number <= 100:
        return Rate(share=number / 100)
    if unit in _BYTES_S and number * _BYTES_S[unit] >= 1000:
        return Rate(bytes_s=int(number * _BYTES_S[unit]))
    if not text or (match and not number) or _is_zero(text):
        raise BadInput(f"{text!r} is no rate: it is 'off' for no limit; to give nothing: share.deny '*'")
    if text.isascii() and text.replace(".", "", 1).isdigit():
        raise BadInput(f"{text[:80]!r} has no unit (did you mean {text[:80]}MB/s or {text[:80]}Mbit/s?)")
    raise BadInput(f"{text[:80]!r} is not a rate (20MB/s, 100Mbit/s, 80% or off; at least 1 kB/s)")


def _is_zero(text: str) -> bool:
    return text.isascii() and text.replace(".", "", 1).isdigit() and not float(text)


def hours(value: object) -> Hours:
    """`22:00-06:00` or `8:00 - 20:00`, local time; 24:00 is midnight."""
    match = _HOURS.match(str(value).strip())
    if match is None:
        raise BadInput(f"{value!r} is not a part of the day (22:00-06:00)")
    h1, m1, h2, m2 = (int(part) for part in match.groups())
    return Hours(time(h1 % 24, m1), time(h2 % 24, m2))


def switch(value: object) -> bool:
    """On or off."""
    text = str(value).strip().lower()
    if text in ("on", "yes", "true", "1"):
        return True
    if text in ("off", "no", "false", "0"):
        return False
    raise BadInput(f"{value!r} is neither on nor off")


def _host(text: str) -> str:
    if ":" in text or _HOST.match(text):
        return text
    raise BadInput(f"{text[:80]!r} is not a host")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{value!r} is not a text")
    return value
