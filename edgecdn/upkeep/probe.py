"""Probing hubs: does each answer, how fast, with sound headers, and how fresh is it.

Every step has a time limit, hubs are asked side by side, and a hub that fails tells why instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp

from edgecdn.digest import DigestKind
from edgecdn.errors import AccessDenied, EdgecdnError, RepoMissing, RevisionMissing
from edgecdn.events import Kind
from edgecdn.local_fetch import credentials
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import CommitId, RepoId, RepoType
from edgecdn.resolve import Index
from edgecdn.settings import Settings
from edgecdn.sources import Source
from edgecdn.sources.answers import check_body, check_identity, refuse_status
from edgecdn.sources.faults import SourceFault
from edgecdn.sources.http import ByteClient
from edgecdn.sources.hub import HubSource
from edgecdn.sources.hub_api import HubApi
from edgecdn.sources.modelscope import ModelScopeApi, ModelScopeSource
from edgecdn.sources.ranged import RangedOffer
from edgecdn.spans import Span

__all__ = ["DEFAULT_REPO", "MirrorReport", "lag_of", "probe_mirrors", "sample_file"]

DEFAULT_REPO = RepoId(RepoType.MODEL, "Qwen/Qwen2.5-0.5B-Instruct")
"""Probed when the user names none: small, ungated, and under the same name on every hub known."""

_PROBE_S = 14.0
"""All steps of one hub together; with the question below it stays under the 20 s a person waits."""

_HISTORY_S = 4.0
_SAMPLE_S = 6.0
"""A sample may take this long; the rate is that of what came."""


@dataclass(slots=True)
class MirrorReport:
    """What was seen of one hub. `lag`: same, behind or other than the first hub; None when not known."""

    endpoint: str
    kind: str
    reachable: bool = False
    latency_ms: float | None = None
    rate_bytes_s: float | None = None
    ranges: bool | None = None
    headers_ok: bool | None = None
    commit: str | None = None
    lag: str | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Probe:
    report: MirrorReport
    index: Index
    source: Source
    manifest: Manifest | None = None


async def probe_mirrors(settings: Settings, repo: RepoId, sample_bytes: int) -> list[MirrorReport]:
    """Probe every configured hub with `repo`; a report each, in the user's order, within 20 s."""
    own = credentials(settings)
    client = ByteClient([own] if own else [])
    probes = [_Probe(MirrorReport(e, "hub"), HubApi(e, own), _hub_source(e, client)) for e in settings.hub_endpoints]
    if settings.hub_modelscope:
        url = settings.hub_modelscope
        source = ModelScopeSource(url, Kind.MIRROR, client, connections=1)
        probes.append(_Probe(MirrorReport(url, "modelscope"), ModelScopeApi(url, client), source))
    try:
        await asyncio.gather(*(_probe(probe, client, repo, sample_bytes) for probe in probes))
        history = await _history(probes, repo)
    finally:
        await client.close()
    for probe in probes:
        probe.report.lag = lag_of(probes[0].manifest, probe.manifest, history, by_bytes=not probe.index.owns_refs)
    return [probe.report for probe in probes]


def sample_file(manifest: Manifest, sample_bytes: int) -> FileEntry | None:
    """The smallest file that holds a whole sample, else the largest."""
    enough = [entry for entry in manifest.files if entry.size >= sample_bytes]
    if enough:
        return min(enough, key=lambda entry: entry.size)
    return max((e for e in manifest.files if e.size), key=lambda entry: entry.size, default=None)


def lag_of(
    first: Manifest | None, other: Manifest | None, history: Sequence[CommitId], *, by_bytes: bool
) -> str | None:
    """How a hub's main stands to the first hub's.

    `by_bytes`: it has commits of its own, so the large files decide.
    """
    if first is None or other is None:
        return None
    if by_bytes:
        large = {e.digest for e in first.files if e.digest.kind is DigestKind.SHA256}
        return "same" if large <= {e.digest for e in other.files} else "other"
    if first.commit == other.commit:
        return "same"
    return "behind" if other.commit in history else "other"


def _hub_source(endpoint: str, client: ByteClient) -> Source:
    return HubSource(endpoint, Kind.MIRROR, client, connections=1)


async def _probe(probe: _Probe, client: ByteClient, repo: RepoId, sample_bytes: int) -> None:
    async with _telling(probe.report):
        async with asyncio.timeout(_PROBE_S):
            commit = await _ask(probe, repo)
            probe.manifest = await probe.index.manifest(repo, commit)
            entry = sample_file(probe.manifest, sample_bytes)
            if entry is not None:
                await _sample(probe, client, entry, min(sample_bytes, entry.size))


async def _ask(probe: _Probe, repo: RepoId) -> CommitId:
    started = time.monotonic()
    try:
        head = await probe.index.head(repo, None)
    except (RepoMissing, RevisionMissing, AccessDenied):
        _answered(probe.report, started)
        raise
    _answered(probe.report, started)
    probe.report.commit = head.commit.hex
    return head.commit


def _answered(report: MirrorReport, started: float) -> None:
    report.reachable = True
    report.latency_ms = round((time.monotonic() - started) * 1000, 1)


@contextlib.asynccontextmanager
async def _telling(report: MirrorReport) -> AsyncIterator[None]:
    """Note what goes wrong instead of raising it."""
    try:
        yield
    except TimeoutError:
        report.problems.append(f"took longer than {_PROBE_S:.0f} s")
    except EdgecdnError as error:
        report.problems.append(error.message)
    except SourceFault as fault:
        report.problems.append(str(fault))


async def _sample(probe: _Probe, client: ByteClient, entry: FileEntry, wanted: int) -> None:
    assert probe.manifest is not None
    offers = await probe.source.offer(probe.manifest, [entry])
    offer = offers.get(entry.digest)
    if not isinstance(offer, RangedOffer):
        probe.report.problems.append(f"does not offer {entry.path}")
        return
    probe.report.headers_ok = probe.report.ranges = False
    span = Span(0, wanted) if wanted < entry.size else Span(0, entry.size)
    async with client.get(offer.url, {"Range": f"bytes={span.start}-{span.stop - 1}"}) as (response, hops):
        for answer in (*hops, response):
            if answer.url.origin() == offer.url.origin():
                check_identity(answer.headers, entry, offer.commit)
        refuse_status(response.status, response.headers, datetime.now(tz=UTC))
        if response.status == 200 and response.headers.get("Content-Range") is None:
            probe.report.problems.append("ignores Range: an interrupted file starts again")
        else:
            probe.report.ranges = True
        check_body(response.status, response.headers, span, entry.size, ranged=len(span) < entry.size)
        probe.report.headers_ok = True
        received, seconds = await _read(response, len(span), time.monotonic)
    probe.report.rate_bytes_s = round(received / max(seconds, 1e-6))


async def _read(response: aiohttp.ClientResponse, wanted: int, clock: Callable[[], float]) -> tuple[int, float]:
    received, started = 0, clock()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SAMPLE_S):
            async for piece in response.content.iter_any():
                received += len(piece)
                if received >= wanted:
                    break
    return received, clock() - started


async def _history(probes: Sequence[_Probe], repo: RepoId) -> list[CommitId]:
    """The first hub's commits, asked only when some other hub is not at its newest."""
    first = probes[0]
    others = {p.report.commit for p in probes[1:] if p.index.owns_refs} - {None, first.report.commit}
    if first.report.commit is None or not others:
        return []
    try:
        async with asyncio.timeout(_HISTORY_S):
            return await first.index.commits(repo, None)
    except (TimeoutError, EdgecdnError, SourceFault):
        return []
