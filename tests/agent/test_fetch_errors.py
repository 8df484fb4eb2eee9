"""What goes wrong in a fetch that the agent runs is told as if the command had run it: same words, same exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.agent.agents import lab
from tests.agent.commands import jobs, ran, result, told
from tests.faults.conftest import _plain_client, mounts  # noqa: F401 - fixtures
from tests.faults.machine import TOKEN
from tests.faults.mounts import Mounts
from tests.hub import Generated, HubRepo, TestHub, make_repo, wrong_bytes
from tests.hub.content import chunks_of

pytestmark = pytest.mark.timeout(180)

BIG = Generated(3, 4 << 20)


def _repos() -> Iterator[HubRepo]:
    yield make_repo("org/name", {"config.json": b"{}", "m.safetensors": BIG})
    yield make_repo("org/rotten", {"m.safetensors": Generated(4, 2 << 20)})
    yield make_repo("org/gated", {"config.json": b"{}", "m.safetensors": BIG}, gated="manual")
    yield make_repo("org/private", {"config.json": b"{}"}, private=True)


CASES = {
    "none": (3, ("organ/name",), "Did you mean org/name?"),
    "revision": (3, ("org/name@nothing",), "has no branch, tag or commit 'nothing'"),
    "file": (3, ("org/name", "--include", "confg.json"), "Did you mean config.json?"),
    "gated": (4, ("org/gated",), "its licence must be accepted"),
    "private": (3, ("org/private",), "if the repo is private, log in"),
    "rotten": (5, ("org/rotten",), "m.safetensors could not be verified"),
    "folder": (2, ("org/name", "--local-dir", "{base}/cache/x"), "Choose a folder of its own"),
}


async def test_errors_are_the_same(tmp_path: Path) -> None:
    async with TestHub(_repos(), tokens=[TOKEN]) as hub, lab(tmp_path, hub, fetch_patience="2s") as made:
        hub.inject(wrong_bytes(path="org/rotten/*", route="cdn"))
        one, alone = await made.agent("one"), made.machine("alone")
        for code, arguments, words in CASES.values():
            typed = [[part.format(base=m.base) for part in arguments] for m in (one, alone)]
            done, expected = await asyncio.gather(ran(one, "fetch", *typed[0]), ran(alone, "fetch", *typed[1]))
            assert told(done, one) == told(expected, alone)
            assert (done.code, done.out) == (code, "")
            assert words in done.err
        assert [job["state"] for job in await jobs(one)] == ["failed"] * len(CASES)

        await hub.go_down("hub")
        done, expected = await asyncio.gather(*(ran(m, "fetch", "org/name") for m in (one, alone)))
        assert told(done, one) == told(expected, alone)
        assert done.code == 6
        assert "goes on where it stopped" in done.err


async def test_23_a_full_disk_is_the_same(tmp_path: Path, mounts: Mounts) -> None:  # noqa: F811 - the fixture
    async with TestHub(_repos()) as hub, lab(tmp_path, hub) as made:
        one, alone = made.machine("one"), made.machine("alone")
        for machine in (one, alone):
            mounts.tmpfs(machine.cache, "size=8m")
        await one.start_agent()
        done, expected = await asyncio.gather(*(ran(m, "fetch", "org/name") for m in (one, alone)))
        assert told(done, one) == told(expected, alone)
        assert done.code == 7
        assert len(await jobs(one)) == 1
        await one.stop_agent()


async def test_a_gated_repo_with_the_agents_token_or_the_commands_own(tmp_path: Path) -> None:
    async with TestHub(_repos(), tokens=[TOKEN]) as hub, lab(tmp_path, hub) as made:
        knows, asks = made.machine("knows"), made.machine("asks")
        token_file = knows.base / "user/.cache/huggingface/token"  # as `hf auth login` leaves it
        token_file.parent.mkdir(parents=True)
        token_file.write_text(TOKEN)
        await knows.start_agent()
        await asks.start_agent()
        given = result(await ran(knows, "fetch", "org/gated", "--json"))
        own, private = [await ran(asks, "fetch", f"org/{name}", HF_TOKEN=TOKEN) for name in ("gated", "private")]
        assert (own.code, private.code) == (0, 0)
        assert "tries with the HF_TOKEN it was given" in own.err
        assert given["bytes_total"] == (4 << 20) + 2
        assert [job["state"] for job in await jobs(asks)] == ["failed", "failed"]
        wrong = await ran(asks, "fetch", "org/gated", HF_TOKEN="hf_wrong")
        assert wrong.code in (0, 4)  # all of it is here by now; the hub may still refuse the question
        assert await knows.state(sha256(b"".join(chunks_of(BIG))).hexdigest()) is None, "what is gated is not shared"
