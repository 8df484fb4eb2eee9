"""Who is blamed for wrong bytes, and which error a user sees when no source is left."""

from __future__ import annotations

import asyncio

import pytest

from edgecdn import errors
from edgecdn.sources.faults import Broken, Denied, Misbehaved, Missing, SourceFault
from edgecdn.spans import Span
from edgecdn.transfer.dispute import Verdict, judge
from edgecdn.transfer.outcome import most_telling, no_source_left
from tests.unit.made import MIB, lfs_file, manifest_of

EARLIER = "an earlier run"
ENTRY = lfs_file("model.safetensors", b"data")
MANIFEST = manifest_of(ENTRY)
SIZE = 3 * MIB + 5


def _givers(*units: str) -> dict[int, set[str]]:
    return {index: set(names.split("+")) for index, names in enumerate(units)}


class TestJudge:
    """One file, all bytes there, wrong digest."""

    def test_the_only_source_gave_all_and_lied(self) -> None:
        assert judge(SIZE, _givers("a", "a", "a", "a"), None, ["a"]) == Verdict("a", None, ())

    def test_one_gave_all_and_another_can_stand(self) -> None:
        verdict = judge(SIZE, _givers("a", "a", "a", "a"), None, ["a", "b"])
        assert verdict == Verdict("a", "b", (Span(0, SIZE),))

    def test_of_two_the_most_trusted_stands_and_nobody_is_blamed_yet(self) -> None:
        verdict = judge(SIZE, _givers("a", "b", "a", "b"), None, ["a", "b"])
        assert verdict == Verdict(None, "a", (Span(MIB, 2 * MIB), Span(3 * MIB, SIZE)))

    def test_a_unit_that_two_gave_is_read_again(self) -> None:
        verdict = judge(SIZE, _givers("a", "a+b", "a", "a"), None, ["a", "b"])
        assert verdict.again == (Span(MIB, 2 * MIB),)

    def test_who_stood_and_is_still_wrong_lied(self) -> None:
        verdict = judge(SIZE, _givers("a", "a", "a", "a"), "a", ["b"])
        assert verdict == Verdict("a", "b", (Span(0, SIZE),))

    def test_both_lied_and_nobody_is_left(self) -> None:
        assert judge(SIZE, _givers("b", "b", "b", "b"), "b", []) == Verdict("b", None, ())

    def test_units_of_an_earlier_run_are_read_again_first(self) -> None:
        verdict = judge(SIZE, _givers(EARLIER, EARLIER, "a", "a"), None, ["a"])
        assert verdict == Verdict(None, "a", (Span(0, 2 * MIB),))

    def test_an_earlier_run_alone_is_nobody_to_blame(self) -> None:
        verdict = judge(SIZE, _givers(*[EARLIER] * 4), None, ["a"])
        assert verdict == Verdict(None, "a", (Span(0, SIZE),))

    def test_who_can_no_longer_be_asked_is_not_judged_alone(self) -> None:
        assert judge(SIZE, _givers("a", "a", "a", "a"), None, ["b"]) == Verdict(None, "b", (Span(0, SIZE),))


@pytest.mark.parametrize(
    ("faults", "liars", "error", "says"),
    [
        ({"hub": Broken("broke off")}, (), errors.Unreachable, "hub broke off"),
        ({}, (), errors.Unreachable, "nobody offers it"),
        ({"hub": Missing("404")}, (), errors.FileMissing, "no source has it"),
        ({"hub": Missing("404"), "b": Broken("reset")}, (), errors.Unreachable, "b reset; hub 404"),
        ({"hub": Denied("no")}, (), errors.AccessDenied, "hub refuses access"),
        ({"hub": Denied("no", gated=True), "b": Missing("404")}, (), errors.GatedRepo, "is gated"),
        ({"hub": Denied("no"), "b": Broken("reset")}, (), errors.AccessDenied, "(no)"),
        ({"hub": Misbehaved("portal")}, (), errors.Unreachable, "portal"),
        ({"hub": Missing("404")}, ("b",), errors.IntegrityFailure, "could not be verified"),
    ],
)
def test_no_source_left(
    faults: dict[str, SourceFault], liars: tuple[str, ...], error: type[errors.EdgecdnError], says: str
) -> None:
    found = no_source_left(MANIFEST, ENTRY, faults, dict.fromkeys(liars, "lied"), liars, "https://hub/org/name")
    assert type(found) is error
    assert says in found.message
    assert error is not errors.GatedRepo or "https://hub/org/name" in found.remedy


def test_our_own_error_explains_a_group_of_failures() -> None:
    own = errors.NoSpace("full", where="/cache")
    nested = BaseExceptionGroup("outer", [asyncio.CancelledError(), ExceptionGroup("inner", [OSError("x"), own])])
    assert most_telling(nested) is own
    other = OSError("y")
    assert most_telling(ExceptionGroup("g", [other])) is other
