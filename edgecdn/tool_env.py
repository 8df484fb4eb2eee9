"""The variables by which tools find the gateway: which to set, how to take them back, whose HF_ENDPOINT stands there.

Beside the tools' own variables, some of ours are left in the environment: the gateway's address, the names that
were not set before, the HF_ENDPOINT that was, and hf_transfer's switch where it was on. By them a later `edgecdn env`
knows its own traces from what the user set, and an agent that is started in such a shell does not take its own
gateway for a hub.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

__all__ = ["MARKS", "exports", "foreign_hub", "own_hub", "shell_lines", "takes_back"]

_URL, _SET, _HUB, _WAS_ON = "EDGECDN_ENV_URL", "EDGECDN_ENV_SET", "EDGECDN_ENV_HUB", "EDGECDN_ENV_TRANSFER"
MARKS = frozenset({_URL, _SET, _HUB, _WAS_ON})
"""Our own variables: no settings, and of no use to anybody else."""

_TRANSFER = "HF_HUB_ENABLE_HF_TRANSFER"
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})
"""What huggingface_hub takes for true."""

_DEFAULT_PORT = 8377
_PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_NO_PROXY = ("no_proxy", "NO_PROXY")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def exports(url: str, environ: Mapping[str, str], *, modelscope: bool = False) -> dict[str, str]:
    """What to add to `environ` so that tools use the gateway at `url`. `modelscope`: it serves that hub, too."""
    added = {
        "HF_ENDPOINT": url,
        "MODEL_ENDPOINT": f"{url}/",  # llama.cpp, which looks here first
        "HF_HUB_DISABLE_XET": "1",  # Xet clients go around the endpoint
        "DISABLE_SAFETENSORS_CONVERSION": "1",  # else transformers posts the user's token to a space outside
    }
    if environ.get(_TRANSFER, "").upper() in _TRUE:
        added[_TRANSFER] = "0"  # it fetches in pieces side by side, which are only relayed: unproven, and not kept
        added[_WAS_ON] = environ[_TRANSFER]
    if modelscope:
        added["MODELSCOPE_ENDPOINT"] = url
    if any(environ.get(name) for name in _PROXIES):
        added |= _without_proxy(environ)
    before = environ.get(_SET, "").split()
    fresh = [name for name in added if name not in environ and name not in before]
    marks = {_URL: url, _SET: " ".join([*before, *fresh])}
    hub = own_hub(environ)
    return added | marks | ({_HUB: hub} if hub else {})


def _without_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """A proxy of the environment is for the world outside, and cannot reach this machine's loopback."""
    there = next((environ[name] for name in _NO_PROXY if environ.get(name)), "")
    parts = [part.strip() for part in there.split(",") if part.strip()]
    merged = ",".join(parts if "*" in parts else [*parts, *(host for host in _LOOPBACK if host not in parts)])
    return dict.fromkeys(_NO_PROXY, merged)


def takes_back(environ: Mapping[str, str]) -> dict[str, str | None]:
    """What undoes former exports in `environ`; None: unset it. Empty where nothing points to a gateway."""
    undone: dict[str, str | None] = dict.fromkeys(environ.get(_SET, "").split())
    undone |= dict.fromkeys(sorted(MARKS & environ.keys()))
    if environ.get(_WAS_ON) and environ.get(_TRANSFER) == "0":
        undone[_TRANSFER] = environ[_WAS_ON]
    if "HF_ENDPOINT" in environ and _is_ours(environ["HF_ENDPOINT"], environ):
        undone["HF_ENDPOINT"] = environ.get(_HUB) or None
    return undone


def own_hub(environ: Mapping[str, str]) -> str:
    """HF_ENDPOINT as the user set it; empty when they did not, or it is a gateway of ours."""
    there = environ.get("HF_ENDPOINT", "")
    return environ.get(_HUB, "") if _is_ours(there, environ) else there


def foreign_hub(environ: Mapping[str, str], hubs: Sequence[str]) -> str:
    """The hub that the user's HF_ENDPOINT names and the agent does not ask; empty where they agree.

    `hubs`: those that it asks; none are known of an older agent, which is taken at its word.
    """
    hub = own_hub(environ)
    known = {_plain(one) for one in hubs}
    return hub if hub and known and _plain(hub) not in known else ""


def shell_lines(changes: Mapping[str, str | None], shell: str) -> list[str]:
    """Lines that make the changes in a shell, `sh` or `fish`."""
    if shell == "fish":
        return [
            f"set -e {name}" if value is None else f"set -gx {name} {_fish(value)}" for name, value in changes.items()
        ]
    return [
        f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}" for name, value in changes.items()
    ]


def _fish(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _is_ours(endpoint: str, environ: Mapping[str, str]) -> bool:
    """Whether an endpoint is the gateway that was exported, or the address it has by default."""
    plain = _plain(endpoint)
    return bool(plain) and plain in {_plain(environ.get(_URL, "")), *_DEFAULTS}


def _plain(url: str) -> str:
    """For comparing: without case of the host, default port and last slash."""
    parts = urlsplit(url.strip() if "://" in url else f"http://{url.strip()}")
    if not parts.netloc:
        return ""
    host = parts.netloc.lower().removesuffix(":443" if parts.scheme == "https" else ":80")
    return f"{parts.scheme.lower()}://{host}{parts.path.rstrip('/')}"


_DEFAULTS = frozenset(_plain(f"http://{host}:{_DEFAULT_PORT}") for host in ("127.0.0.1", "localhost", "[::1]"))
