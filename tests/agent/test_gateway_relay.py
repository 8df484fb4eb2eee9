"""Where this machine cannot keep a file, its caller gets it from the origin all the same, and never a wrong one whole."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from edgecdn.errors import CacheRefused, EdgecdnError, HomeFull, HomeReadOnly, NoSpace, ReadOnlyStore, SystemFailed
from edgecdn.sources.faults import Broken
from edgecdn.spans import Span
from edgecdn_agent.gateway import verified_relay
from edgecdn_agent.gateway.handed_out import HandedOut
from tests.agent.bytes_lab import BytesLab, bytes_lab, until_gone

MIB = 1 << 20
BIG = os.urandom(MIB) * 3 + os.urandom(MIB) + b"end"
FULL = NoSpace("40 B more are needed", where="/cache")
OLD_CLIENT = "unknown/None; hf_hub/0.30.2; python/3.11"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An origin that broke off is asked again at once."""
    monkeypatch.setattr(verified_relay.VerifiedRelay.__init__, "__defaults__", (0.0,))


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        ReadOnlyStore("read-only", where="/cache"),
        HomeFull("full", where="/home"),
        HomeReadOnly("read-only", where="/home"),
        CacheRefused("a link", where="/cache"),
        SystemFailed("the disk does not answer"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_file_that_cannot_be_kept_is_given(
    tmp_path: Path, error: EdgecdnError, at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with bytes_lab(tmp_path) as lab:
        for data, small in ((b"{}" * 20, True), (BIG, False)):
            wanted = lab.file(data, small=small)
            lab.deliveries.refuses = error if at_once else None
            if not at_once:
                lab.deliveries.of(wanted).fail(error)
            with caplog.at_level(logging.INFO):
                status, headers, body = await lab.ask(wanted)
            assert (status, body == data, headers["Content-Length"]) == (200, True, str(len(data)))
            assert headers["ETag"] == f'"{wanted.entry.digest}"'
            assert len([line for line in caplog.messages if wanted.entry.digest.hex[:12] in line]) == 1
        assert lab.origin.asked == [Span(0, 40), Span(0, len(BIG))]


async def test_a_disk_that_hangs_keeps_nobody_from_a_file(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = await lab.held(BIG)

        def hangs(_holding: object) -> int:
            raise TimeoutError

        lab.machine.holdings.open = hangs  # type: ignore[method-assign,assignment]
        assert (await lab.ask(wanted))[::2] == (200, BIG)


async def test_a_head_and_pieces_are_what_they_were(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        lab.deliveries.refuses = FULL
        assert (await lab.ask(wanted, method="HEAD"))[0] == 200
        assert not lab.origin.asked
        assert (await lab.ask(wanted, "bytes=5-9"))[::2] == (206, BIG[5:10])
        assert (await lab.ask(wanted, "bytes=0-"))[::2] == (206, BIG)
    async with bytes_lab(tmp_path / "large", http_limit_bytes=MIB) as lab:
        lab.deliveries.refuses = FULL
        status = (await lab.ask(lab.file(BIG), method="HEAD", User_Agent=OLD_CLIENT))[0]
        assert status == 507


async def test_who_resumes_gets_the_whole_file(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        lab.deliveries.refuses = FULL
        status, headers, body = await lab.ask(wanted, f"bytes={MIB}-")
        assert (status, body == BIG, "Content-Range" in headers) == (200, True, False)
        old = await lab.ask(wanted, f"bytes={MIB}-", User_Agent=OLD_CLIENT)
        assert old[0] == 416, "it would put the whole file behind what it has"


async def test_a_disk_that_gets_full_midway_costs_one_cut(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG[: 2 * MIB])
        async with lab.asking(wanted) as answer:
            await answer.content.readexactly(MIB)
            delivery.fail(FULL)
            await until_gone(answer)
        assert (await lab.ask(wanted, f"bytes={MIB}-"))[::2] == (200, BIG)


@pytest.mark.parametrize("size", [40, MIB, MIB + 5, len(BIG)])
async def test_50_wrong_bytes_never_become_a_file(tmp_path: Path, size: int) -> None:
    data = BIG[:size]
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(data)
        lab.deliveries.refuses = FULL
        lab.origin.files[wanted.entry.digest] = data[:-1] + bytes([data[-1] ^ 1])
        async with lab.asking(wanted) as answer:
            if size <= MIB + 5:
                assert answer.status == 502
            else:
                assert len(await until_gone(answer)) <= size - MIB
        asked = len(lab.origin.asked)
        status, headers, _ = await lab.ask(wanted)  # told, and not brought again
        assert (status, "could not be verified" in headers["X-Error-Message"]) == (502, True)
        assert len(lab.origin.asked) == asked
        if size > MIB + 5:
            lab.deliveries.refuses = None  # there is room again: who resumes begins anew
            delivery = lab.deliveries.of(wanted)
            delivery.put(0, data)
            delivery.prove()
            assert (await lab.ask(wanted, "bytes=1-"))[::2] == (200, data)


async def test_the_end_is_withheld_until_all_is_proven(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        lab.deliveries.refuses = FULL
        gate = _stopping(lab, before=len(BIG) - 1)
        async with lab.asking(wanted) as answer:
            got = await answer.content.readexactly(len(BIG) - MIB - 32)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await answer.content.readexactly(33)
            gate.set()
            assert BIG.endswith(await answer.read())
            assert BIG.startswith(got)


async def test_a_slow_end_comes_byte_by_byte_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients give up after 10 s without one."""
    monkeypatch.setattr(verified_relay, "_SPARE_EACH_S", 0.0)
    async with bytes_lab(tmp_path) as lab:
        wanted, small = lab.file(BIG), lab.file(BIG[:1000])
        lab.origin.chunk = 16 << 10
        lab.deliveries.refuses = FULL
        gate = _stopping(lab, before=len(BIG) - 1)
        async with lab.asking(wanted) as answer:
            got = await answer.content.readexactly(len(BIG) - MIB)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await answer.content.readexactly(1)
            gate.set()
            assert BIG.startswith(got)
        lab.origin.chunk = 100
        gate = _stopping(lab, before=900)
        async with lab.asking(small) as answer:
            assert answer.status == 200  # its head
            gate.set()
            assert await answer.read() == BIG[:1000]


async def test_an_origin_that_breaks_off_is_asked_for_the_rest(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        lab.deliveries.refuses = FULL
        lab.origin.fault, lab.origin.after = Broken("broke off"), MIB
        assert (await lab.ask(wanted))[::2] == (200, BIG)
        assert [span.start for span in lab.origin.asked] == [0, MIB, 2 * MIB, 3 * MIB, 4 * MIB]


async def test_an_origin_that_gives_nothing_leaves_the_disks_error(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path) as lab:
        wanted = lab.file(BIG)
        lab.deliveries.refuses = FULL
        lab.origin.fault = Broken("is down")
        status, headers, _ = await lab.ask(wanted)
        assert (status, FULL.message in headers["X-Error-Message"]) == (507, True)
        lab.origin.fault = None
        assert (await lab.ask(wanted))[::2] == (200, BIG)


async def test_an_origin_that_is_gone_midway_cuts_and_is_told(tmp_path: Path) -> None:
    async with bytes_lab(tmp_path, handed_out=HandedOut(tmp_path / "home")) as lab:
        wanted = lab.file(BIG)
        lab.deliveries.refuses = FULL
        gate = _stopping(lab, before=2 * MIB)
        async with lab.asking(wanted) as answer:
            await answer.content.readexactly(MIB)
            lab.origin.fault = Broken("is down")
            gate.set()
            assert len(await until_gone(answer)) <= MIB
        assert (await lab.ask(wanted, f"bytes={MIB}-"))[0] == 507
        lab.deliveries.refuses = None  # there is room again: nobody goes on with bytes that were never proven
        delivery = lab.deliveries.of(wanted)
        delivery.put(0, BIG)
        delivery.prove()
        assert (await lab.ask(wanted, f"bytes={MIB}-"))[::2] == (200, BIG)
    assert HandedOut(tmp_path / "home").before == {wanted.entry.digest}


def _stopping(lab: BytesLab, before: int) -> asyncio.Event:
    """The origin stops before the piece with byte `before`, until the event is set."""
    gate, chunks = asyncio.Event(), type(lab.origin)._chunks

    async def gated(data: bytes | None, part: Span):  # type: ignore[no-untyped-def] # noqa: ANN202
        at = part.start
        async for chunk in chunks(lab.origin, data, part):
            at += len(chunk)
            if at > before:
                await gate.wait()
                if lab.origin.fault is not None:
                    raise lab.origin.fault
            yield chunk

    lab.origin._chunks = gated  # type: ignore[method-assign]
    return gate
