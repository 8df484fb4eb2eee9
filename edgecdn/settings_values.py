"""Parsers of setting values: from environment text or a TOML value to a checked type. Pure but for `~`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from edgecdn.errors import BadInput

__all__ = ["aliases", "count", "duration_s", "endpoint", "endpoints", "folder", "folders", "items", "modelscope"]

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-_]*\Z")
_TARGET = re.compile(r"(datasets/)?[A-Za-z0-9_][\w.\-]*/[A-Za-z0-9_][\w.\-]*\Z", re.ASCII)
_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)\Z")


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


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{value!r} is not a text")
    return value
