"""Deliveries against a real hub: bytes before the end, one transfer for all, and nothing wrong, left or leaked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from edgecdn import verify
from edgecdn.cache import locks
from edgecdn.cache.inventory import take_inventory
from edgecdn.cache.safedir import SafeDir
from edgecdn.cache.store import open_repo
from edgecdn.control import Cancelled
from edgecdn.errors import AccessDenied, AgentNotRunning, FileMissing, IntegrityFailure, Unreachable
from edgecdn.events import BytesReceived, Event, Waiting
from edgecdn.pipeline import partials_dir
from edgecdn.sources.http import ByteClient
from edgecdn.upkeep.housekeeping import job_lock
from edgecdn_agent.deliver.clients import Clients
from edgecdn_agent.deliver.delivery import DeliveryState, Followed, Wanted
from tests.agent.delivering import LIMIT_S, Desk, desk, over, read, until
from tests.faults.conftest import _plain_client  # noqa: F401 - no token and no cache of whoever runs the tests
from tests.hub import Generated, TestHub, dry_up, make_repo, stall, status, wrong_bytes
from tests.hub.content import Content, chunks_of

MIB = 1 << 20
BIG = 24 * MIB
WEIGHTS, OTHER = Generated(7, BIG), Generated(8, 8 * MIB)
FILES: dict[str, Content] = {"config.json": b"{}", "m.safetensors": WEIGHTS, "n.safetensors": OTHER}
HALF = dry_up(5 << 18, route="cdn", path="m.safetensors")
"""Of the large file its first 1.25 MiB come, and the rest when the test lifts it."""

ONCE = 1.6 * BIG


def data_of(made: Generated) -> bytes:
    return b"".join(chunks_of(made))


async def wanted(made: Desk, path: str = "m.safetensors", model: str = "org/name") -> Wanted:
    manifest = await made.manifest(model)
    entry = next(entry for entry in manifest.files if str(entry.path) == path)
    return Wanted(manifest, entry, f"https://hub.example/{model}")


async def test_bytes_are_read_before_the_end_and_are_the_files(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(HALF)
        file = await wanted(made)
        async with made.deliveries.want(file) as got:
            await until(got, lambda: got.reach(0) > 0)
            assert made.deliveries.get(file.entry.digest) is got
            early = got.reach(0)
            assert read(got, 0, early) == data_of(WEIGHTS)[:early]
            assert early <= got.done_bytes < BIG
            assert got.reach(BIG - 1) == BIG - 1
            (info,) = made.deliveries.infos()
            assert (info.askers, info.state, info.total_bytes) == (1, "running", BIG)
            assert not made.blob(file).exists()
            hub.clear()
            await over(got)
            assert (got.state, got.mark, got.reach(0), got.done_bytes) == (DeliveryState.HERE, 0, BIG, BIG)
            assert read(got, 0, BIG) == made.link(file).read_bytes() == data_of(WEIGHTS)
        assert made.deliveries.get(file.entry.digest) is None
        assert made.published == [file.manifest.repo]
        folder = made.settings.cache_dir / "models--org--name"
        assert (folder / "trees" / f"{file.manifest.commit.hex}.json").exists()
        assert not list(folder.glob("refs/*"))


async def test_bytes_are_read_before_a_whole_unit_is_there(tmp_path: Path) -> None:
    """On a slow line that takes long. 10 kB come; the file is journaled by 64 KiB."""
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(dry_up(10_000, route="cdn", path="m.safetensors"))
        file = await wanted(made)
        async with made.deliveries.want(file) as got:
            await until(got, lambda: got.reach(0) == 10_000)
            assert read(got, 0, 10_000) == data_of(WEIGHTS)[:10_000]
            hub.clear()
            await over(got)
            assert (got.state, got.mark) == (DeliveryState.HERE, 0)
        assert made.blob(file).read_bytes() == data_of(WEIGHTS)


async def test_who_hurries_a_job_under_way_reads_bytes_before_a_whole_unit_too(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(dry_up(10_000, route="cdn", path="m.safetensors"))
        file = await wanted(made)
        job = asyncio.ensure_future(made.fetch("org/name"))
        async with asyncio.timeout(LIMIT_S):
            while not hub.stats.sent["org/name", "m.safetensors"]:
                await asyncio.sleep(0.01)
        async with made.deliveries.want(file) as got:
            await until(got, lambda: got.reach(0) == 10_000)
            hub.clear()
            await over(got)
            assert (got.state, got.mark) == (DeliveryState.HERE, 0)
        async with asyncio.timeout(LIMIT_S):
            await job
        assert made.blob(file).read_bytes() == data_of(WEIGHTS)


async def test_a_small_file_is_read_once_it_is_here(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        file = await wanted(made, "config.json")
        async with made.deliveries.want(file) as got:
            assert got.reach(0) == 0
            with pytest.raises(FileNotFoundError):
                got.open()
            await over(got)
            assert read(got, 0, 10) == b"{}"


async def test_all_who_want_it_share_one_transfer(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(HALF)
        file = await wanted(made)
        async with made.deliveries.want(file) as one:
            async with made.deliveries.want(file) as two:
                assert one is two
                assert made.deliveries.infos()[0].askers == 2
                await until(one, lambda: one.done_bytes > 0)
            hub.clear()
            await over(one)
        assert made.blob(file).read_bytes() == data_of(WEIGHTS)
        assert hub.stats.total < ONCE


async def test_nobody_waits_any_more_and_it_stops_keeping_what_is_there(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub, grace_s=0.05) as made:
        hub.inject(HALF)
        file = await wanted(made)
        async with made.deliveries.want(file) as got:
            await until(got, lambda: got.reach(0) > MIB)  # of which whole units are kept
        await over(got)
        assert got.state is DeliveryState.FAILED
        assert made.deliveries.infos() == ()
        assert len(made.partials()) == 1
        hub.clear()
        before = hub.stats.total
        async with made.deliveries.want(file) as again:
            await over(again)
            assert again.state is DeliveryState.HERE
        assert hub.stats.total - before < BIG
        assert made.blob(file).read_bytes() == data_of(WEIGHTS)


async def test_one_that_nobody_waits_for_can_be_stopped_at_once(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(HALF)
        file = await wanted(made)
        async with made.deliveries.want(file) as got:
            await until(got, lambda: got.done_bytes > MIB // 2)
            (info,) = made.deliveries.infos()
            assert info.title == f"org/name@{file.manifest.commit.hex[:12]} m.safetensors"
            assert made.deliveries.cancel(info.id) == Cancelled(cancelled=False, others=1, by_tools=True)
        assert made.deliveries.cancel("0123") is None
        assert made.deliveries.cancel(info.id) == Cancelled(cancelled=True, others=0)
        await over(got)
        assert made.deliveries.infos() == ()
        assert len(made.partials()) == 1


async def test_who_comes_back_within_the_grace_finds_it_going_on(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(HALF)
        file = await wanted(made)
        async with made.deliveries.want(file) as got:
            await until(got, lambda: got.done_bytes > 0)
        async with made.deliveries.want(file) as again:
            assert again is got
            hub.clear()
            await over(again)
            assert again.state is DeliveryState.HERE


async def test_who_comes_while_it_is_being_stopped_gets_the_file(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(HALF)
        file = await wanted(made)
        async with made.deliveries.want(file) as got:
            await until(got, lambda: got.done_bytes > 0)
            (info,) = made.deliveries.infos()
        assert made.deliveries.cancel(info.id) == Cancelled(cancelled=True, others=0)
        assert got.state is DeliveryState.ARRIVING  # it needs a while to end
        async with made.deliveries.want(file) as again:
            assert again is not got
            await over(got)
            hub.clear()
            await over(again)
            assert (got.state, again.state) == (DeliveryState.FAILED, DeliveryState.HERE)
        assert made.blob(file).read_bytes() == data_of(WEIGHTS)


@pytest.mark.parametrize("path", ["config.json", "m.safetensors"])
async def test_a_tool_that_has_the_file_locked_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """It waits for us: clients of hubs hold their lock on a file while they download it, also through the gateway."""
    monkeypatch.setattr(locks, "_CLIENT_WAIT_S", 10 * LIMIT_S)
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        file = await wanted(made, path)
        folder = SafeDir.at(made.settings.cache_dir / ".locks" / file.manifest.repo.folder, create=True)
        with folder:
            lock = locks.FileLock(folder, f"{file.entry.digest.hex}.lock")
            assert lock.try_acquire()
            async with made.deliveries.want(file) as got:
                await over(got)
                assert got.state is DeliveryState.HERE
            lock.release()


async def test_a_job_and_a_delivery_of_the_same_file_share_one_copy(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(HALF)
        file = await wanted(made)
        async with asyncio.TaskGroup() as group:
            job = group.create_task(made.fetch("org/name"))
            while (followed := made.deliveries.get(file.entry.digest)) is None or not followed.reach(0):
                await asyncio.sleep(0.01)
            assert followed.state is DeliveryState.ARRIVING
            async with made.deliveries.want(file) as got:
                await until(got, lambda: got.reach(0) > 0)
                assert read(got, 0, 1000) == data_of(WEIGHTS)[:1000]
                hub.clear()
                await over(got)
                assert (got.state, got.mark) == (DeliveryState.HERE, 0)
                assert followed.error is None
                assert followed.done_bytes == BIG
        assert job.result().files == 3
        assert hub.stats.total < ONCE + 8 * MIB
        assert made.blob(file).read_bytes() == data_of(WEIGHTS)


async def test_a_job_waits_for_what_a_delivery_brings_and_counts_it(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(HALF)
        file = await wanted(made)
        events: list[Event] = []
        waits = asyncio.Event()

        def heard(event: Event) -> None:
            events.append(event)
            if isinstance(event, Waiting):
                waits.set()

        async with made.deliveries.want(file) as got:
            await until(got, lambda: got.done_bytes > 0)
            async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
                job = group.create_task(made.fetch("org/name", heard))
                await waits.wait()
                assert made.blob(await wanted(made, "n.safetensors")).exists()
                hub.clear()
            await over(got)
        fetched = job.result()
        assert fetched.bytes_by_source["origin"] == 8 * MIB + 2
        assert sum(e.count for e in events if isinstance(e, BytesReceived)) == fetched.bytes_total == BIG + 8 * MIB + 2
        assert hub.stats.total < ONCE + 8 * MIB


async def test_who_takes_over_from_a_stopped_job_goes_on_with_its_bytes(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(HALF)
        file = await wanted(made)
        async with asyncio.timeout(LIMIT_S), made.deliveries.want(file) as got:
            job = asyncio.ensure_future(made.fetch("org/name"))  # either of both may be first
            await until(got, lambda: got.done_bytes > MIB // 2)
            job.cancel()
            await asyncio.wait([job])
            hub.clear()
            await over(got)
            assert (got.state, got.mark) == (DeliveryState.HERE, 0)
        assert made.blob(file).read_bytes() == data_of(WEIGHTS)
        assert hub.stats.total < ONCE + 8 * MIB


async def test_a_job_of_other_files_runs_beside_it(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(HALF)
        file = await wanted(made, "n.safetensors")
        async with asyncio.TaskGroup() as group:
            job = group.create_task(made.fetch("org/name", include=("m.safetensors",)))
            while made.deliveries.get((await wanted(made)).entry.digest) is None:
                await asyncio.sleep(0.01)
            async with made.deliveries.want(file) as got:
                await over(got)
                assert got.state is DeliveryState.HERE
            assert not job.done()
            hub.clear()
        assert job.result().files == 1


async def test_wrong_bytes_are_never_here(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(wrong_bytes(offset=20 * MIB, route="cdn"))
        file = await wanted(made)
        async with made.deliveries.want(file) as got:
            await over(got)
            assert isinstance(got.error, IntegrityFailure)
            assert got.mark > 0
            assert got.reach(0) == 0
        assert not made.blob(file).exists()
        assert not made.partials()
        hub.clear()
        assert isinstance(made.deliveries.failed(file.entry.digest), IntegrityFailure)
        before = hub.stats.total
        async with made.deliveries.want(file) as again:
            assert again.state is DeliveryState.FAILED
        assert hub.stats.total == before


async def test_one_that_lies_is_replaced_by_the_next(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with (
        TestHub([repo]) as hub,
        TestHub([repo]) as mirror,
        desk(tmp_path, hub, hub_endpoints=f"{hub.url},{mirror.url}") as made,
    ):
        hub.inject(wrong_bytes(route="cdn"))
        file = await wanted(made)
        async with made.deliveries.want(file) as got:
            await over(got)
            assert got.state is DeliveryState.HERE
            assert got.mark > 0
            assert read(got, 0, BIG) == data_of(WEIGHTS)
        assert made.deliveries.failed(file.entry.digest) is None


async def test_a_partial_file_that_is_deleted_begins_anew(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        hub.inject(HALF)
        file = await wanted(made)
        async with made.deliveries.want(file) as got:
            await until(got, lambda: got.reach(0) > 0)
            (partial,) = made.partials()
            partial.unlink()
            hub.clear()
            await over(got)
            assert got.state is DeliveryState.HERE
            assert got.mark > 0
            assert read(got, 0, BIG) == data_of(WEIGHTS)


async def test_what_stands_there_unproven_is_read_while_it_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        file = await wanted(made)
        made.blob(file).parent.mkdir(parents=True)
        made.blob(file).write_bytes(data_of(WEIGHTS))
        inode = made.blob(file).stat().st_ino
        go_on = _hold_hashing(monkeypatch)
        async with made.deliveries.want(file) as got:
            await until(got, lambda: got.reach(0) == BIG)
            assert got.state is DeliveryState.ARRIVING
            assert read(got, 5, 100) == data_of(WEIGHTS)[5:100]
            go_on()
            await over(got)
            assert (got.state, got.mark) == (DeliveryState.HERE, 0)
        assert made.link(file).stat().st_ino == inode
        assert hub.stats.total == 0


async def test_what_stands_there_and_is_wrong_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        file = await wanted(made)
        made.blob(file).parent.mkdir(parents=True)
        made.blob(file).write_bytes(b"x" * BIG)
        go_on = _hold_hashing(monkeypatch)
        async with made.deliveries.want(file) as got:
            await until(got, lambda: got.reach(0) == BIG)
            assert got.mark == 0
            go_on()
            await over(got)
            assert got.state is DeliveryState.HERE
            assert got.mark > 0
            assert read(got, 0, BIG) == data_of(WEIGHTS)
        assert len(list((made.settings.home / "quarantine").iterdir())) == 1


@pytest.mark.parametrize("path", ["config.json", "m.safetensors"])
async def test_a_file_that_another_program_puts_in_its_place_is_not_opened(tmp_path: Path, path: str) -> None:
    """Nobody has looked at it: not after the transfer, nor where it was here all the time."""
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        file = await wanted(made, path)
        async with made.deliveries.want(file) as got:
            followed = Followed(got._arrival, got._find)
            await over(got)
            proven = read(got, 0, file.entry.size)
        while not made.together.arrivals.is_empty:  # nothing is remembered of the transfer
            await asyncio.sleep(0)
        async with made.deliveries.want(file) as here:
            await over(here)
            assert (here.state, read(here, 0, file.entry.size)) == (DeliveryState.HERE, proven)
            foreign = made.blob(file).with_suffix(".0123abcd.incomplete")
            foreign.write_bytes(b"x" * file.entry.size)
            foreign.replace(made.blob(file))
            for delivery in (got, followed, here):
                with pytest.raises(FileNotFoundError):
                    delivery.open()


async def test_a_brought_file_is_known_without_the_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog that cannot be written only costs hashing."""
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        monkeypatch.setattr(made.catalog, "is_verified", lambda *_: False)
        file = await wanted(made)
        for _ in range(2):  # brought, then hashed where it stands
            async with made.deliveries.want(file) as got:
                await over(got)
                assert read(got, 0, BIG) == data_of(WEIGHTS)


async def test_who_reads_a_standing_file_is_told_that_another_was_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        file = await wanted(made)
        made.blob(file).parent.mkdir(parents=True)
        made.blob(file).write_bytes(b"x" * BIG)
        right = made.blob(file).with_suffix(".0123abcd.incomplete")
        right.write_bytes(data_of(WEIGHTS))

        def replaced_first(*given: object, **named: object) -> object:
            right.replace(made.blob(file))
            return take_inventory(*given, **named)  # type: ignore[arg-type]

        monkeypatch.setattr("edgecdn.pipeline.take_inventory", replaced_first)
        async with made.deliveries.want(file) as got:
            await over(got)
            assert (got.state, got.mark) == (DeliveryState.HERE, 1)
            assert read(got, 0, BIG) == data_of(WEIGHTS)
        assert hub.stats.total == 0


async def test_a_token_is_no_key_of_what_is_shared() -> None:
    made: list[str | None] = []

    class NoClient:
        async def close(self) -> None: ...

    def make(token: str | None, _hub: str) -> ByteClient:
        made.append(token)
        return NoClient()  # type: ignore[return-value]

    clients = Clients(make)
    for token in ("hf_secret", None, "hf_secret", "hf_other"):
        with clients.use(token, ""):
            pass
    assert made == ["hf_secret", None, "hf_other"]
    assert "hf_" not in str(clients._open.keys())


async def test_a_job_that_hashes_keeps_nobody_from_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        weights, other = await wanted(made), await wanted(made, "n.safetensors")
        made.blob(weights).parent.mkdir(parents=True)
        made.blob(weights).write_bytes(data_of(WEIGHTS))
        go_on = _hold_hashing(monkeypatch)
        async with asyncio.TaskGroup() as group:
            job = group.create_task(made.fetch("org/name"))
            while made.deliveries.get(weights.entry.digest) is None:
                await asyncio.sleep(0.01)
            async with made.deliveries.want(other) as got:
                await over(got)
                assert got.state is DeliveryState.HERE
            assert not job.done()
            go_on()
        assert job.result().files == 3


async def test_a_file_somebody_waits_for_comes_before_the_others_of_a_job(tmp_path: Path) -> None:
    many: dict[str, Content] = {f"{i:02}.bin": Generated(i, 2 * MIB) for i in range(60)}
    async with TestHub([make_repo("org/many", many)]) as hub, desk(tmp_path, hub, fetch_connections="2") as made:
        hub.inject(stall(0, route="cdn", path="*/0*"), stall(0, route="cdn", path="0*"))
        file = await wanted(made, "59.bin", "org/many")
        async with asyncio.TaskGroup() as group:
            job = group.create_task(made.fetch("org/many", include=("*.bin",)))
            while made.deliveries.get((await wanted(made, "00.bin", "org/many")).entry.digest) is None:
                await asyncio.sleep(0.01)
            async with made.deliveries.want(file) as got:
                await _says(made, "Another fetch")
                hub.clear()
                await over(got)
                here = len([p for p in made.blob(file).parent.iterdir() if len(p.name) == 64])
            job_was_done = job.done()
        assert not job_was_done
        assert here < 30


async def test_a_token_goes_only_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_, closed = make_repo("org/open", FILES), make_repo("org/closed", FILES)
    closed.private = True
    callers, own = "hf_callers0000000000", "hf_ofTheAgent00000000"
    tokens = {callers: {"org/closed"}, own: {"org/closed"}}
    async with TestHub([open_, closed], tokens=tokens) as hub, desk(tmp_path, hub) as made:
        monkeypatch.setenv("HF_TOKEN", own)
        public, private = await wanted(made, model="org/open"), await wanted(made, model="org/closed")
        hub.stats.reset()
        async with made.deliveries.want(replace(public, token=callers)) as got:
            await over(got)
            assert got.state is DeliveryState.HERE
        assert not [seen for seen in hub.stats.requests if seen.authorization]
        made.blob(public).unlink()
        async with made.deliveries.want(private) as got:
            await over(got)
            assert isinstance(got.error, AccessDenied | FileMissing)
        assert not [seen for seen in hub.stats.requests if seen.authorization]
        async with made.deliveries.want(replace(private, token=callers)) as got:
            await over(got)
            assert got.state is DeliveryState.HERE
        asked = {(seen.listener, seen.authorization) for seen in hub.stats.requests if seen.authorization}
        assert asked == {("hub", f"Bearer {callers}")}
        assert callers not in repr(private) + repr(made.deliveries.infos())


async def test_a_caller_whose_token_is_refused_costs_others_nothing(tmp_path: Path) -> None:
    closed = make_repo("org/closed", FILES)
    closed.private = True
    good, bad = "hf_good0000000000000", "hf_bad00000000000000"
    async with TestHub([closed], tokens={good: {"org/closed"}, bad: set()}) as hub, desk(tmp_path, hub) as made:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_TOKEN", good)
            file = await wanted(made, model="org/closed")
        async with (
            made.deliveries.want(replace(file, token=bad)) as one,
            made.deliveries.want(replace(file, token=good)) as two,
        ):
            assert one is two
            await over(two)
            assert two.state is DeliveryState.HERE


async def test_no_hub_answers_and_the_next_try_may_succeed(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub, fetch_patience="1s") as made:
        file, small = await wanted(made), await wanted(made, "config.json")
        await made.rule.refresh(file.manifest.repo)
        hub.inject(status(503, path="m.safetensors"))
        async with made.deliveries.want(file) as got, made.deliveries.want(small) as other:
            await over(other)
            assert other.state is DeliveryState.HERE
            await over(got)
            assert isinstance(got.error, Unreachable)
        assert made.deliveries.failed(file.entry.digest) is None
        hub.clear()
        async with made.deliveries.want(file) as got:
            await over(got)
            assert got.state is DeliveryState.HERE


async def test_modelscope_is_not_asked_for_its_listing_for_each_file(tmp_path: Path) -> None:
    repo = make_repo("org/name", FILES)
    async with (
        TestHub([repo], modelscope=True) as hub,
        desk(tmp_path, hub, hub_modelscope=hub.modelscope_url) as made,
    ):
        for path in FILES:
            async with made.deliveries.want(await wanted(made, path)) as got:
                await over(got)
                assert got.state is DeliveryState.HERE
        assert len(hub.stats.asked("GET", "/repo/files")) == 1


async def test_stopping_leaves_no_lock_no_claim_and_no_descriptor(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub:
        before = _open_files(tmp_path)
        async with desk(tmp_path, hub) as made:
            hub.inject(HALF)
            file, small = await wanted(made), await wanted(made, "config.json")
            async with made.deliveries.want(small) as got:
                await over(got)
            async with made.deliveries.want(file) as got:
                await until(got, lambda: got.reach(0) > 0)
                assert not _is_free(made, file)
                stays = got
        assert stays.state is DeliveryState.FAILED
        assert _is_free(made, file)
        assert _open_files(tmp_path) == before
        with pytest.raises(AgentNotRunning):
            async with made.deliveries.want(file):
                pass


async def test_another_process_keeps_the_repo_from_us(tmp_path: Path) -> None:
    async with TestHub([make_repo("org/name", FILES)]) as hub, desk(tmp_path, hub) as made:
        file = await wanted(made, "config.json")
        with (
            open_repo(made.settings.cache_dir, file.manifest.repo, create=True) as store,
            partials_dir(made.settings, store) as state,
        ):
            async with made.deliveries.want(file) as got:
                with job_lock(state) as held:
                    assert held
                    async with asyncio.timeout(LIMIT_S):
                        while made.deliveries.infos()[0].state != "running":
                            await asyncio.sleep(0.01)
                    assert made.deliveries.get(file.entry.digest) is got
                await over(got)
                assert got.state is DeliveryState.HERE


def _hold_hashing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """No file is hashed before the returned function is called."""
    may, real = threading.Event(), verify.hash_fd

    def hash_fd(*given: object) -> bool:
        assert may.wait(LIMIT_S)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("edgecdn.cache.inventory.hash_fd", hash_fd)
    return may.set


async def _says(made: Desk, text: str) -> None:
    """The one delivery waits, and tells why; that is no news of its file."""
    async with asyncio.timeout(LIMIT_S):
        while text not in made.deliveries.infos()[0].detail:
            await asyncio.sleep(0.01)


def _is_free(made: Desk, file: Wanted) -> bool:
    with (
        open_repo(made.settings.cache_dir, file.manifest.repo) as store,
        partials_dir(made.settings, store) as state,
        job_lock(state) as held,
    ):
        return held


def _open_files(below: Path) -> list[str]:
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(str(fd.readlink()))
    return sorted(target for target in found if target.startswith(str(below)))
