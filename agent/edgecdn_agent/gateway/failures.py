"""What a client is told when a file's bytes cannot be given: our errors and sources' faults in a hub's form."""

from __future__ import annotations

import math

from aiohttp import web

from edgecdn.errors import (
    AccessDenied,
    AgentNotRunning,
    EdgecdnError,
    FileMissing,
    GatedRepo,
    IntegrityFailure,
    Interrupted,
    ManifestRefused,
    NoSpace,
    NothingMatched,
    ReadOnlyStore,
    RepoMissing,
    RevisionMissing,
    SystemFailed,
    Unreachable,
)
from edgecdn.sources.faults import Busy, Denied, Missing, SourceFault
from edgecdn_agent.gateway.errors import NoAnswer, StillListing, hub_error
from edgecdn_agent.gateway.heads import hub_client

__all__ = ["fault_answer", "no_file", "refusal"]

_RETRY_S = 5.0

_SOON_S = 3
"""Clients wait a second longer, five times at most: 20 s for what is over in a moment."""

_WAITS = (1, 0)
"""From this huggingface_hub on, a GET is asked again after 429 and 408 only: any 5xx ends a download at once."""

_WHY = web.ResponseKey("why", EdgecdnError)

# The first that fits decides.
_ANSWERS: tuple[tuple[type[EdgecdnError], int, str], ...] = (
    (GatedRepo, 403, "GatedRepo"),
    (AccessDenied, 403, ""),
    (RepoMissing, 404, "RepoNotFound"),
    (RevisionMissing, 404, "RevisionNotFound"),
    (NothingMatched, 404, "EntryNotFound"),
    (FileMissing, 404, "EntryNotFound"),
    (IntegrityFailure, 502, ""),
    (ManifestRefused, 502, ""),
    (NoSpace, 507, ""),
    (ReadOnlyStore, 507, ""),
    (Unreachable, 503, ""),
    (AgentNotRunning, 503, ""),
    (Interrupted, 503, ""),
)


def refusal(error: EdgecdnError) -> web.Response:
    """What went wrong, and what to do."""
    status, code = next(((status, code) for kind, status, code in _ANSWERS if isinstance(error, kind)), (500, ""))
    told = hub_error(status, code, f"{error.message} {error.remedy}")
    told[_WHY] = error
    return told


def no_file(told: web.StreamResponse, user_agent: str | None, why: NoAnswer | None = None) -> web.StreamResponse:
    """An answer to the GET of a file, such that clients come again where that helps; others stay as they are.

    What is over in a moment (the agent stops, the listing is on its way) is 429 to clients that wait for that alone.
    A hub that does not answer is not: each try takes long already, and the user is to know. `why`: where `refusal`
    did not make the answer.
    """
    reason = why or (told.get(_WHY) if not told.prepared else None)
    if not isinstance(reason, StillListing | NoAnswer | AgentNotRunning | Interrupted | Unreachable | SystemFailed):
        return told
    version = hub_client(user_agent)
    is_short = isinstance(reason, StillListing | AgentNotRunning | Interrupted)
    told.set_status(429 if is_short and version is not None and version >= _WAITS else 503)
    if told.status == 429 or "Retry-After" not in told.headers:
        told.headers["Retry-After"] = str(_SOON_S)
    return told


def fault_answer(fault: SourceFault) -> web.Response:
    """Why the origin gives this caller nothing."""
    match fault:
        case Missing():
            return hub_error(404, "EntryNotFound", f"The hub has no such bytes: it {fault}.")
        case Denied():
            return hub_error(403, "GatedRepo" if fault.gated else "", f"The hub refuses access: {fault}.")
        case Busy():  # the one status clients of hubs wait for and then ask again
            wait = {"Retry-After": str(math.ceil(fault.retry_after_s or _RETRY_S))}
            return hub_error(429, "", f"The hub asks to be left alone for a while: {fault}.", wait)
        case _:
            return hub_error(502, "", f"The hub does not give these bytes: it {fault}. Try again later.")
