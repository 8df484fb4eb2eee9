"""Files through the gateway: whole and in parts, here and on their way, and nothing wrong ever complete at a client."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecdn.digest import Digest, DigestKind
from edgecdn.errors import EdgecdnError, IntegrityFailure, NoSpace, Unreachable
from edgecdn.sources.faults import Broken, Busy, Denied, Missing, SourceFault
from edgecdn.spans import Span
from edgecdn_agent.deliver.delivery import Wanted
from edgecdn_agent.gateway.handed_out import HandedOut
from edgecdn_agent.gateway.stream import Patience
from edgecdn_agent.lan.sender import BlobSender
from tests.agent.bytes_lab import COMMIT, BytesLab, bytes_lab, until_gone
from tests.agent.cache_machine import PUBLIC

MIB = 1 << 20
BIG = os.urandom(MIB) * 3 + os.urandom(MIB) + b"end"
QUICK = Patience(begin_s=0.2, progress_s=0.2, end_s=0.2)
"""For tests that wait until it is over."""


# From the cache


@pytest.mark.parametrize("size", [0, 1, (16 << 10) - 1, 16 << 10, (16 << 10) + 1, 64 << 10, (64 << 10) + 1, len(BIG)])
@pytest.mark.parametrize("small", [False, True])
async def test_what_is_here_is_exact(tmp_path: Path, size: int, small: bool) -> None:
    """FAULTS 10."""
    data = BIG[len(BIG) - size :]
    async with bytes_lab(tmp_path) as lab:
        wanted = await lab.held(data, small=small)
        status, headers, body = await lab.ask(wanted)
        assert (status, body) == (200, data)
        digest = wanted.entry.digest.hex
        assert (headers["ETag"], headers["X-Repo-Commit"]) == (f'"{digest}"', COMMIT.hex)
        assert headers["Content-Length"] == str(size)
        assert headers["Accept-Ranges"] == "bytes"
        assert headers.get("X-Linked-Size") == (None if small else str(size))
        assert headers.get("X-Linked-Etag") == (None if small else f'"{digest}"')
        assert (await lab.ask(wanted, method="HEAD"))[0] == 200
        told = (await lab.ask(wanted, method="HEAD"))[1]
        assert {k: v for k, v in told.items() if k != "Date"} == {k: v for k, v in headers.items() if k != "Date"}
        assert not lab.deliveries.known
        assert not lab.origin.asked


async def test_ranges_of_what_is_here(tmp_path: Path) -> None:
    """FAULTS 9 too."""
    size = len(BIG)
    async with bytes_lab(tmp_path) as lab:
        wanted = await lab.held(BIG)
        for range_, start, stop in (
            ("bytes=0-0", 0, 1),
            ("bytes=10-19", 10, 20),
            ("bytes=100-300000", 100, 300001),
            ("bytes=5-", 5, size),
            ("bytes=-7", size - 7, size),
            (f"bytes={size - 1}-{size + 5}", size - 1, size),
            ("bytes=0-", 0, size),
        ):
            status, headers, body = await lab.ask(wanted, range_)
            assert (status, body) == (206, BIG[start:stop]), range_
            assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        for range_ in ("bytes=0-1,5-6", "bytes=9-5", "bytes=x", "lines=1-2"):
            status, headers, body = await lab.ask(wanted, range_)
            assert (status, body == BIG, "Content-Range" in headers) == (200, True, False), range_
        status, headers, _ = await lab.ask(wanted, f"bytes={size}-")
        assert (status, headers["Content-Range"]) == (416, f"bytes */{size}")
        assert (await lab.ask(wanted, "bytes=5-", If_Range='"other"'))[0] == 200
        assert (await lab.ask(wanted, "bytes=5-", If_Range=f'"{wanted.entry.digest}"'))[0] == 206
        status, _, body = await lab.ask(wanted, If_None_Match=f'"{wanted.entry.digest}"')
        assert (status, body) == (304, b"")


async def test_a_file_removed_while_it_is_sent_is_given_to_its_end(tmp_path: Path) -> None:
    data = os.urandom(MIB) * 24
    async with bytes_lab(tmp_path) as lab:
        wanted = await lab.held(data)
        async with lab.asking(wanted) as answer:
            got = await answer.content.readexactly(10)
            lab.machine.path(PUBLIC, wanted.entry.digest).unlink()
            assert got + await answer.read() == data
        delivery = lab.deliveries.of(wanted)  # the next one is brought anew
        delivery.put(0, data)
        delivery.prove()
        assert (await lab.ask(wanted))[2] == data


@pytest.mark.parametrize("size", [100, 12 * MIB])
async def test_a_file_that_got_shorter_is_cut_and_no_longer_held(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    async with bytes_lab(tmp_path) as lab:
        wanted = await lab.held(data)
        path = lab.machine.path(PUBLIC, wanted.entry.digest)
        opened = lab.machine.holdings.open

        def open_then_cut(holding: object) -> int:
            fd = opened(holding)  # type: ignore[arg-type]
            os.truncate(path, size // 2)
            return fd

        lab.machine.holdings.open = open_then_cut  # type: ignore[method-assign]
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, data)
        delivery.prove()
        if size > MIB:
            async with lab.asking(wanted) as answer:
                assert len(await until_gone(answer)) == size // 2
        assert (await lab.ask(wanted))[2] == data
        assert lab.machine.holdings.get(wanted.entry.digest) is None


# On its way


async def test_bytes_are_given_as_they_come_but_not_the_tail(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG[: 2 * MIB])
        async with lab.asking(wanted) as answer:
            assert (answer.status, answer.content_length) == (200, len(BIG))
            got = await answer.content.readexactly(2 * MIB - 32)
            delivery.put(2 * MIB, BIG[2 * MIB :])
            got += await answer.content.readexactly(len(BIG) - MIB - 32 - len(got))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await answer.content.readexactly(33)
            delivery.prove()
            got += await answer.read()
            assert got == BIG or got == BIG[len(got) - len(BIG) :]
        await lab.deliveries.wanted_by(wanted, 0)
        assert not lab.origin.asked


@pytest.mark.parametrize("size", [1, 100, MIB])
async def test_a_small_file_is_given_when_it_is_proven(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    async with bytes_lab(tmp_path, patience=QUICK) as lab:
        wanted = lab.file(data)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, data)
        async with lab.asking(wanted) as answer:  # the head comes, and nothing else
            assert answer.content_length == size
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await answer.content.readexactly(1)
        async with lab.asking(wanted) as answer:
            delivery.prove()
            assert await answer.read() == data


async def test_an_empty_file_needs_nobody(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        assert (await lab.ask(lab.file(b"")))[::2] == (200, b"")
        wrong = lab.file(b"", digest=Digest.of(DigestKind.SHA256, b"x"))
        assert (await lab.ask(wrong))[0] == 502
        assert not lab.deliveries.known


async def test_many_share_one_and_who_leaves_ends_only_its_own(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG[:MIB])
        async with lab.asking(wanted) as stays:
            async with lab.asking(wanted) as leaves:
                await lab.deliveries.wanted_by(wanted, 2)
                await leaves.content.readexactly(1000)
                leaves.close()
            await lab.deliveries.wanted_by(wanted, 1)
            delivery.put(MIB, BIG[MIB:])
            delivery.prove()
            assert await stays.read() == BIG
        await lab.deliveries.wanted_by(wanted, 0)


async def test_wrong_bytes_cut_the_connection_and_who_resumes_gets_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS 50. A piece out of it stands on nothing, and readers of pieces take a 200 for their piece."""
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, os.urandom(2 * MIB))
        async with lab.asking(wanted) as answer:
            await answer.content.readexactly(MIB)
            with caplog.at_level(logging.WARNING):
                delivery.take_back()
                assert len(await until_gone(answer)) < MIB
        assert len([line for line in caplog.messages if wanted.entry.digest.hex[:12] in line]) == 1
        delivery.put(0, BIG)
        delivery.prove()
        for range_ in (f"bytes={MIB}-", "bytes=1-", f"bytes={len(BIG) + 7}-"):
            status, headers, body = await lab.ask(wanted, range_)
            assert (status, body == BIG, "Content-Range" in headers) == (200, True, False)
        old = await lab.ask(wanted, "bytes=1-", User_Agent="unknown/None; hf_hub/0.30.2; python/3.11")
        assert old[0] == 416, "it would put the whole file behind what it has"
        assert "force_download" in old[1]["X-Error-Message"]
        assert (await lab.ask(wanted, "bytes=5-9"))[::2] == (206, BIG[5:10])
        assert (await lab.ask(wanted, "bytes=-4"))[::2] == (206, BIG[-4:])


async def test_a_delivery_that_fails_cuts_the_connection(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG[: 2 * MIB])
        async with lab.asking(wanted) as answer:
            await answer.content.readexactly(MIB)
            delivery.fail(IntegrityFailure("wrong bytes", path="model.safetensors"))
            assert len(await until_gone(answer)) <= MIB
        lab.deliveries.broken[wanted.entry.digest] = delivery.error or NoSpace()
        for range_ in (f"bytes={MIB}-", "bytes=0-1"):
            status, headers, body = await lab.ask(wanted, range_)
            assert status == 502
            assert "could not be verified" in headers["X-Error-Message"]
            assert b"Nothing wrong was published" in body
        assert not lab.origin.asked


async def test_bytes_taken_back_before_the_first_was_given_hurt_nobody(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path, patience=QUICK) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        async with lab.asking(wanted) as answer:
            delivery.take_back()
            delivery.put(0, BIG)
            delivery.prove()
            assert await answer.read() == BIG


async def test_who_left_before_its_bytes_were_taken_back_cannot_resume_on_them(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, os.urandom(2 * MIB))
        async with lab.asking(wanted) as answer:
            await answer.content.readexactly(MIB)
            answer.close()
        await lab.deliveries.wanted_by(wanted, 0)
        delivery.take_back()
        delivery.put(0, BIG)
        delivery.prove()
        assert (await lab.ask(wanted, f"bytes={MIB}-"))[::2] == (200, BIG)


async def test_who_left_resumes_in_the_same_delivery(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG[: 2 * MIB])
        async with lab.asking(wanted) as answer:
            await answer.content.readexactly(MIB)
            answer.close()
        await lab.deliveries.wanted_by(wanted, 0)
        async with lab.asking(wanted, f"bytes={MIB}-") as answer:
            assert (answer.status, answer.headers["Content-Range"]) == (206, f"bytes {MIB}-{len(BIG) - 1}/{len(BIG)}")
            delivery.put(2 * MIB, BIG[2 * MIB :])
            delivery.prove()
            assert await answer.read() == BIG[MIB:]
        assert not lab.origin.asked


async def test_in_another_delivery_nobody_resumes_on_what_was_never_proven(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        lab.deliveries.of(wanted).put(0, os.urandom(2 * MIB))
        async with lab.asking(wanted) as answer:
            await answer.content.readexactly(MIB)
            answer.close()
        await lab.deliveries.wanted_by(wanted, 0)
        other = lab.deliveries.renew(wanted)
        other.put(0, BIG)
        other.prove()
        assert (await lab.ask(wanted, f"bytes={MIB}-"))[::2] == (200, BIG)


async def test_50_after_a_restart_nobody_resumes_on_what_was_never_proven(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path / "first", handed_out=HandedOut(tmp_path)) as lab:
        wanted = lab.file(BIG)
        lab.deliveries.of(wanted).put(0, os.urandom(2 * MIB))
        async with lab.asking(wanted) as answer:
            await answer.content.readexactly(MIB)
            answer.close()
    for name in ("second", "third"):
        async with bytes_lab(tmp_path / name, handed_out=HandedOut(tmp_path)) as lab:
            wanted = await lab.held(BIG)
            assert (await lab.ask(wanted, f"bytes={MIB}-"))[::2] == (200, BIG)
            assert (await lab.ask(wanted, f"bytes={MIB}-{2 * MIB}"))[::2] == (206, BIG[MIB : 2 * MIB + 1])


async def test_what_was_proven_is_resumed_after_a_restart(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path / "first", handed_out=HandedOut(tmp_path)) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG[: 2 * MIB])
        async with lab.asking(wanted) as answer:
            await answer.content.readexactly(MIB)
            assert HandedOut(tmp_path).before == {wanted.entry.digest}
            delivery.put(2 * MIB, BIG[2 * MIB :])
            delivery.prove()
            assert len(await answer.read()) == len(BIG) - MIB
        async with asyncio.timeout(20):
            while HandedOut(tmp_path).before:
                await asyncio.sleep(0.01)
    async with bytes_lab(tmp_path / "second", handed_out=HandedOut(tmp_path)) as lab:
        wanted = await lab.held(BIG)
        assert (await lab.ask(wanted, f"bytes={MIB}-"))[::2] == (206, BIG[MIB:])


def test_what_was_given_is_remembered_for_a_month_and_a_broken_home_keeps_nobody(tmp_path: Path) -> None:
    (tmp_path / "handed-out").mkdir()
    old, new, odd = (tmp_path / "handed-out" / name for name in ("a" * 64, "b" * 40, "note.txt"))
    for path in (old, new, odd):
        path.touch()
    os.utime(old, (1.0, 1.0))
    assert {digest.hex for digest in HandedOut(tmp_path).before} == {"b" * 40}
    assert not old.exists()
    (tmp_path / "file").touch()
    assert HandedOut(tmp_path / "file").before == frozenset()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NoSpace("12 GB are missing", where="/cache"), 507),
        (Unreachable("nobody answers"), 503),
        (IntegrityFailure("wrong", path="a"), 502),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_cannot_begin_is_told(tmp_path: Path, error: EdgecdnError, status: int, at_once: bool) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        lab.origin.fault = Broken("is not reached")
        if at_once:
            lab.deliveries.refuses = error
        else:
            lab.deliveries.of(wanted).fail(error)
        told, headers, _ = await lab.ask(wanted)
        assert told == status
        assert error.message in headers["X-Error-Message"]


async def test_a_byte_comes_now_and_again_while_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients give up after 10 s without one."""
    monkeypatch.setattr("edgecdn_agent.gateway.feed._SPARE_EACH_S", 0.05)
    async with bytes_lab(tmp_path, patience=QUICK) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG)
        async with lab.asking(wanted) as answer:
            got = await answer.content.readexactly(len(BIG) - MIB)  # the spare ones too
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await answer.content.readexactly(1)
            delivery.prove()
            assert got == BIG[: len(got)]


@pytest.mark.parametrize("then", ["same", "gone", "other", "shorter"])
async def test_what_was_brought_just_now_is_here_before_the_cache_was_looked_at(tmp_path: Path, then: str) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG)
        delivery.prove()
        assert (await lab.ask(wanted))[2] == BIG
        lab.deliveries.known.clear()
        if then == "gone":
            delivery.path.unlink()
        elif then == "other":
            delivery.path.rename(tmp_path / "was")
            delivery.path.write_bytes(BIG)
        elif then == "shorter":
            os.truncate(delivery.path, 10)
        for range_, part in (("bytes=5-9", BIG[5:10]), ("bytes=-100000", BIG[-100000:])):
            assert (await lab.ask(wanted, range_))[::2] == (206, part)
        assert len(lab.origin.asked) == (0 if then == "same" else 2)


async def test_what_was_proven_is_here_as_soon_as_the_reader_has_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG)
        delivery.prove()
        go_on = _stay_in_the_first_send(monkeypatch)
        assert (await lab.ask(wanted, Connection="close"))[2] == BIG
        lab.deliveries.known.clear()
        for range_, part in (("bytes=5-9", BIG[5:10]), ("bytes=-100000", BIG[-100000:])):
            assert (await lab.ask(wanted, range_))[::2] == (206, part)
        go_on()
        assert not lab.origin.asked


@pytest.mark.parametrize("size", [10, len(BIG) + 1])
async def test_what_somebody_made_of_a_proven_file_while_its_end_was_given_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG)
        delivery.prove()
        go_on = _stay_in_the_first_send(monkeypatch)
        assert (await lab.ask(wanted, Connection="close"))[2] == BIG
        os.truncate(delivery.path, size)
        go_on()
        await lab.deliveries.wanted_by(wanted, 0)
        lab.deliveries.known.clear()
        for range_, part in (("bytes=5-9", BIG[5:10]), ("bytes=-100000", BIG[-100000:])):
            assert (await lab.ask(wanted, range_))[::2] == (206, part)
        assert len(lab.origin.asked) == 2


def _stay_in_the_first_send(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """All that is sent first is out, and it does not end before the returned function is called."""
    may, send = asyncio.Event(), BlobSender.send

    async def send_and_stay(*given: Any) -> None:
        monkeypatch.undo()
        await send(*given)
        await may.wait()

    monkeypatch.setattr(BlobSender, "send", send_and_stay)
    return may.set


async def test_a_proven_file_of_another_size_is_not_here(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG + b"more")
        delivery.prove()
        assert (await lab.ask(wanted))[2] == BIG
        lab.deliveries.known.clear()
        assert (await lab.ask(wanted, "bytes=5-9"))[::2] == (206, BIG[5:10])
        assert len(lab.origin.asked) == 1


# Parts of what is not here


async def test_a_part_is_the_origins_where_nobody_brings_it(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        status, headers, body = await lab.ask(wanted, "bytes=100-200099")
        assert (status, body) == (206, BIG[100:200100])
        assert headers["Content-Range"] == f"bytes 100-200099/{len(BIG)}"
        assert (await lab.ask(wanted, "bytes=-10"))[::2] == (206, BIG[-10:])
        assert lab.origin.asked == [Span(100, 200100), Span(len(BIG) - 10, len(BIG))]
        assert not lab.deliveries.known


async def test_a_part_is_taken_from_a_delivery_as_far_as_it_is_there(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path, patience=QUICK) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG[:MIB])
        assert (await lab.ask(wanted, "bytes=0-99999"))[::2] == (206, BIG[:100000])
        assert not lab.origin.asked
        assert (await lab.ask(wanted, f"bytes=1000-{2 * MIB}"))[2] == BIG[1000 : 2 * MIB + 1]
        assert lab.origin.asked == [Span(MIB - 32, 2 * MIB + 1)]
        delivery.put(MIB, BIG[MIB:])
        status, headers, _ = await lab.ask(wanted, "bytes=-1000")
        assert (status, headers["Retry-After"]) == (429, "1"), "the end is withheld, from pieces too"
        delivery.prove()
        assert (await lab.ask(wanted, "bytes=-1000"))[::2] == (206, BIG[-1000:])
        assert len(lab.origin.asked) == 1
        assert delivery.wanted_by == 0


async def test_50_pieces_make_no_file_of_bytes_that_were_taken_back(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, os.urandom(2 * MIB))
        assert (await lab.ask(wanted, f"bytes=0-{MIB - 1}"))[0] == 206
        delivery.take_back()
        delivery.put(0, BIG)
        delivery.prove()
        status, headers, _ = await lab.ask(wanted, f"bytes={MIB}-{len(BIG) - 1}")
        assert status == 502
        assert "begin the download anew" in headers["X-Error-Message"]
        assert (await lab.ask(wanted))[::2] == (200, BIG)


async def test_50_whose_end_was_relayed_gets_no_unproven_pieces(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        assert (await lab.ask(wanted, f"bytes={MIB}-{len(BIG) - 1}"))[0] == 206
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, os.urandom(2 * MIB))
        assert (await lab.ask(wanted, f"bytes=0-{MIB - 1}"))[::2] == (206, BIG[:MIB])
        assert len(lab.origin.asked) == 2


async def test_a_part_waits_for_a_delivery_that_moves(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path, patience=Patience(progress_s=20)) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG[:1000])
        async with lab.asking(wanted, "bytes=500-99999") as answer:
            assert answer.status == 206
            delivery.put(1000, BIG[1000:100000])
            assert await answer.read() == BIG[500:100000]
        assert not lab.origin.asked


async def test_a_part_goes_on_from_the_origin_when_the_delivery_ends(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG[:MIB])
        async with lab.asking(wanted, f"bytes=0-{2 * MIB}") as answer:
            await answer.content.readexactly(1000)
            delivery.fail(Unreachable("gone"))
            assert len(await answer.read()) == 2 * MIB + 1 - 1000


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Missing("does not have it"), 404, "EntryNotFound"),
        (Denied("says no", gated=True), 403, "GatedRepo"),
        (Denied("says no"), 403, None),
        (Busy("is busy", 3), 429, None),
        (Broken("does not answer"), 502, None),
    ],
)
async def test_an_origin_that_gives_no_part_is_told(
    tmp_path: Path, fault: SourceFault, status: int, code: str | None
) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        lab.origin.fault = fault
        told, headers, _ = await lab.ask(wanted, "bytes=1-5")
        assert (told, headers.get("X-Error-Code")) == (status, code)
        assert headers["X-Error-Message"]
        assert headers.get("Retry-After") == ("3" if isinstance(fault, Busy) else None)


async def test_an_origin_that_breaks_off_cuts_the_connection(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        lab.origin.fault, lab.origin.after = Broken("went away"), 200_000
        async with lab.asking(wanted, "bytes=0-999999") as answer:
            assert len(await until_gone(answer)) < 999_999
        lab.origin.fault = None
        assert (await lab.ask(wanted, "bytes=0-9"))[0] == 206  # nothing wrong was given


# Resumed far ahead of the delivery


async def test_the_origin_helps_who_resumes_far_ahead(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path, patience=QUICK) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG[:1000])
        async with lab.asking(wanted, f"bytes={2 * MIB}-") as answer:
            assert answer.status == 206
            got = await answer.content.readexactly(len(BIG) - 3 * MIB)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await answer.content.readexactly(1)
            delivery.put(1000, BIG[1000:])
            delivery.prove()
        assert got == BIG[2 * MIB : len(BIG) - MIB]
        assert lab.origin.asked == [Span(2 * MIB, len(BIG) - MIB)]


@pytest.mark.parametrize("lies", [False, True])
async def test_what_the_origin_gave_is_compared_before_the_end(tmp_path: Path, lies: bool) -> None:
    """FAULTS 50."""
    async with bytes_lab(tmp_path, patience=QUICK) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        if lies:
            lab.origin.files[wanted.entry.digest] = BIG[: 2 * MIB + 5] + b"x" + BIG[2 * MIB + 6 :]
        async with lab.asking(wanted, f"bytes={2 * MIB}-") as answer:
            got = await answer.content.readexactly(len(BIG) - 3 * MIB)
            delivery.put(0, BIG)
            delivery.prove()
            if lies:
                got += await until_gone(answer)
                assert len(got) <= len(BIG) - 3 * MIB
            else:
                assert got + await answer.read() == BIG[2 * MIB :]
        assert (await lab.ask(wanted, "bytes=5-"))[0] == (200 if lies else 206)


async def test_who_left_with_bytes_of_the_origin_begins_anew(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path, patience=QUICK) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        lab.origin.files[wanted.entry.digest] = os.urandom(len(BIG))
        async with lab.asking(wanted, f"bytes={MIB}-") as answer:
            await answer.content.readexactly(MIB)
            answer.close()
        await lab.deliveries.wanted_by(wanted, 0)
        delivery.put(0, BIG)
        delivery.prove()
        assert (await lab.ask(wanted, f"bytes={2 * MIB}-"))[::2] == (200, BIG)


async def test_what_a_resumed_download_stands_on_is_taken_back(tmp_path: Path) -> None:
    """What it has may be from here, of before: it begins anew."""
    async with bytes_lab(tmp_path, patience=Patience(progress_s=20)) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG[:MIB])
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(lab.ask(wanted, f"bytes={MIB}-"))
            await lab.deliveries.wanted_by(wanted, 1)
            delivery.take_back()
            delivery.put(0, BIG)
            delivery.prove()
        assert asked.result()[::2] == (200, BIG)


async def test_a_delivery_that_caught_up_takes_over_from_the_origin(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path, patience=QUICK) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        lab.origin.fault, lab.origin.after = Broken("went away"), 100_000
        async with lab.asking(wanted, f"bytes={2 * MIB}-") as answer:
            got = await answer.content.readexactly(100_000)
            delivery.put(0, BIG)
            delivery.prove()
            assert got + await answer.read() == BIG[2 * MIB :]
        assert lab.origin.asked[0] == Span(2 * MIB, len(BIG) - MIB)


# HEAD


async def test_a_head_starts_nothing(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        status, headers, body = await lab.ask(lab.file(BIG), "bytes=3-5", method="HEAD")
        assert (status, headers["Content-Length"], body) == (200, str(len(BIG)), b"")
        assert not lab.deliveries.known
        assert not lab.origin.asked


NEW, OLD = "transformers/5.0; hf_hub/1.31.0; python/3.11", "unknown/None; hf_hub/0.36.2; python/3.9"


async def test_too_large_for_http(tmp_path: Path) -> None:
    """Who downloads what has no size gets it so; others wait until it is here."""
    async with bytes_lab(tmp_path, http_limit_bytes=MIB, hold_s=0.2) as lab:
        wanted = lab.file(BIG)
        status, headers, _ = await lab.ask(wanted, method="HEAD", User_Agent="curl/8")
        assert (status, headers["Content-Length"]) == (200, str(len(BIG)))
        assert not lab.deliveries.known
        status, headers, _ = await lab.ask(wanted, method="HEAD", User_Agent=OLD)
        assert (status, "Retry-After" in headers, "X-Error-Message" in headers) == (503, True, True)
        status, headers, _ = await lab.ask(wanted, method="HEAD", User_Agent=NEW)
        assert (status, headers["ETag"]) == (200, f'"{wanted.entry.digest}"')
        assert not {"Content-Length", "X-Linked-Size", "Transfer-Encoding"} & set(headers)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG)
        delivery.prove()
        status, headers, _ = await lab.ask(wanted, method="HEAD", User_Agent=OLD)
        assert (status, headers["Content-Length"]) == (200, str(len(BIG)))


async def test_too_large_and_brought_while_the_client_waits(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path, http_limit_bytes=MIB, hold_s=20) as lab:
        wanted = lab.file(BIG)
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(lab.ask(wanted, method="HEAD", User_Agent=OLD))
            await lab.deliveries.wanted_by(wanted, 1)
            lab.deliveries.of(wanted).prove()
        assert asked.result()[0] == 200
        lab.deliveries.broken[wanted.entry.digest] = IntegrityFailure("wrong", path="a")
        assert (await lab.ask(wanted, method="HEAD", User_Agent=OLD))[0] == 502


# Readers


async def small_reader(lab: BytesLab, wanted: Wanted) -> socket.socket:
    """A connection that asked, and takes nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", lab.port))
    await loop.sock_sendall(sock, f"GET /{wanted.entry.digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return sock


async def test_who_takes_nothing_is_cut_and_holds_nothing(tmp_path: Path) -> None:
    data = os.urandom(MIB) * 32
    async with bytes_lab(tmp_path, stall_s=0.5) as lab:
        wanted = lab.file(data)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, data)
        delivery.prove()
        sock = await small_reader(lab, wanted)
        try:
            await lab.deliveries.wanted_by(wanted, 1)
            await lab.deliveries.wanted_by(wanted, 0)
            assert (await lab.ask(wanted))[2] == data
        finally:
            sock.close()


async def test_slow_readers_hold_up_nobody(tmp_path: Path) -> None:
    data = os.urandom(MIB) * 8
    async with bytes_lab(tmp_path) as lab:
        wanted = await lab.held(data)
        slow = [await small_reader(lab, wanted) for _ in range(20)]
        try:
            async with asyncio.timeout(20):
                assert (await lab.ask(wanted))[2] == data
        finally:
            for sock in slow:
                sock.close()


async def test_parallel_readers_of_parts(tmp_path: Path) -> None:
    data = os.urandom(MIB) * 16
    async with bytes_lab(tmp_path) as lab:
        wanted = await lab.held(data)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(lab.ask(wanted, f"bytes={n * MIB}-{(n + 1) * MIB - 1}")) for n in range(16)]
        assert b"".join(task.result()[2] for task in asked) == data


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG)
        for _ in range(20):
            async with lab.asking(wanted) as answer:
                await answer.content.readexactly(10)
                answer.close()
        await lab.deliveries.wanted_by(wanted, 0)
        delivery.prove()
        assert (await lab.ask(wanted))[2] == BIG
        async with asyncio.timeout(20):
            while any(link.endswith(".partial") for link in open_files()):
                await asyncio.sleep(0.02)


def open_files() -> list[str]:
    return [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
