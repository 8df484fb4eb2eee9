"""Takers that come and go while others take: from peers by HTTP to the swarm, and one blob for two repos at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from edgecdn.events import BytesDiscarded, BytesReceived, Kind
from tests.agent.agents import Agent, AgentLab, eventually, lab
from tests.faults.machine import contents, files_in
from tests.hub import Generated, HubRepo, TestHub, make_repo

MIB = 1 << 20
SIZE = 24 * MIB
BIG = "m.safetensors"
SWARM = "peers (swarm)"


def _received(agent: Agent, source: str = "") -> int:
    """Bytes it took from peers; from one source, if it is named."""
    return sum(
        event.count
        for event in agent.events
        if isinstance(event, BytesReceived) and event.kind is Kind.LAN and source in ("", event.source)
    )


def _discarded(agent: Agent) -> int:
    return sum(event.count for event in agent.events if isinstance(event, BytesDiscarded))


async def _gave(agent: Agent) -> int:
    """Bytes it gave to peers since it started, by HTTP and swarm."""
    url = f"http://{agent.listener('local')}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    (line,) = [line for line in text.splitlines() if line.startswith("edgecdn_sent_bytes_total ")]
    return int(float(line.split()[1]))


async def _lone_then_joined(made: AgentLab, repo: HubRepo, hub: TestHub, *holders: Agent) -> tuple[Agent, Agent]:
    """Two takers, the second one when the first has some of it: what it has is kept, what it lacks they share."""
    digest = repo.commits[repo.main].files[BIG].sha256
    first, second = await made.agent("first"), await made.agent("second")
    await asyncio.gather(first.knows(len(made.agents) - 1), second.knows(len(made.agents) - 1))
    hub.stats.reset()
    before = sum([await _gave(holder) for holder in holders])
    lone = asyncio.create_task(first.fetch_here("org/name"))

    async def has_some() -> bool:
        return _received(first) > SIZE // 6

    await eventually(has_some, what="a part is there")
    assert _received(first, SWARM) == 0, "alone, it reads by HTTP"
    fetched = await asyncio.gather(lone, second.fetch_here("org/name"))
    for one in fetched:
        assert files_in(one.path) == contents(repo)
    assert hub.stats.total == 0
    for agent in (first, second):
        assert _received(agent) <= 1.1 * SIZE
        assert _discarded(agent) <= 0.1 * SIZE
    assert sum([await _gave(holder) for holder in holders]) - before < 1.9 * SIZE
    assert await _gave(first) + await _gave(second) > 0.1 * SIZE, "they give to each other"
    await asyncio.gather(first.gives(digest), second.gives(digest))
    return first, second


async def test_a_lone_taker_of_several_holders_that_is_joined_goes_on_in_the_swarm(tmp_path: Path) -> None:
    repo = make_repo("org/name", {BIG: Generated(50, SIZE)})
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        holders = [await made.agent(name, limits_upload="4MB/s") for name in ("holder", "another")]
        for holder in holders:
            await holder.fetch_here("org/name")
            await holder.gives(repo.commits[repo.main].files[BIG].sha256)
        first, _ = await _lone_then_joined(made, repo, hub, *holders)
        assert _received(first, SWARM) > 0


async def test_a_lone_taker_of_one_holder_that_is_joined_goes_on_together(tmp_path: Path) -> None:
    repo = make_repo("org/name", {BIG: Generated(50, SIZE)})
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        holder = await made.agent("holder", limits_upload="8MB/s")
        await holder.fetch_here("org/name")
        await holder.gives(repo.commits[repo.main].files[BIG].sha256)
        first, second = await _lone_then_joined(made, repo, hub, holder)
        assert _received(first, SWARM) == _received(second, SWARM) == 0


async def test_one_blob_for_two_repos_at_once(tmp_path: Path) -> None:
    data = Generated(51, SIZE)
    repos = [make_repo(name, {BIG: data, "config.json": name.encode()}) for name in ("org/one", "org/two")]
    digest = repos[0].commits[repos[0].main].files[BIG].sha256
    async with TestHub(repos) as hub, lab(tmp_path, hub) as made:
        holder = await made.agent("holder", limits_upload="16MB/s")
        await holder.fetch_here("org/one")
        await holder.gives(digest)
        other, taker = await made.agent("other"), await made.agent("taker")
        await asyncio.gather(other.knows(2), taker.knows(2))
        fetched = await asyncio.gather(
            other.fetch_here("org/one"), taker.fetch_here("org/one"), taker.fetch_here("org/two")
        )
        for one, repo in zip(fetched, (repos[0], *repos), strict=True):
            assert files_in(one.path) == contents(repo)
        assert taker.partials() == []
        await taker.gives(digest)
