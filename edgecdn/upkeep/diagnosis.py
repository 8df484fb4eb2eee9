"""What the doctor's facts mean, and what to do about each. Pure; no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edgecdn.cache.health import Oddity
from edgecdn.errors import CacheRefused, EdgecdnError, NoSpace, Unreachable
from edgecdn.sizes import human_bytes

__all__ = [
    "Check",
    "Heard",
    "State",
    "cache",
    "catalog",
    "clock",
    "endpoints",
    "exit_code",
    "inodes",
    "is_full",
    "space",
    "token",
    "versions",
    "writable",
]

_FAIL_FREE_BYTES = 64_000_000
"""Below this no fetch begins (the margin it leaves, 64 MB)."""

_WARN_FREE_BYTES = 10_000_000_000
"""Below this a model of common size does not fit (10 GB)."""

_FEW_INODES = 1000
_CLOCK_S = 300.0
"""Signed storage addresses are refused by clocks further off than about this (5 min)."""

_FIRST = "Remedy that first (see above)."

_NAMED = 3
"""Most examples named for one kind of oddity."""

_GRAVEST = (NoSpace.exit_code, Unreachable.exit_code, CacheRefused.exit_code, EdgecdnError.exit_code)


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's; `remedy` is empty where nothing is to be done."""

    check: str
    state: State
    detail: str
    remedy: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Heard:
    """What a hub answered to a small question. `fault` is empty when it did; `offset_s`: our clock ahead of its."""

    endpoint: str
    fault: str
    status: int = 0
    is_hub: bool = False
    latency_ms: float = 0.0
    offset_s: float | None = None


def exit_code(checks: Sequence[Check]) -> int:
    """That of the gravest failing check: what stops a fetch first."""
    failed = {check.exit_code for check in checks if check.state is State.FAIL}
    return next((code for code in _GRAVEST if code in failed), 0)


def is_full(free: int) -> bool:
    """Whether no fetch begins for want of space."""
    return free < _FAIL_FREE_BYTES


def space(what: str, folder: Path, free: int, total: int) -> Check:
    """Free bytes on the disk of a folder."""
    detail = f"{human_bytes(free)} of {human_bytes(total)} are free for {folder}"
    move = "`edgecdn config set cache.dir DIR`" if what == "cache.dir" else "EDGECDN_HOME=DIR"
    remedy = f"Free some (`edgecdn gc`, `edgecdn ls`, `edgecdn rm`), or move it: {move}."
    if is_full(free):
        detail = f"only {detail}; {human_bytes(_FAIL_FREE_BYTES)} must be, beyond what a fetch brings"
        return Check(f"{what} space", State.FAIL, detail, remedy, NoSpace.exit_code)
    if what == "cache.dir" and free < _WARN_FREE_BYTES:
        return Check(f"{what} space", State.WARN, detail, remedy)
    return Check(f"{what} space", State.OK, detail)


def inodes(what: str, folder: Path, free: int, total: int) -> Check:
    """Free inodes; file systems that make them as needed say that they have none at all."""
    if not total or free >= _FEW_INODES:
        return Check(f"{what} inodes", State.OK, f"{free} are free" if total else "made as needed")
    remedy = f"Remove small files from the disk of {folder}, or use another disk."
    state = State.WARN if free else State.FAIL
    return Check(f"{what} inodes", state, f"only {free} of {total} are free", remedy, NoSpace.exit_code)


def writable(what: str, folder: Path, *, is_folder: bool, may_write: bool) -> Check:
    """Whether a fetch can write there."""
    if is_folder and may_write:
        return Check(f"{what} writable", State.OK, str(folder))
    detail = f"{folder} cannot be written" if is_folder else f"{folder} is no folder"
    other = "`edgecdn config set cache.dir DIR`" if what == "cache.dir" else "EDGECDN_HOME"
    return Check(
        f"{what} writable", State.FAIL, detail, f"Make it writable, or use another: {other}.", NoSpace.exit_code
    )


def endpoints(heard: Sequence[Heard], *, offline: str) -> Iterator[Check]:
    """Each hub; that none answers fails, that some do not warns."""
    if offline.lower() in ("1", "true", "yes", "on"):
        remedy = "Unset HF_HUB_OFFLINE to fetch what is not here."
        yield Check("offline", State.WARN, "HF_HUB_OFFLINE is set: no hub is asked", remedy)
    answering = [h for h in heard if not h.fault and h.is_hub]
    for one in heard:
        if one in answering:
            yield Check(f"hub {one.endpoint}", State.OK, f"answers in {one.latency_ms:.0f} ms")
            continue
        detail = one.fault or f"answers HTTP {one.status}, but not as a hub (a login page?)"
        remedy = (
            "Check the network, proxy and login page, or name another hub: `edgecdn config set hub.endpoints URL ...`."
        )
        yield Check(
            f"hub {one.endpoint}", State.WARN if answering else State.FAIL, detail, remedy, Unreachable.exit_code
        )


def clock(first: Heard | None) -> Check:
    """This machine's clock against the first hub's."""
    if first is None or first.offset_s is None:
        return Check("clock", State.OK, "not compared: the first hub does not say the time")
    off = abs(first.offset_s)
    if off <= _CLOCK_S:
        return Check("clock", State.OK, f"{off:.0f} s from {first.endpoint}")
    way = "ahead of" if first.offset_s > 0 else "behind"
    remedy = "Set the clock (`timedatectl set-ntp true`): signatures and certificates are refused by their time."
    return Check("clock", State.WARN, f"{off / 60:.0f} min {way} {first.endpoint}", remedy)


def token(*, present: bool, owner: str | None) -> Check:
    """Whether there is a token, and the one hub it is for; never what it is."""
    if not present:
        return Check("token", State.OK, "none: public repos only (`hf auth login` for others)")
    if owner is None:
        remedy = "Say whose it is: `edgecdn config set hub.token_for URL`."
        return Check("token", State.WARN, "present, but for none of the configured hubs; it is sent to nobody", remedy)
    return Check("token", State.OK, f"present, sent to {owner} only")


_MEANING: Mapping[str, tuple[State, str, str]] = {
    "foreign": (State.WARN, "entries that belong to no repo", "Move them away: hub clients warn of them."),
    "linked-repo": (State.FAIL, "repo folders that are links", "Replace each by a real folder; edgecdn refuses them."),
    "unreadable": (State.FAIL, "repos that cannot be read", "Look at the folder; `hf cache rm` removes a broken repo."),
    "broken-link": (State.WARN, "links to blobs that are gone", "`edgecdn fetch MODEL@COMMIT` brings them back."),
    "lost-ref": (State.WARN, "refs to commits that are not here", "`edgecdn fetch MODEL` brings the commit."),
    "no-tree": (State.OK, "commits without a listing (older clients write none)", ""),
    "leftover": (State.OK, "repos with partial files of what is complete", "`edgecdn gc` removes those of edgecdn."),
    "partial": (State.OK, "repos with unfinished files", "`edgecdn fetch MODEL` goes on; `edgecdn gc` cleans up."),
}


def cache(found: Sequence[Oddity]) -> Iterator[Check]:
    """The cache's oddities, a line for each kind."""
    counts = Counter(oddity.kind for oddity in found)
    if not counts:
        yield Check("cache", State.OK, "nothing odd")
    for kind, count in counts.items():
        state, meaning, remedy = _MEANING[kind]
        same = [oddity for oddity in found if oddity.kind == kind]
        named = ", ".join(oddity.where for oddity in same[:_NAMED]) + (", ..." if count > _NAMED else "")
        size = sum(oddity.size for oddity in same)
        weight = f", {size / 1e6:.1f} MB" if size else ""
        yield Check(f"cache {kind}", state, f"{count} {meaning}{weight}: {named}", remedy, CacheRefused.exit_code)


def catalog(said: str, *, rebuilt: bool, home_fault: str = "") -> Check:
    """SQLite's word on the catalog; it is derived, so a broken one costs hashing and what `rm` may remove.

    `home_fault`: what keeps anybody from writing in the home; a catalog that cannot be looked at is then not broken.
    """
    if rebuilt:
        remedy = "Nothing to do: it is begun anew. `edgecdn rm` keeps what was brought before."
        return Check("catalog", State.WARN, "was broken and is set aside as catalog.broken", remedy)
    if said == "ok":
        return Check("catalog", State.OK, "whole")
    if home_fault:
        return Check("catalog", State.WARN, f"cannot be looked at: {home_fault}", _FIRST)
    remedy = "Stop other edgecdn commands and move catalog.sqlite out of EDGECDN_HOME; it is rebuilt."
    return Check("catalog", State.FAIL, said, remedy, EdgecdnError.exit_code)


def versions(python: str, found: Mapping[str, str | None]) -> Check:
    """Python and the libraries that matter for interoperation."""
    shown = ", ".join([f"Python {python}", *(f"{name} {version or 'missing'}" for name, version in found.items())])
    if None in found.values():
        return Check(
            "versions", State.FAIL, shown, "Install edgecdn again: `pip install edgecdn`.", EdgecdnError.exit_code
        )
    return Check("versions", State.OK, shown)
