"""The control messages, and the local listener over real sockets: events, errors, callers that may not."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import socket
import typing
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from edgecdn import errors
from edgecdn.agent_link import AgentAddress, AgentLink, JobHandle, find_agent
from edgecdn.control import (
    API,
    FetchRequest,
    RunInfo,
    decode_event,
    decode_line,
    encode_event,
    error_info,
    parse,
    rebuilt_error,
)
from edgecdn.errors import AgentNotRunning, BadInput, EdgecdnError, GatedRepo, Interrupted, NoSpace, RepoMissing
from edgecdn.events import BlobPublished, BytesReceived, Event, FetchPlanned, Kind
from edgecdn.settings_values import Listen
from edgecdn_agent.binding import bind_near
from edgecdn_agent.control.guard import is_loopback_host
from edgecdn_agent.run_file import HomeLock
from edgecdn_agent.supervise import State
from tests.agent.standin import PEER, Stand, fetched, standing
from tests.unit.test_errors import ALL, _made


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    with HomeLock(tmp_path / "home"):
        async with standing(tmp_path / "home") as running:
            yield running


@pytest.fixture
async def link(stand: Stand) -> AsyncIterator[AgentLink]:
    address = find_agent(stand.home)
    assert address is not None
    async with AgentLink(address) as opened:
        yield opened


def _value(field_type: Any) -> Any:
    return {"str": "text é", "int": 7, "Kind": Kind.LAN}[str(field_type)]


@pytest.mark.parametrize("shape", typing.get_args(Event), ids=lambda s: s.__name__)
def test_every_event_comes_back_as_it_went(shape: Any) -> None:
    event = shape(*[_value(f.type) for f in dataclasses.fields(shape)])
    line = encode_event(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_event(decode_line(line)) == event


@pytest.mark.parametrize(
    "line", [b'{"event":"Teleported","count":1}', b'{"event":"Note"}', b'{"event":"Note","text":7}', b'{"x":1}']
)
def test_events_of_a_newer_agent_are_passed_over(line: bytes) -> None:
    assert decode_event(decode_line(line)) is None


def test_a_field_of_a_newer_agent_is_passed_over() -> None:
    event = decode_event(decode_line(b'{"event":"BlobPublished","path":"a","size":3,"later":true}'))
    assert event == BlobPublished("a", 3)


@pytest.mark.parametrize("error", ALL, ids=lambda e: e.__name__)
def test_every_error_is_the_same_for_the_caller(error: type[EdgecdnError]) -> None:
    there = _made(error)
    here = rebuilt_error(parse(msgspec.json.encode(error_info(there)), type(error_info(there))))
    assert type(here) is error
    assert (here.message, here.remedy, here.exit_code, str(here)) == (
        there.message,
        there.remedy,
        error.exit_code,
        str(there),
    )


def test_errors_nobody_foresaw_are_edgecdn_errors() -> None:
    info = error_info(ZeroDivisionError("x"))
    assert type(rebuilt_error(info)) is EdgecdnError
    unknown = msgspec.structs.replace(info, error="FromTheFuture")
    assert type(rebuilt_error(unknown)) is EdgecdnError
    for name in ("__all__", "annotations", "ClassVar"):
        assert type(rebuilt_error(msgspec.structs.replace(info, error=name))) is EdgecdnError


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b'{"model":7}', b"null"])
def test_what_is_no_message_is_bad_input(data: bytes) -> None:
    with pytest.raises(BadInput):
        parse(data, FetchRequest)


async def test_a_fetch_through_the_agent(stand: Stand, link: AgentLink) -> None:
    events: list[Event] = []
    handle = JobHandle()
    done = await link.fetch(FetchRequest("done-a"), events.append, handle)
    assert done == fetched("done-a")
    assert handle.job
    assert [type(e).__name__ for e in events] == ["FetchPlanned", "Note", "BlobPublished", "BytesReceived"]
    status = await link.status()
    assert (status.peers, status.cache.repos, status.totals.in_by_source["lan"]) == (1, 3, 7)
    assert [(j.title, j.state) for j in status.jobs] == [("done-a", "done")]
    assert set(msgspec.to_builtins(status)) == {
        "version", "agent_id", "uptime_s", "peers", "jobs", "cache", "totals", "listeners", "name",
    }  # fmt: skip
    assert await link.peers() == (PEER,)
    top = await link.top()
    assert [(p.name, p.in_bytes) for p in top.peers] == [("peer desk-2", 7)]
    assert (await link.jobs())[0].bytes_by_source == {"lan": 7}


@pytest.mark.parametrize(
    ("model", "kind", "code"),
    [("none-x", RepoMissing, 3), ("down-x", errors.Unreachable, 6), ("bug-x", EdgecdnError, 1)],
)
async def test_what_the_fetch_raises_is_raised_here(
    link: AgentLink, model: str, kind: type[EdgecdnError], code: int
) -> None:
    with pytest.raises(kind) as caught:
        await link.fetch(FetchRequest(model), lambda _: None)
    assert type(caught.value) is kind
    assert caught.value.exit_code == code


async def test_who_leaves_does_not_stop_the_job_and_who_comes_back_hears_what_was(
    stand: Stand, link: AgentLink
) -> None:
    first: list[Event] = []
    waiting = asyncio.create_task(link.fetch(FetchRequest("slow-a"), first.append))
    await _until(lambda: sum(e.count for e in first if isinstance(e, BytesReceived)) >= 3)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await _until(lambda: stand.jobs.infos()[0].askers == 0, limit_s=3)
    assert stand.jobs.infos()[0].state == "running"
    second: list[Event] = []
    again = asyncio.create_task(link.fetch(FetchRequest("slow-a"), second.append))
    await _until(lambda: any(isinstance(e, BytesReceived) for e in second))
    planned = next(e for e in second if isinstance(e, FetchPlanned))
    assert planned.files_here == 1  # the one that was published before
    assert not any(isinstance(e, BlobPublished) for e in second)
    received = next(e for e in second if isinstance(e, BytesReceived))
    assert received.count >= 3
    stand.runner.release()
    assert await again == fetched("slow-a")
    assert stand.runner.started == ["slow-a"]
    last = stand.jobs.infos()[0]
    assert sum(e.count for e in second if isinstance(e, BytesReceived)) == last.bytes_by_source["lan"]


async def test_which_job_it_became_is_told_before_what_is_heard_of_that(stand: Stand, link: AgentLink) -> None:
    first, second = JobHandle(), JobHandle()
    heard: list[str] = []
    tasks = [asyncio.create_task(link.fetch(FetchRequest("slow-1=k"), lambda _: None, first))]
    await _until(lambda: bool(first.job))

    def hears(_: Event) -> None:
        heard.append(second.job)

    tasks.append(asyncio.create_task(link.fetch(FetchRequest("slow-2=k"), hears, second)))
    await _until(lambda: bool(heard))
    assert set(heard) == {first.job}
    stand.runner.release()
    await asyncio.gather(*tasks)


async def test_cancel_stops_only_what_nobody_else_waits_for(stand: Stand, link: AgentLink) -> None:
    handles = [JobHandle(), JobHandle()]
    tasks = [
        asyncio.create_task(link.fetch(FetchRequest(f"slow-{n}=k"), lambda _: None, h)) for n, h in enumerate(handles)
    ]
    await _until(lambda: stand.jobs.running == 1 and stand.jobs.infos()[0].askers == 2)
    await _until(lambda: handles[0].job == handles[1].job != "")
    one = await link.cancel(handles[0])
    assert (one.cancelled, one.others) == (False, 1)
    with pytest.raises(Interrupted, match="others"):
        await tasks[0]
    outsider = await link.cancel(JobHandle(handles[1].job, "ffff"))
    assert (outsider.cancelled, outsider.others) == (False, 1)
    two = await link.cancel(handles[1])
    assert two.cancelled
    with pytest.raises(Interrupted) as caught:
        await tasks[1]
    assert caught.value.exit_code == 130
    assert len(stand.runner.stopped) == 1
    assert stand.jobs.running == 0
    assert not (await link.cancel(handles[1])).cancelled


async def test_a_folder_that_is_not_utf8_is_refused_here(link: AgentLink) -> None:
    with pytest.raises(BadInput, match="UTF-8"):
        await link.fetch(FetchRequest("done-a", local_dir=os.fsdecode(b"/\xff")), lambda _: None)


async def test_while_jobs_are_down_a_fetch_is_exit_8_and_others_are_answered(stand: Stand, link: AgentLink) -> None:
    stand.jobs._group = None
    with pytest.raises(AgentNotRunning, match="starting or stopping") as caught:
        await link.fetch(FetchRequest("done-a"), lambda _: None)
    assert "goes on" not in caught.value.remedy
    assert (await link.status()).peers == 1


async def test_only_programs_of_this_machine_with_the_token_are_answered(stand: Stand) -> None:
    right = {"Authorization": f"Bearer {stand.token}"}
    cases: list[tuple[dict[str, str], int]] = [
        (right, 200),
        (right | {"Host": "localhost:8377", "Origin": "http://127.0.0.1:8377", "Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 401),
        ({"Authorization": "Bearer " + "x" * 43}, 401),
        ({"Authorization": stand.token}, 401),
        (right | {"Host": "evil.com"}, 403),
        (right | {"Host": "0.0.0.0:8377"}, 403),
        (right | {"Host": "localhost.evil.com"}, 403),
        (right | {"Host": "127.0.0.1@evil.com"}, 403),
        (right | {"Origin": "http://evil.com"}, 403),
        (right | {"Origin": "null"}, 403),
        (right | {"Origin": "https://huggingface.co"}, 403),
        (right | {"Sec-Fetch-Site": "cross-site"}, 403),
    ]
    async with aiohttp.ClientSession() as session:
        for headers, status in cases:
            async with session.get(f"{stand.url}{API}/status", headers=headers) as answer:
                assert answer.status == status, headers
                assert "Access-Control-Allow-Origin" not in answer.headers
                assert stand.token.encode() not in await answer.read()
        for path in ("/healthz", "/metrics"):
            async with session.get(stand.url + path) as answer:
                assert answer.status == 200
            async with session.get(stand.url + path, headers={"Host": "evil.com"}) as answer:
                assert answer.status == 403


async def test_health_and_metrics(stand: Stand, link: AgentLink) -> None:
    assert (await link.health()).ready
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{stand.url}/healthz") as answer:
            health = await answer.json()
        assert health["ready"] is True
        assert health["services"]["jobs"] == {"state": "ready", "restarts": 0}
        await link.fetch(FetchRequest("done-a"), lambda _: None)
        stand.traffic.sent("peer desk-2", 11)
        async with session.get(f"{stand.url}/metrics") as answer:
            text = await answer.text()
    for line in (
        'edgecdn_received_bytes_total{kind="lan"} 7.0',
        "edgecdn_sent_bytes_total 11.0",
        "edgecdn_peers 1.0",
        "edgecdn_held_repos 3.0",
    ):
        assert line in text
    assert "edgecdn_loop_lag_seconds_bucket" in text
    local = stand.supervisor.services[1]
    assert local.ready is not None
    local.state, local.restarts = State.WAITING, 3
    failing = await link.health()
    assert failing.ready  # what works is not kept from being used
    assert failing.failing == ("local",)
    assert failing.services["local"].restarts == 3
    local.state, local.restarts = State.STARTING, 0
    local.ready.clear()
    assert not (await link.health()).ready
    assert (await link.status()).version  # and answers all the same


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"[" * 50_000, 400), (b'{"model":[]}', 400), (b" " * (2 << 20), 413)]
)
async def test_bodies_that_are_no_request(stand: Stand, body: bytes, status: int) -> None:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {stand.token}"}) as session:
        async with session.post(f"{stand.url}{API}/jobs", data=io.BytesIO(body)) as answer:
            assert answer.status == status
            assert (await answer.json())["message"]
        async with session.put(f"{stand.url}{API}/jobs", data=b"{}") as answer:
            assert answer.status == 405
        async with session.get(f"{stand.url}{API}/nothing") as answer:
            assert answer.status == 404
    assert stand.jobs.infos() == ()


async def test_a_token_that_changed_is_said(stand: Stand) -> None:
    address = find_agent(stand.home)
    assert address is not None
    async with AgentLink(AgentAddress(address.run, "x" * 43)) as link:
        with pytest.raises(AgentNotRunning) as caught:
            await link.status()
    assert caught.value.exit_code == 8
    assert stand.token not in repr(address)


async def test_proxies_of_the_environment_are_not_asked(
    stand: Stand, link: AgentLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert (await link.status()).agent_id


async def test_a_caller_that_reads_nothing_costs_the_job_nothing(stand: Stand) -> None:
    host, port = stand.url.removeprefix("http://").split(":")
    body = b'{"model":"slow-a"}'
    reader, writer = await asyncio.open_connection(host, int(port), limit=1)
    writer.write(
        f"POST {API}/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {stand.token}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await _until(lambda: stand.jobs.running == 1 and stand.jobs.infos()[0].done_bytes >= 5)
    stand.runner.release()
    await _until(lambda: stand.jobs.running == 0)
    writer.transport.abort()
    del reader


def test_a_taken_port_is_passed_by_and_said() -> None:
    with bind_near(Listen("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with bind_near(Listen("127.0.0.1", port)) as second:
            assert second.getsockname()[1] != port
            assert second.getsockname()[0] == "127.0.0.1"
    with pytest.raises(OSError), bind_near(Listen("192.0.2.1", port)):
        pass


async def test_the_run_file_tells_the_port_that_was_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, HomeLock(tmp_path):
        async with standing(tmp_path, Listen("127.0.0.1", taken.getsockname()[1])) as stand:
            address = find_agent(tmp_path)
            assert address is not None
            assert address.url == stand.url
            assert str(taken.getsockname()[1]) not in address.url
            assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o600
            assert (tmp_path / "api-token").stat().st_mode & 0o777 == 0o600
        assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("value", "is_own"),
    [("127.0.0.1", True), ("127.8.8.8:1", True), ("[::1]:8377", True), ("localhost", True), ("LOCALHOST:80", True),
     ("", False), ("::1", False), ("evil.com", False), ("0.0.0.0", False), ("127.0.0.1.evil.com", False), ("[::]", False),
     ("localhost:x", False), ("user@localhost", False), ("localhost/x", False), ("127.1", False), ("[::1", False)],
)  # fmt: skip
def test_which_hosts_are_this_machine(value: str, is_own: bool) -> None:
    assert is_loopback_host(value) is is_own


def test_an_agent_bound_to_all_addresses_is_spoken_to_by_loopback() -> None:
    def url(local: str) -> str:
        return AgentAddress(RunInfo(os.getpid(), "1", "a" * 32, {"local": local}, 0.0), "t").url

    assert url("0.0.0.0:8377") == "http://127.0.0.1:8377"
    assert url("[::]:8377") == "http://[::1]:8377"
    assert url("127.0.0.1:1") == "http://127.0.0.1:1"


def test_errors_keep_their_familiar_types() -> None:
    assert isinstance(rebuilt_error(error_info(NoSpace("x", where="/"))), OSError)
    assert isinstance(rebuilt_error(error_info(GatedRepo(name="a", page="b"))), PermissionError)


async def _until(condition: Any, limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)
