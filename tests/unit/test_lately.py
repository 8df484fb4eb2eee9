"""What is remembered for a while: not longer, and not without end."""

from __future__ import annotations

import pytest

from edgecdn.lately import Lately
from edgecdn.sources.http import RememberingResolver


def test_it_is_known_as_long_as_said() -> None:
    now = 0.0
    lately: Lately[str] = Lately(10.0, lambda: now)
    lately.put("a", "one")
    now = 9.0
    lately.put("b", "two")
    assert (lately.get("a"), lately.get("b"), lately.get("c")) == ("one", "two", None)
    now = 10.0
    assert (lately.get("a"), lately.get("b"), len(lately)) == (None, "two", 1)
    lately.pop("b")
    assert lately.get("b") is None


def test_of_too_many_the_oldest_are_forgotten() -> None:
    lately: Lately[int] = Lately(10.0, lambda: 0.0, most=3)
    for n in range(5):
        lately.put(n, n)
    lately.put(2, 2)
    lately.put(5, 5)
    assert [lately.get(n) for n in range(6)] == [None, None, 2, None, 4, 5]


async def test_not_all_names_that_were_ever_looked_up_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver, asked = RememberingResolver(), list[str]()

    async def look_up(host: str, _port: int) -> list[object]:
        asked.append(host)
        return []

    monkeypatch.setattr(resolver, "_look_up", look_up)
    for n in (*range(1000), 999):
        await resolver.resolve(f"cdn-{n}.example", 443)
    assert len(asked) == 1000
    assert len(resolver._known) <= 256
