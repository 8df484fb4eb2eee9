"""Rows 50, 51, 55 and 63: wrong bytes, wrong lengths, wrong commits; nothing of them is ever published."""

from __future__ import annotations

import asyncio

import pytest

from edgecdn.errors import EdgecdnError, IntegrityFailure
from edgecdn.fileset import FileSet
from tests.faults.machine import Machine, contents, files_in
from tests.hub import (
    Fault,
    Generated,
    Kind,
    TestHub,
    close_early,
    make_repo,
    slow_per_connection,
    slow_total,
    wrong_bytes,
)

REPO = make_repo("org/name", {"config.json": b'{"a": 1}', "m.safetensors": Generated(1, 8 << 20)})
BIG = "m.safetensors"
FILES = {"lfs": "m.safetensors", "small": "config.json"}


def _host(hub: TestHub) -> str:
    return hub.url.removeprefix("http://")


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
async def test_50_wrong_bytes_from_the_only_hub(machine: Machine, path: str) -> None:
    async with TestHub([REPO]) as hub:
        hub.inject(wrong_bytes(offset=3, path=path))
        ran = await machine.run("fetch", "org/name", hubs=(hub,))
        assert ran.code == 5
        assert path in ran.err
        assert _host(hub) in ran.err
        assert ran.out == ""
        assert hub.stats.sent["org/name", path] <= 2.1 * REPO.commits[REPO.main].files[path].size
    assert REPO.commits[REPO.main].files[path].etag not in [blob.name for blob in machine.blobs()]
    assert machine.ref() is None


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
@pytest.mark.parametrize("liar", [0, 1])
@pytest.mark.parametrize("offset", [None, 5 << 20])
async def test_50_one_of_two_lies(machine: Machine, path: str, liar: int, offset: int | None) -> None:
    if path == FILES["small"]:
        offset = 3 if offset is not None else None
    async with TestHub([REPO]) as one, TestHub([REPO]) as two:
        hubs = (one, two)
        for hub in hubs:
            hub.inject(slow_per_connection(10e6, path=BIG))  # slow enough that both give some of it
        hubs[liar].inject(wrong_bytes(offset=offset, path=path))
        fetched = await machine.fetch("org/name", *hubs)
        assert one.stats.total + two.stats.total <= 2.8 * fetched.bytes_total  # a copy for each that stands, and tails
    assert files_in(fetched.path) == contents(REPO)
    if "wrong bytes" in machine.said:  # it may never have been asked for the bytes it lies about
        assert f"{_host(hubs[liar])} gave wrong bytes for {path}" in machine.said
        assert f"{_host(hubs[1 - liar])} gave wrong bytes" not in machine.said


async def test_50_counts_add_up_after_a_lie(machine: Machine) -> None:
    async with TestHub([REPO]) as liar, TestHub([REPO]) as good:
        liar.inject(wrong_bytes(path=FILES["small"]))
        await good.go_down("hub")
        job = asyncio.create_task(machine.fetch("org/name", liar, good, wanted=FileSet(("config.json",))))
        async with asyncio.timeout(20):
            while not liar.stats.total:
                await asyncio.sleep(0.01)
        await good.come_back("hub")
        fetched = await job
    assert sum(fetched.bytes_by_source.values()) == fetched.bytes_total


async def test_50_the_liar_is_named_at_the_command_line(machine: Machine) -> None:
    async with TestHub([REPO]) as liar, TestHub([REPO]) as good:
        for hub in (liar, good):
            hub.inject(slow_per_connection(4e6, path=BIG))
        liar.inject(wrong_bytes(path=BIG))
        ran = await machine.run("fetch", "org/name", "--quiet", hubs=(liar, good))
    assert ran.code == 0
    assert f"{_host(liar)} gave wrong bytes for {BIG}" in ran.err
    assert files_in(ran.out.splitlines()[-1]) == contents(REPO)


async def test_50_both_lie(machine: Machine) -> None:
    async with TestHub([REPO]) as one, TestHub([REPO]) as two:
        for hub in (one, two):
            hub.inject(slow_per_connection(10e6, path=BIG), wrong_bytes(path=BIG))
        with pytest.raises(IntegrityFailure) as caught:
            await machine.fetch("org/name", one, two)
    assert caught.value.exit_code == 5
    assert _host(one) in str(caught.value)
    assert _host(two) in str(caught.value)
    assert BIG in str(caught.value)
    assert machine.ref() is None


async def test_50_partial_file_damaged_between_runs(machine: Machine) -> None:
    async with TestHub([REPO], faults=[slow_total(10e6)]) as hub:
        enough = asyncio.Event()
        job = asyncio.create_task(
            machine.fetch("org/name", hub, listener=lambda _: enough.set() if machine.received > 4 << 20 else None)
        )
        await enough.wait()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        hub.clear()
        [partial] = machine.partials()
        data = bytearray(partial.read_bytes())
        data[:4096] = bytes(byte ^ 0xFF for byte in data[:4096])
        with partial.open("r+b") as file:
            file.write(data)
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == contents(REPO)
    assert "wrong bytes" not in machine.said


WRONG = {
    "longer": Fault(Kind.LONG_BODY, delta=7),
    "file longer": Fault(Kind.WRONG_LENGTH, delta=7),
    "file shorter": Fault(Kind.WRONG_LENGTH, delta=-7),
    "shorter": close_early(after_bytes=5),
    "gzip": Fault(Kind.GZIP),
    "wrong range": Fault(Kind.WRONG_CONTENT_RANGE, delta=1),
    "ignored range": Fault(Kind.IGNORE_RANGE),
    "no length": Fault(Kind.NO_CONTENT_LENGTH),
    "other etag": Fault(Kind.WRONG_ETAG),
}


@pytest.mark.parametrize("fault", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("cdn", [True, False], ids=["cdn", "direct"])
async def test_51_wrong_bodies(machine: Machine, fault: Fault, cdn: bool) -> None:
    async with TestHub([REPO], cdn=cdn, faults=[fault]) as bad, TestHub([REPO]) as good:
        good.inject(slow_total(20e6))
        async with asyncio.timeout(30):
            fetched = await machine.fetch("org/name", bad, good)
    assert files_in(fetched.path) == contents(REPO)
    assert sum(fetched.bytes_by_source.values()) == fetched.bytes_total


@pytest.mark.parametrize("name", ["ignored range", "no length"])
async def test_51_odd_but_usable_when_it_is_the_only_hub(machine: Machine, name: str) -> None:
    async with TestHub([REPO], faults=[WRONG[name]]) as hub:
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == contents(REPO)


@pytest.mark.parametrize("name", ["longer", "file longer", "file shorter", "gzip", "wrong range", "other etag"])
async def test_51_wrong_bodies_from_the_only_hub(machine: Machine, name: str) -> None:
    async with TestHub([REPO], faults=[WRONG[name]]) as hub:
        with pytest.raises(EdgecdnError) as caught:
            await machine.fetch("org/name", hub, fetch_patience="3s")
    assert caught.value.exit_code in (3, 5, 6)
    assert machine.blobs() == [] or name == "wrong range"  # a file of one request needs no range
    assert machine.ref() is None


async def test_55_mirror_answers_for_another_commit(machine: Machine) -> None:
    repo = make_repo(
        "org/name", {"config.json": b'{"a": 1}', BIG: Generated(1, 24 << 20)}
    )  # enough for both to be asked
    mixed = make_repo("org/name", {"config.json": b'{"a": 2}', BIG: Generated(9, 24 << 20)})
    mixed.commits[repo.main] = mixed.commits[mixed.main]
    async with TestHub([repo]) as origin, TestHub([mixed]) as mirror:
        fetched = await machine.fetch("org/name", origin, mirror)
        assert mirror.stats.asked(contains="/resolve/")
    assert files_in(fetched.path) == contents(repo)
    assert fetched.bytes_by_source["mirror"] == 0
    assert fetched.commit == repo.main


async def test_55_only_hub_answers_for_another_commit(machine: Machine) -> None:
    async with TestHub([REPO]) as hub:
        hub.inject(Fault(Kind.STATUS, status=200, headers={"X-Repo-Commit": "e" * 40}, text="x" * 8, route="resolve"))
        with pytest.raises(EdgecdnError, match="answers for commit eeeeeeeeeeee") as caught:
            await machine.fetch("org/name", hub, fetch_patience="3s")
    assert caught.value.exit_code in (3, 5)
    assert machine.blobs() == []
    assert machine.ref() is None


async def test_63_integrity_fails_closed(machine: Machine) -> None:
    old = make_repo("org/name", {"config.json": b'{"a": 0}'})
    async with TestHub([old]) as hub:
        await machine.fetch("org/name", hub)
        before = old.main
        old.add_commit({BIG: Generated(1, 8 << 20)})
        hub.inject(wrong_bytes(path=BIG))
        with pytest.raises(IntegrityFailure):
            await machine.fetch("org/name", hub)
        assert machine.ref() == before
        found = machine.offline()
        assert found is not None
        assert files_in(found) == {"config.json": b'{"a": 0}'}
        assert machine.offline(revision=old.main) is None
        assert machine.partials() == []  # wrong bytes are not kept for the next run
        hub.clear()
        fetched = await machine.fetch("org/name", hub)
    assert files_in(fetched.path) == contents(old)
