"""Jobs: one per manifest, none forgotten, slow readers, cancellation at every wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edgecdn.control import FetchRequest
from edgecdn.errors import AgentNotRunning, EdgecdnError, Interrupted, RepoMissing, Unreachable
from edgecdn.events import BlobPublished, BytesDiscarded, BytesReceived, Event, FetchPlanned, Kind, Note, Waiting
from edgecdn.pipeline import Fetched
from edgecdn_agent.jobs.askers import Asker, Outcome
from edgecdn_agent.jobs.book import Jobs
from edgecdn_agent.jobs.store import JobStore, StoredJob
from edgecdn_agent.traffic import Traffic
from tests.agent.standin import ScriptedRunner, fetched


@asynccontextmanager
async def serving(jobs: Jobs) -> AsyncIterator[Jobs]:
    """Run them until the end of the block; then no task is left."""
    before = asyncio.all_tasks()
    running = asyncio.create_task(jobs.run())
    await asyncio.wait_for(jobs.ready.wait(), 5)
    try:
        yield jobs
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert asyncio.all_tasks() == before


def made(home: Path, **more: int) -> tuple[Jobs, ScriptedRunner]:
    home.mkdir(parents=True, exist_ok=True)
    runner = ScriptedRunner(home)
    return Jobs(runner, JobStore(home), Traffic(), retry_s=(0.05, 0.1), **more), runner


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


async def ended(asker: Asker, events: list[Event] | None = None) -> Outcome:
    """Read to the end."""
    async with asyncio.timeout(20):
        while True:
            came = await asker.take(1)
            if events is not None:
                events += came
            if asker.outcome is not None:
                return asker.outcome


def stored(home: Path) -> list[str]:
    return [job["request"]["model"] for job in json.loads((home / "jobs.json").read_bytes())]


async def test_however_many_ask_one_job_runs(tmp_path: Path) -> None:
    jobs, runner = made(tmp_path)
    async with serving(jobs):
        askers = [jobs.ask(FetchRequest(f"slow-{n}=same")) for n in range(20)]
        other = jobs.ask(FetchRequest("slow-x=other"))
        await until(lambda: jobs.running == 2 and len({a.job_id for a in askers}) == 1)
        assert len(runner.started) == 2
        assert next(i for i in jobs.infos() if i.id == askers[0].job_id).askers == 20
        runner.release()
        outcomes = [await ended(asker) for asker in [*askers, other]]
        assert [o.fetched for o in outcomes[:20]] == [fetched(runner.started[0])] * 20
        assert jobs.running == 0
    assert stored(tmp_path) == []


async def test_one_that_asks_after_the_end_gets_a_fetch_of_its_own(tmp_path: Path) -> None:
    jobs, runner = made(tmp_path)
    async with serving(jobs):
        for _ in range(2):
            assert (await ended(jobs.ask(FetchRequest("done-a")))).fetched is not None
    assert runner.started == ["done-a", "done-a"]


async def test_the_agent_stops_and_the_next_goes_on(tmp_path: Path) -> None:
    jobs, runner = made(tmp_path)
    async with serving(jobs):
        asker = jobs.ask(FetchRequest("slow-a", include=("*.json",), local_dir="/there"))
        gone = jobs.ask(FetchRequest("slow-b"))
        await until(lambda: len(runner.started) == 2)
        jobs.leave(gone)
    assert sorted(runner.stopped) == ["slow-a", "slow-b"]
    assert await ended(asker) == Outcome()
    assert stored(tmp_path) == ["slow-a", "slow-b"]
    with pytest.raises(AgentNotRunning):
        jobs.ask(FetchRequest("slow-c"))

    second, runner = made(tmp_path)
    async with serving(second):
        await until(lambda: len(runner.started) == 2)
        assert {info.id for info in second.infos()} == {asker.job_id, gone.job_id}
        again = second.ask(FetchRequest("slow-a", include=("*.json",), local_dir="/there"))
        await until(lambda: again.job_id == asker.job_id)
        runner.release()
        assert (await ended(again)).fetched == fetched("slow-a")
        await until(lambda: second.running == 0)
    assert stored(tmp_path) == []


async def test_nothing_is_begun_while_it_stops(tmp_path: Path) -> None:
    jobs, runner = made(tmp_path)
    stopping, over = asyncio.Event(), asyncio.Event()

    async def slow_to_stop(*_: object) -> Fetched:
        try:
            await asyncio.Event().wait()
        finally:
            stopping.set()
            await over.wait()
        raise AssertionError

    runner.run = slow_to_stop  # type: ignore[assignment, method-assign]
    running = asyncio.create_task(jobs.run())
    await jobs.ready.wait()
    jobs.ask(FetchRequest("slow-a"))
    await until(lambda: jobs.infos()[0].state == "running")
    running.cancel()
    await stopping.wait()
    with pytest.raises(AgentNotRunning):
        jobs.ask(FetchRequest("slow-b"))
    over.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert stored(tmp_path) == ["slow-a"]


async def test_the_request_survives_in_full(tmp_path: Path) -> None:
    request = FetchRequest("a", "dataset", ("*.x",), ("*.y",), True, "/d", ("lan",), "modelscope", True, "/c")
    JobStore(tmp_path).save([StoredJob("ab", request)], 1)
    assert JobStore(tmp_path).load() == (StoredJob("ab", request),)
    assert (tmp_path / "jobs.json").stat().st_mode & 0o777 == 0o600


def test_an_older_list_does_not_replace_a_newer(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    store.save([], 2)
    store.save([StoredJob("ab", FetchRequest("a"))], 1)
    assert store.load() == ()


@pytest.mark.parametrize("data", [b"", b"{", b'[{"id":1}]', b"\0" * 100])
async def test_a_broken_list_is_an_empty_one(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "jobs.json").write_bytes(data)
    jobs, _ = made(tmp_path)
    async with serving(jobs):
        assert jobs.running == 0
        assert (await ended(jobs.ask(FetchRequest("done-a")))).fetched is not None
    assert stored(tmp_path) == []


async def test_a_list_that_cannot_be_written_stops_no_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "jobs.json").mkdir()
    jobs, _ = made(tmp_path)
    async with serving(jobs):
        assert (await ended(jobs.ask(FetchRequest("done-a")))).fetched is not None
    assert "cannot be remembered" in caplog.text


async def test_row13_a_job_nobody_waits_for_tries_until_a_source_is_back(tmp_path: Path) -> None:
    JobStore(tmp_path).save([StoredJob("ab", FetchRequest("down-a"))], 1)
    jobs, runner = made(tmp_path)
    async with serving(jobs):
        await until(lambda: jobs.infos()[0].state == "waiting")
        assert "nobody answers" in jobs.infos()[0].detail
        told = await ended(jobs.ask(FetchRequest("down-b")))
        assert isinstance(told.error, Unreachable)
        runner.release()
        await until(lambda: "done" in [info.state for info in jobs.infos() if info.id == "ab"])
    assert stored(tmp_path) == []


async def test_a_waiting_job_looks_again_when_there_is_somebody_new(tmp_path: Path) -> None:
    JobStore(tmp_path).save([StoredJob("ab", FetchRequest("down-a"))], 1)
    runner = ScriptedRunner(tmp_path)
    jobs = Jobs(runner, JobStore(tmp_path), Traffic(), retry_s=(60.0, 60.0))
    async with serving(jobs):
        await until(lambda: jobs.infos()[0].state == "waiting")
        runner.release()
        jobs.look_again()
        await until(lambda: jobs.infos()[0].state == "done")


async def test_many_that_come_make_a_waiting_job_look_seldom_and_none_is_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    JobStore(tmp_path).save([StoredJob("ab", FetchRequest("down-a"))], 1)
    runner = ScriptedRunner(tmp_path)
    jobs = Jobs(runner, JobStore(tmp_path), Traffic(), retry_s=(60.0, 60.0), look_s=0.5)
    async with serving(jobs):
        await until(lambda: jobs.infos()[0].state == "waiting")
        jobs.look_again()
        await until(lambda: caplog.text.count("job waits for a source") == 2)
        for _ in range(20):
            jobs.look_again()
            await asyncio.sleep(0.005)
        assert caplog.text.count("job waits for a source") == 2
        runner.release()  # the last of them could give it
        await until(lambda: jobs.infos()[0].state == "done")


async def test_errors_end_the_job_and_are_kept_for_status(tmp_path: Path) -> None:
    jobs, _ = made(tmp_path)
    async with serving(jobs):
        assert isinstance((await ended(jobs.ask(FetchRequest("none-a")))).error, RepoMissing)
        assert isinstance((await ended(jobs.ask(FetchRequest("bug-a")))).error, ZeroDivisionError)
        assert [(i.title, i.state) for i in jobs.infos()] == [("bug-a", "failed"), ("none-a", "failed")]
        assert "none-a" in jobs.infos()[1].detail
        for n in range(60):
            await ended(jobs.ask(FetchRequest(f"done-{n}")))
        assert len(jobs.infos()) == 50
        assert jobs.infos()[0].title == "done-59"
    assert stored(tmp_path) == []


async def test_cancel_at_every_stage(tmp_path: Path) -> None:
    jobs, runner = made(tmp_path, most_at_once=1)
    async with serving(jobs):
        first = jobs.ask(FetchRequest("slow-a"))
        early = jobs.cancel(first.job_id, first.id)
        assert early is not None
        assert early.cancelled
        assert isinstance((await ended(first)).error, Interrupted)
        running = jobs.ask(FetchRequest("slow-b"))
        await until(lambda: runner.started == ["slow-b"])
        queued = jobs.ask(FetchRequest("slow-c"))
        await until(lambda: [i.state for i in jobs.infos()][:2] == ["running", "queued"])
        assert jobs.cancel(queued.job_id, "somebody") is not None
        assert queued.outcome is None  # a stranger stops nothing that somebody waits for
        assert jobs.cancel(queued.job_id, queued.id) is not None
        assert isinstance((await ended(queued)).error, Interrupted)
        jobs.leave(running)
        assert jobs.cancel(running.job_id) is not None
        again = jobs.ask(FetchRequest("slow-b"))  # at once: not the one that is being stopped
        await until(lambda: runner.started == ["slow-b", "slow-b"])
        assert runner.stopped == ["slow-b"]
        runner.release()
        assert (await ended(again)).fetched is not None
        assert jobs.cancel("ffff") is None
    assert stored(tmp_path) == []


async def test_who_was_not_told_that_the_job_became_anothers_cancels_that(tmp_path: Path) -> None:
    jobs, _ = made(tmp_path)
    async with serving(jobs):
        stays = jobs.ask(FetchRequest("slow-1=same"))
        await until(lambda: jobs.infos()[0].state == "running")
        leaves = jobs.ask(FetchRequest("slow-2=same"))
        told = leaves.job_id
        await until(lambda: leaves.job_id == stays.job_id)
        jobs.leave(leaves)  # its connection ends before it cancels
        done = jobs.cancel(told, leaves.id)
        assert done is not None
        assert (done.cancelled, done.others) == (False, 1)
        jobs.leave(stays)
        done = jobs.cancel(told, leaves.id)
        assert done is not None
        assert done.cancelled
        await until(lambda: jobs.running == 0)
        assert jobs.cancel(told, leaves.id) is None


async def test_a_leaver_who_comes_back_waits_for_the_same(tmp_path: Path) -> None:
    jobs, runner = made(tmp_path)
    async with serving(jobs):
        first = jobs.ask(FetchRequest("slow-a"))
        await until(lambda: runner.started == ["slow-a"])
        jobs.leave(first)
        jobs.leave(first)
        second = jobs.ask(FetchRequest("slow-a"))
        await until(lambda: second.job_id == first.job_id)
        runner.release()
        assert (await ended(second)).fetched is not None
        assert first.outcome is None
    assert runner.started == ["slow-a"]


async def test_a_reader_gets_sums_at_most_ten_times_a_second() -> None:
    asker = Asker()
    loop = asyncio.get_running_loop()
    began, takes, total = loop.time(), 0, 0
    while loop.time() - began < 0.55:
        for _ in range(100):
            asker.put(BytesReceived("a", Kind.LAN, 1))
        came = await asker.take(1)
        assert [type(event) for event in came] == [BytesReceived]
        takes += 1
        total += sum(event.count for event in came if isinstance(event, BytesReceived))
    assert takes <= 7
    assert total == takes * 100


async def test_a_reader_that_never_reads_keeps_little() -> None:
    asker = Asker()
    asker.put(FetchPlanned("r", "c", 1, 0, 9, 0))
    for n in range(20_000):
        asker.put(BytesReceived(f"s{n % 3}", Kind.LAN, 1))
        asker.put(BytesDiscarded("s0", Kind.LAN, 1))
        asker.put(BlobPublished(str(n), 1))
        asker.put(Waiting(str(n)))
        asker.put(Note(str(n)))
    came = await asker.take(1)
    assert len(came) <= 1000
    assert isinstance(came[0], FetchPlanned)
    assert sum(e.count for e in came if isinstance(e, BytesReceived)) == 20_000
    assert [e for e in came if isinstance(e, Waiting)] == [Waiting("19999")]
    assert came[-1] == Note("19999")
    assert await asker.take(0.01) == []


async def test_the_end_is_not_waited_for() -> None:
    asker = Asker()
    asker.put(Note("a"))
    await asker.take(1)
    asker.put(Note("b"))
    asker.end(Outcome(error=EdgecdnError("x")))
    asker.end(Outcome())
    began = asyncio.get_running_loop().time()
    assert await asker.take(1) == [Note("b")]
    assert asyncio.get_running_loop().time() - began < 0.05
    assert asker.outcome is not None
    assert asker.outcome.error is not None
