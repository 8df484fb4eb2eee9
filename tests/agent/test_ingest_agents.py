"""Agents that want the same at once: it comes over the line once, whatever happens to one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import EdgecdnError
from edgecdn.pipeline import Fetched
from edgecdn_agent.ingest.world import rank_of
from tests.agent.agents import Agent, AgentLab, eventually, lab
from tests.faults.machine import contents, files_in
from tests.hub import Generated, HubRepo, TestHub, make_repo, slow_total, stall, wrong_bytes
from tests.hub.content import Content

pytestmark = pytest.mark.timeout(240)

MIB = 1 << 20
NAME = "model.safetensors"
SIZE = 32 * MIB
FILES: dict[str, Content] = {NAME: Generated(11, SIZE), "config.json": b"{}"}

ONCE = 1.02 * SIZE + 8 * MIB
"""In small labs and files what is in flight when somebody is killed, or comes, counts much."""


async def _met(made: AgentLab, *agents: Agent) -> None:
    for agent in agents:
        await agent.knows(len(made.agents) - 1)


async def _fetched(agents: Sequence[Agent]) -> list[Fetched]:
    return list(await asyncio.gather(*(agent.fetch_here("org/name") for agent in agents)))


def _right(repo: HubRepo, fetched: Sequence[Fetched]) -> None:
    for done in fetched:
        assert files_in(str(done.path)) == contents(repo)


async def _has(agent: Agent, count: int) -> None:
    """Wait until its partial file has so many bytes."""

    async def so() -> bool:
        return sum(path.stat().st_blocks * 512 for path in agent.cache.rglob("*.incomplete")) >= count

    await eventually(so, 60, f"{agent.name} has {count} bytes")


async def _coordinator(repo: HubRepo, agents: Sequence[Agent]) -> Agent:
    digest = Digest(DigestKind.SHA256, repo.commits[repo.main].files[NAME].sha256)
    ids = {agent.name: (await agent.hello()).id for agent in agents}
    return min(agents, key=lambda agent: rank_of(digest, ids[agent.name]))


async def test_it_comes_over_the_line_once(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        agents = [await made.agent(f"agent{number}") for number in range(4)]
        await _met(made, *agents)
        hub.inject(slow_total(12 * MIB, route="cdn"))
        hub.stats.reset()
        fetched = await _fetched(agents)
        _right(repo, fetched)
        assert hub.stats.total <= 1.02 * SIZE + MIB
        shares = [done.bytes_by_source["origin"] for done in fetched]
        assert max(shares) < SIZE, "they shared the work"


async def test_who_is_alone_is_joined(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        agents = [await made.agent(f"agent{number}") for number in range(3)]
        await _met(made, *agents)
        hub.inject(slow_total(8 * MIB, route="cdn"))
        hub.stats.reset()
        first = asyncio.create_task(agents[0].fetch_here("org/name"))
        await _has(agents[0], 4 * MIB)
        fetched = [*await _fetched(agents[1:]), await first]
        _right(repo, fetched)
        assert hub.stats.total <= ONCE
        assert fetched[0].bytes_by_source["lan"] > SIZE / 4


@pytest.mark.parametrize("which", ["coordinator", "other"])
async def test_one_is_killed(tmp_path: Path, which: str) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        agents = [await made.agent(f"agent{number}") for number in range(4)]
        await _met(made, *agents)
        hub.inject(slow_total(8 * MIB, route="cdn"))
        hub.stats.reset()
        coordinator = await _coordinator(repo, agents)
        others = [agent for agent in agents if agent is not coordinator]
        victim = coordinator if which == "coordinator" else others.pop()
        left = [agent for agent in agents if agent is not victim]
        lost = asyncio.create_task(victim.fetch_here("org/name"))
        running = asyncio.create_task(_fetched(left))
        await _has(left[0], SIZE // 3)
        victim.kill_agent()
        _right(repo, await running)
        with suppress(EdgecdnError):
            await lost
        assert hub.stats.total <= ONCE


async def test_all_but_one_are_killed(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        one, *others = [await made.agent(f"agent{number}") for number in range(3)]
        await _met(made, one, *others)
        hub.inject(slow_total(8 * MIB, route="cdn"))
        hub.stats.reset()
        lost = asyncio.gather(*(agent.fetch_here("org/name") for agent in others), return_exceptions=True)
        running = asyncio.create_task(one.fetch_here("org/name"))
        await _has(one, SIZE // 3)
        for agent in others:
            agent.kill_agent()
        _right(repo, [await running])
        await lost
        assert hub.stats.total <= ONCE


async def test_one_lies(tmp_path: Path) -> None:
    """What it says to have read from its line is not what theirs gives: it is found, left, and banned."""
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, TestHub([repo]) as liars, lab(tmp_path, hub) as made:
        good = [await made.agent(f"agent{number}") for number in range(3)]
        liar = await made.agent("liar", liars)
        await _met(made, *good, liar)
        hub.inject(slow_total(8 * MIB, route="cdn"))
        liars.inject(wrong_bytes(route="cdn"), slow_total(3 * MIB, route="cdn"))
        hub.stats.reset()
        lies = asyncio.create_task(liar.fetch_here("org/name"))
        _right(repo, await _fetched(good))
        assert hub.stats.total <= 1.2 * SIZE
        assert any("peer banned" in agent.log for agent in good)
        for agent in good:
            assert not any(f"banned name={other.name}" in agent.log for other in good)
        lies.cancel()
        with suppress(EdgecdnError, asyncio.CancelledError):
            await lies


async def test_the_hub_stalls_for_one(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, TestHub([repo]) as other, lab(tmp_path, hub) as made:
        good = [await made.agent(f"agent{number}") for number in range(3)]
        stalled = await made.agent("stalled", other)
        await _met(made, *good, stalled)
        hub.inject(slow_total(8 * MIB, route="cdn"))
        other.inject(stall(MIB // 2, route="cdn"))
        hub.stats.reset()
        _right(repo, await _fetched([*good, stalled]))
        assert hub.stats.total + other.stats.total <= ONCE


async def test_one_holder_and_several_takers(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        holder = await made.agent("holder", limits_upload="12MB/s")
        await holder.fetch_here("org/name")
        await holder.gives(repo.commits[repo.main].files[NAME].sha256)
        takers = [await made.agent(f"taker{number}") for number in range(3)]
        await _met(made, holder, *takers)
        hub.stats.reset()
        _right(repo, await _fetched(takers))
        assert not hub.stats.total
        traffic = sum(job["bytes_by_source"].get("lan", 0) for job in await holder.get("/edgecdn/v1/jobs"))
        assert not traffic


async def test_what_may_not_be_shared_each_fetches_alone(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub, share_deny="org/*") as made:
        agents = [await made.agent(f"agent{number}") for number in range(2)]
        await _met(made, *agents)
        hub.stats.reset()
        fetched = await _fetched(agents)
        _right(repo, fetched)
        assert all(done.bytes_by_source["lan"] == 0 for done in fetched)
        assert hub.stats.total >= 2 * SIZE
