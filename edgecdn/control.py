"""The control API's messages: what the agent and the programs of its machine say to each other.

All of it goes over the local listener under `/edgecdn/v1/`. A fetch is answered with one JSON object a
line: `{"job": ..}` first and whenever it changes, `{"event": ..}`, `{"beat": n}` while nothing happens,
and at the end `{"result": {..}}` or `{"error": {..}}` (AgentNotRunning: the agent was stopped). A stream that
ends without either was lost.
What one side does not know of the other's (a newer agent's event, a field) is passed over.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_args

import msgspec

from edgecdn import errors
from edgecdn.errors import BadInput, EdgecdnError
from edgecdn.events import Event

__all__ = [
    "API",
    "BEAT_S",
    "LOCK_FILE",
    "RUN_FILE",
    "SILENCE_S",
    "TOKEN_FILE",
    "CacheInfo",
    "Cancelled",
    "ErrorInfo",
    "FetchRequest",
    "HealthInfo",
    "JobInfo",
    "PeerInfo",
    "PeerTraffic",
    "RunInfo",
    "ServiceInfo",
    "StatusInfo",
    "TopInfo",
    "Totals",
    "decode_event",
    "decode_line",
    "encode_event",
    "encode_line",
    "error_info",
    "parse",
    "rebuilt_error",
]

API = "/edgecdn/v1"

RUN_FILE = "run.json"
TOKEN_FILE = "api-token"  # noqa: S105 - a file name
LOCK_FILE = "agent.lock"

BEAT_S = 1.0
"""The agent says something at least this often (seconds) while it works for somebody."""

SILENCE_S = 4.0
"""An agent that says nothing for so long (seconds) is lost: four beats."""

_EVENTS: dict[str, type[Any]] = {shape.__name__: shape for shape in get_args(Event)}


class FetchRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `edgecdn fetch` was asked for. `local_dir` and `cache_dir` are absolute; `kinds` None: any source.

    `offline`: the caller has HF_HUB_OFFLINE, so no hub is asked for it.
    """

    model: str
    type: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    all_formats: bool = False
    local_dir: str | None = None
    kinds: tuple[str, ...] | None = None
    hub: str = ""
    accept_lan_manifest: bool = False
    cache_dir: str | None = None
    offline: bool = False


class ErrorInfo(msgspec.Struct, frozen=True):
    """An EdgecdnError on its way to the caller."""

    error: str
    message: str
    remedy: str = ""


class RunInfo(msgspec.Struct, frozen=True):
    """`run.json`: which agent serves a home, and where. Listeners: `local`, `lan`, `swarm` to `host:port`.

    `cache_dir`: the store it fills; `hub_endpoints`: the hubs it asks (empty: it did not tell); `offline_lan`: the
    setting plugin.offline_lan; `modelscope`: it serves that hub to its own clients.
    """

    pid: int
    version: str
    agent_id: str
    listeners: dict[str, str]
    started_at: float
    cache_dir: str = ""
    hub_endpoints: tuple[str, ...] = ()
    offline_lan: bool = False
    modelscope: bool = False


class PeerInfo(msgspec.Struct, frozen=True):
    """Another agent of the lab. `host` with `lan_port` and `swarm_port` (0: none): where it is reached.

    `clock_offset_s`: its clock ahead of ours when it was met.
    """

    id: str
    name: str
    addresses: tuple[str, ...]
    version: str
    last_seen_s: float
    host: str = ""
    lan_port: int = 0
    swarm_port: int = 0
    clock_offset_s: float = 0.0


class PeerTraffic(msgspec.Struct, frozen=True):
    """What goes to and comes from a peer: rates in bytes per second, and bytes since the agent started."""

    name: str
    in_bytes_s: float
    out_bytes_s: float
    in_bytes: int
    out_bytes: int


class JobInfo(msgspec.Struct, frozen=True):
    """A fetch of the agent. `rates`: bytes per second by source; `state`: preparing, running, waiting, done, ..."""

    id: str
    title: str
    state: str
    askers: int
    done_bytes: int
    total_bytes: int
    bytes_by_source: dict[str, int]
    rates: dict[str, float]
    seconds: float
    detail: str = ""


class CacheInfo(msgspec.Struct, frozen=True):
    """What is verified in the cache."""

    repos: int
    bytes: int


class Totals(msgspec.Struct, frozen=True):
    """Bytes since the agent started."""

    in_by_source: dict[str, int]
    out_lan: int


class StatusInfo(msgspec.Struct, frozen=True):
    """What `edgecdn status` shows; `peers` is their number, `jobs` those that run and the last that ended.

    `name`: what peers call this agent.
    """

    version: str
    agent_id: str
    uptime_s: float
    peers: int
    jobs: tuple[JobInfo, ...]
    cache: CacheInfo
    totals: Totals
    listeners: dict[str, str]
    name: str = ""


class TopInfo(msgspec.Struct, frozen=True):
    """What `edgecdn top` shows: who sends how much to whom at this moment."""

    name: str
    peers: tuple[PeerTraffic, ...]
    jobs: tuple[JobInfo, ...]
    totals: Totals
    in_bytes_s: float
    out_bytes_s: float


class ServiceInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of the agent: starting, ready, waiting (to be started again), failed or done.

    `detail`: why it is down, told to programs of this user alone.
    """

    state: str
    restarts: int
    detail: str = ""


class HealthInfo(msgspec.Struct, frozen=True):
    """`/healthz`. Ready: nothing is on its first way up any more; `failing` names the parts that are down."""

    ready: bool
    failing: tuple[str, ...]
    services: dict[str, ServiceInfo]


class Cancelled(msgspec.Struct, frozen=True):
    """The answer to a cancel: whether the job stopped, and how many others still wait for it.

    `by_tools`: those are tools that load it, not commands.
    """

    cancelled: bool
    others: int
    by_tools: bool = False


_T = TypeVar("_T")


def parse(data: bytes, shape: type[_T]) -> _T:
    """A message from outside; raises BadInput."""
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"not a {shape.__name__}: {error}") from error


def encode_line(**fields: object) -> bytes:
    """One line of a stream."""
    return msgspec.json.encode(fields) + b"\n"


def decode_line(line: bytes) -> dict[str, Any]:
    """One line of a stream; raises BadInput."""
    return parse(line, dict[str, Any])


def encode_event(event: Event) -> bytes:
    """An event as a line: its name, and its fields beside it."""
    return encode_line(event=type(event).__name__, **msgspec.to_builtins(event))


def decode_event(line: dict[str, Any]) -> Event | None:
    """The event of a line; None where this version knows no such event."""
    shape = _EVENTS.get(str(line.get("event")))
    if shape is None:
        return None
    try:
        made: Event = msgspec.convert({key: line[key] for key in line if key != "event"}, shape)
    except msgspec.ValidationError:
        return None
    return made


def error_info(error: BaseException) -> ErrorInfo:
    """An error for the wire; one that nobody foresaw names its type, and the log has the rest."""
    if isinstance(error, EdgecdnError):
        return ErrorInfo(type(error).__name__, error.message, error.remedy)
    told = f"The agent failed unexpectedly: {type(error).__name__}: {error}"
    return ErrorInfo("EdgecdnError", told, "The agent's log has the details; run the same command again.")


def rebuilt_error(info: ErrorInfo) -> EdgecdnError:
    """The same error on the caller's side: its class (so its exit code), its sentences; else an EdgecdnError."""
    known = getattr(errors, info.error, None) if info.error in errors.__all__ else None
    kind: type[EdgecdnError] = known or EdgecdnError
    error = kind.__new__(kind)  # not __init__: the sentences are made already
    error.args = (info.message,)
    error.fields = {"detail": info.message}
    error.message, error.remedy = info.message, info.remedy
    return error
