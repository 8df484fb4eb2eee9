"""From what went wrong to the one error a user sees. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edgecdn import errors
from edgecdn.manifest import FileEntry, Manifest
from edgecdn.sources.faults import Denied, Missing, SourceFault

__all__ = ["most_telling", "no_source_left"]


def no_source_left(
    manifest: Manifest,
    entry: FileEntry,
    faults: Mapping[str, SourceFault],
    dropped: Mapping[str, str],
    liars: Collection[str],
    page: str,
) -> errors.EdgecdnError:
    """Why a file cannot be had.

    `faults` is the last one of each source for this file, `dropped` why sources were dropped for the
    job, `liars` those of them that gave wrong bytes, `page` the repo's page on its hub.
    """
    said = "; ".join(f"{name} {why}" for name, why in sorted({**faults, **dropped}.items())) or "nobody offers it"
    denied = [fault for fault in faults.values() if isinstance(fault, Denied)]
    if liars:
        return errors.IntegrityFailure(said, path=f"{manifest.repo}/{entry.path}")
    if any(fault.gated for fault in denied):
        return errors.GatedRepo(name=manifest.repo, page=page, where="", reason="")
    if denied:
        where = next(name for name, fault in sorted(faults.items()) if isinstance(fault, Denied))
        return errors.AccessDenied(name=manifest.repo, where=where, reason=f" ({denied[0]})")
    if faults and all(isinstance(fault, Missing) for fault in faults.values()):
        hint = "The hub's listing and its files disagree; try again later."
        return errors.FileMissing(
            f"{entry.path} of {manifest.repo} is listed, but no source has it ({said}).", hint=hint
        )
    return errors.Unreachable(f"{entry.path}: {said}")


def most_telling(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one failure of a task group that explains the others."""
    flat: list[BaseException] = []

    def collect(group: BaseExceptionGroup[BaseException]) -> None:
        for failure in group.exceptions:
            if isinstance(failure, BaseExceptionGroup):
                collect(failure)
            else:
                flat.append(failure)

    collect(failures)
    ours = [failure for failure in flat if isinstance(failure, errors.EdgecdnError)]
    return (ours or flat)[0]
