"""The test hub keeps its promises: to the real client, and byte for byte on the wire."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from blockbuster import blockbuster_ctx
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub import (
    Fault,
    Generated,
    HubFile,
    HubProcess,
    HubRepo,
    Kind,
    Quirks,
    Signer,
    TestHub,
    close_early,
    delay_first_byte,
    dry_up,
    make_repo,
    many_files,
    redirect_to,
    repo_from_directory,
    reset,
    slow_per_connection,
    slow_total,
    stall,
    status,
    write_generated,
    wrong_bytes,
)
from tests.hub.content import chunks_of, read_range
from tests.hub.repos import Contents

pytestmark = pytest.mark.asyncio

BIG = Generated(seed=7, size=3_000_001)
BIG_BYTES = b"".join(chunks_of(BIG))
FILES: Contents = {"config.json": b'{"a": 1}', "sub/notes.txt": b"hello", "model.safetensors": BIG}
RAW = "/org/name/resolve/main/model.safetensors"


@pytest.fixture(autouse=True)
def _plain_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "default-cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest_asyncio.fixture
async def raw() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that repairs nothing."""
    async with aiohttp.ClientSession(
        auto_decompress=False, connector=aiohttp.TCPConnector(force_close=True)
    ) as session:
        yield session


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[TestHub]:
    """A hub with one model whose large file is served without redirect."""
    async with TestHub([make_repo("org/name", FILES)], cdn=False) as running:
        yield running


async def _snapshot(hub: TestHub, cache: Path, repo_id: str = "org/name", **more: Any) -> Path:
    options = {"endpoint": hub.url, "cache_dir": cache, "token": False, **more}
    return Path(await _call(snapshot_download, repo_id, **options))


async def _call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return await asyncio.to_thread(function, *args, **options)


async def _sent(hub: TestHub, amount: int) -> None:
    """Wait until the server has noticed the end of what it sent."""
    async with asyncio.timeout(20):
        while hub.stats.open_bodies or hub.stats.total != amount:
            await asyncio.sleep(0)


class TestRealClient:
    """huggingface_hub, unmodified."""

    async def test_snapshot_through_the_cdn(self, tmp_path: Path) -> None:
        async with TestHub([make_repo("org/name", FILES)]) as hub:
            folder = await _snapshot(hub, tmp_path)
            assert (folder / "model.safetensors").read_bytes() == BIG_BYTES
            assert (folder / "sub/notes.txt").read_bytes() == b"hello"
            assert hub.stats.sent["org/name", "model.safetensors"] == BIG.size
            assert hub.stats.total == BIG.size + 8 + 5
            assert hub.stats.by_route == {"cdn": BIG.size, "resolve": 13}

    async def test_folder_on_disk_with_links_is_sent_with_exact_counts(self, tmp_path: Path) -> None:
        source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
        source.mkdir()
        elsewhere.write_bytes(BIG_BYTES)
        (source / "model.safetensors").symlink_to(elsewhere)
        (source / "config.json").write_bytes(b"{}")
        async with TestHub([repo_from_directory("org/name", source)]) as hub:
            folder = await _snapshot(hub, tmp_path / "cache")
            assert (folder / "model.safetensors").read_bytes() == BIG_BYTES
            assert hub.stats.total == BIG.size + 2

    async def test_digests_are_those_of_git_and_lfs(self, hub: TestHub) -> None:
        info = await _call(HfApi(hub.url, token=False).model_info, "org/name", files_metadata=True)
        by_name = {file.rfilename: file for file in info.siblings}
        assert by_name["sub/notes.txt"].blob_id == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
        assert by_name["model.safetensors"].lfs.sha256 == hashlib.sha256(BIG_BYTES).hexdigest()

    async def test_listing_of_2500_files_is_paged(self, tmp_path: Path) -> None:
        async with TestHub([make_repo("org/many", many_files(2500))]) as hub:
            api = HfApi(hub.url, token=False)
            tree = await _call(lambda: list(api.list_repo_tree("org/many", recursive=True)))
            assert len(tree) == 2501  # the folder is listed too
            assert len(hub.stats.asked("GET", "/tree/")) == 3

    async def test_metadata_calls(self) -> None:
        repo = make_repo("org/name", FILES)
        first = repo.main
        repo.tags["v1"] = first
        repo.pull_requests["refs/pr/1"] = first
        second = repo.add_commit({"new.txt": b"new"})
        data = make_repo("org/data", {"a.txt": b"a"}, repo_type="dataset")
        async with TestHub([repo, data]) as hub:
            api = HfApi(hub.url, token=False)
            assert (await _call(api.model_info, "org/name")).sha == second
            assert (await _call(api.model_info, "org/name", revision="v1")).sha == first
            assert (await _call(api.model_info, "org/name", revision="refs/pr/1")).sha == first
            assert (await _call(api.dataset_info, "org/data")).sha == data.main
            refs = await _call(api.list_repo_refs, "org/name", include_pull_requests=True)
            assert [ref.target_commit for ref in refs.branches + refs.tags] == [second, first]
            found = await _call(lambda: list(api.list_models(search="NAM")))
            assert [model.id for model in found] == ["org/name"]
            await _call(api.auth_check, "org/name")
            paths = await _call(api.get_paths_info, "org/name", ["sub", "new.txt", "absent"])
            assert [entry.path for entry in paths] == ["sub", "new.txt"]
            flat = await _call(lambda: list(api.list_repo_tree("org/name", "sub", expand=True)))
            assert [entry.path for entry in flat] == ["sub/notes.txt"]
            commits = await _call(api.list_repo_commits, "org/name")
            assert [commit.commit_id for commit in commits] == [second, first]

    async def test_cache_verify_accepts_the_digests(self, hub: TestHub, tmp_path: Path) -> None:
        await _snapshot(hub, tmp_path)
        api = HfApi(hub.url, token=False)
        checked = await _call(api.verify_repo_checksums, "org/name", cache_dir=tmp_path)
        assert not checked.mismatches
        assert checked.checked_count == 3

    async def test_errors_have_the_types_the_client_promises(self, hub: TestHub, tmp_path: Path) -> None:
        async def fetch(repo_id: str, name: str, revision: str = "main") -> None:
            options = {"endpoint": hub.url, "cache_dir": tmp_path, "token": False}
            await _call(hf_hub_download, repo_id, name, revision=revision, **options)

        with pytest.raises(RemoteEntryNotFoundError):
            await fetch("org/name", "absent.txt")
        with pytest.raises(RevisionNotFoundError):
            await fetch("org/name", "config.json", "absent")
        with pytest.raises(RepositoryNotFoundError):
            await fetch("org/absent", "config.json")

    async def test_private_and_gated(self, tmp_path: Path) -> None:
        repos = [
            make_repo("org/private", FILES, private=True),
            make_repo("org/gated", FILES, gated="manual"),
        ]
        tokens = {"hf_good": {"org/private", "org/gated"}, "hf_none": set[str]()}
        async with TestHub(repos, tokens=tokens) as hub:
            for token in (False, "hf_none"):
                with pytest.raises(RepositoryNotFoundError):
                    await _snapshot(hub, tmp_path, "org/private", token=token)
                with pytest.raises(GatedRepoError):
                    await _call(HfApi(hub.url, token=token).auth_check, "org/gated")
            with pytest.raises(GatedRepoError):
                await _call(
                    hf_hub_download,
                    "org/gated",
                    "config.json",
                    endpoint=hub.url,
                    cache_dir=tmp_path,
                    token="hf_none",
                )
            for repo in repos:
                folder = await _snapshot(hub, tmp_path, repo.id, token="hf_good")
                assert (folder / "model.safetensors").read_bytes() == BIG_BYTES
            me = await _call(HfApi(hub.url, token="hf_good").whoami)
            assert me["name"] == "tester"
            with pytest.raises(HfHubHTTPError):
                await _call(HfApi(hub.url, token="hf_unknown").model_info, "org/gated")
            assert all(seen.authorization is None for seen in hub.stats.asked(contains="sig="))
            assert hub.stats.asked("HEAD")[-1].authorization == "Bearer hf_good"

    async def test_renamed(self, tmp_path: Path) -> None:
        aliases = {"old/name": "org/name"}
        async with TestHub([make_repo("org/name", FILES)], aliases=aliases) as hub:
            folder = await _snapshot(hub, tmp_path, "old/name")
            assert "models--old--name" in str(folder)
            assert (folder / "config.json").read_bytes() == FILES["config.json"]

    async def test_wrong_bytes_reach_an_unguarded_client(self, hub: TestHub, tmp_path: Path) -> None:
        hub.inject(wrong_bytes(offset=5, path="model.safetensors"))
        got = ((await _snapshot(hub, tmp_path)) / "model.safetensors").read_bytes()
        assert [i for i in range(BIG.size) if got[i] != BIG_BYTES[i]] == [5]


class TestWire:
    """Headers and bytes as a raw client sees them."""

    async def test_redirect_carries_the_identity(self, raw: aiohttp.ClientSession) -> None:
        repo = make_repo("org/name", FILES, xet=True)
        sha256 = hashlib.sha256(BIG_BYTES).hexdigest()
        async with TestHub([repo]) as hub, raw.head(hub.url + RAW) as answer:
            assert answer.status == 302
            assert answer.headers["X-Repo-Commit"] == repo.main
            assert answer.headers["X-Linked-Etag"] == answer.headers["ETag"] == f'"{sha256}"'
            assert answer.headers["X-Linked-Size"] == str(BIG.size)
            assert answer.headers["Location"].startswith(hub.cdn_url)
            assert len(answer.headers["X-Xet-Hash"]) == 64
            assert "xet-auth" in answer.links

    async def test_signatures_expire_and_cannot_be_changed(self, raw: aiohttp.ClientSession) -> None:
        now = 1_000_000.0
        signer = Signer(lifetime_s=10, clock=lambda: now)
        async with TestHub([make_repo("org/name", FILES)], signer=signer) as hub:
            async with raw.head(hub.url + RAW) as answer:
                location = answer.headers["Location"]
            for changed in (location[:-1] + "_", location.replace("exp=1", "exp=2")):
                async with raw.get(changed) as answer:
                    assert answer.status == 403
            async with raw.get(location) as answer:
                assert await answer.read() == BIG_BYTES
            now += 11
            async with raw.get(location) as answer:
                assert answer.status == 403

    async def test_head_names_size_and_etag(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        async with raw.head(hub.url + "/org/name/resolve/main/config.json") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Length"] == "8"
            assert answer.headers["Accept-Ranges"] == "bytes"
            assert answer.headers["ETag"] == '"%s"' % HubFile.of("x", b'{"a": 1}').oid

    @pytest.mark.parametrize("on_disk", [False, True])
    @pytest.mark.parametrize(
        ("asked", "start", "end"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=100-", 100, BIG.size),
            ("bytes=-7", BIG.size - 7, BIG.size),
            ("bytes=1048570-2097160", 1048570, 2097161),
            (f"bytes=10-{BIG.size + 99}", 10, BIG.size),
        ],
    )
    async def test_single_ranges(
        self,
        raw: aiohttp.ClientSession,
        tmp_path: Path,
        asked: str,
        start: int,
        end: int,
        on_disk: bool,
    ) -> None:
        files = write_generated(FILES, tmp_path) if on_disk else FILES
        async with (
            TestHub([make_repo("org/name", files)], cdn=False) as hub,
            raw.get(hub.url + RAW, headers={"Range": asked}) as answer,
        ):
            assert answer.status == 206
            assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{BIG.size}"
            assert await answer.read() == BIG_BYTES[start:end]
            await _sent(hub, end - start)

    @pytest.mark.parametrize("asked", [f"bytes={BIG.size}-", "bytes=5-4", "bytes=-0", "bytes=a-b"])
    async def test_impossible_ranges(self, hub: TestHub, raw: aiohttp.ClientSession, asked: str) -> None:
        async with raw.get(hub.url + RAW, headers={"Range": asked}) as answer:
            assert answer.status == 416
            assert answer.headers["Content-Range"] == f"bytes */{BIG.size}"

    async def test_hostile_listing_entries_are_passed_on(self, raw: aiohttp.ClientSession) -> None:
        hostile = {"../x": b"1", "/etc/x": b"2", "a\\b": b"3", "ok": b"4"}
        async with TestHub([make_repo("org/name", hostile)]) as hub:
            url = hub.url + "/api/models/org/name/tree/main?recursive=true"
            async with raw.get(url) as answer:
                names = {entry["path"] for entry in await answer.json()}
        assert names >= set(hostile)

    async def test_a_client_that_leaves_is_counted_for_what_it_got(self, tmp_path: Path) -> None:
        big = {"model.safetensors": Generated(1, 64 << 20)}
        repo = make_repo("org/name", write_generated(big, tmp_path))
        async with TestHub([repo], cdn=False) as hub:
            reader, writer = await asyncio.open_connection(*hub.url[7:].split(":"))
            writer.write(f"GET {RAW} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await reader.readexactly(100_000)
            writer.transport.abort()
            async with asyncio.timeout(20):
                while hub.stats.open_bodies:
                    await asyncio.sleep(0)
            assert 100_000 - 1000 < hub.stats.total < 64 << 20


class TestFaults:
    """Each rule does what its name says."""

    async def test_rules_are_used_up_in_order(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(
            status(429, {"Retry-After": "7"}, times=2, path="*.json"),
            status(503, times=1, path="org/name/config.json", method="GET"),
        )
        seen = []
        for name in ("sub/notes.txt", "config.json", "config.json", "config.json", "config.json"):
            async with raw.get(f"{hub.url}/org/name/resolve/main/{name}") as answer:
                seen.append((answer.status, answer.headers.get("Retry-After")))
        assert seen == [(200, None), (429, "7"), (429, "7"), (503, None), (200, None)]
        assert len(hub.faults) == 0

    @pytest.mark.parametrize("on_disk", [False, True])
    async def test_reset(self, raw: aiohttp.ClientSession, tmp_path: Path, on_disk: bool) -> None:
        files = write_generated(FILES, tmp_path) if on_disk else FILES
        async with TestHub([make_repo("org/name", files)], cdn=False) as hub:
            hub.inject(reset(after_bytes=200_000, times=1))
            got = b""
            with pytest.raises((aiohttp.ClientPayloadError, ConnectionResetError)) as caught:
                async with raw.get(hub.url + RAW) as answer:
                    async for piece in answer.content.iter_any():
                        got += piece
            assert got == BIG_BYTES[: len(got)]
            assert len(got) <= 200_000
            assert "reset" in repr([caught.value, caught.value.__cause__]).lower()
            await _sent(hub, 200_000)

    async def test_reset_delivers_what_came_before(self, hub: TestHub) -> None:
        hub.inject(reset(after_bytes=1000))
        reader, writer = await asyncio.open_connection(*hub.url[7:].split(":"))
        writer.write(f"GET {RAW} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(1000) == BIG_BYTES[:1000]
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()

    async def test_close_early(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(close_early(after_bytes=5000))
        with pytest.raises(aiohttp.ClientPayloadError):
            async with raw.get(hub.url + RAW) as answer:
                assert answer.headers["Content-Length"] == str(BIG.size)
                assert await answer.content.readexactly(5000) == BIG_BYTES[:5000]
                await answer.content.read()
        await _sent(hub, 5000)

    async def test_stall_lasts_until_cleared(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(stall(after_bytes=4096))
        async with raw.get(hub.url + RAW) as answer:
            assert await answer.content.readexactly(4096) == BIG_BYTES[:4096]
            assert hub.stats.total == 4096
            hub.clear()
            assert await answer.content.read() == BIG_BYTES[4096:]

    async def test_an_answer_that_is_shorter_than_a_stall_ends_as_ever(
        self, hub: TestHub, raw: aiohttp.ClientSession
    ) -> None:
        hub.inject(stall(after_bytes=4096))
        for length in (4095, 4096):
            async with raw.get(hub.url + RAW, headers={"Range": f"bytes=0-{length - 1}"}) as answer:
                assert await answer.read() == BIG_BYTES[:length]
        await _sent(hub, 4095 + 4096)

    async def test_a_file_that_dries_up_gives_what_lies_before(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(dry_up(4096))
        async with raw.get(hub.url + RAW, headers={"Range": "bytes=0-4095"}) as answer:
            assert await answer.read() == BIG_BYTES[:4096]
        async with (
            raw.get(hub.url + RAW, headers={"Range": "bytes=4000-4999"}) as across,
            raw.get(hub.url + RAW, headers={"Range": "bytes=4096-4999"}) as behind,
        ):
            assert await across.content.readexactly(96) == BIG_BYTES[4000:4096]
            async with asyncio.timeout(20):
                while (hub.stats.open_bodies, hub.stats.total) != (2, 4096 + 96):
                    await asyncio.sleep(0)
            hub.clear()
            assert await across.read() == BIG_BYTES[4096:5000]
            assert await behind.read() == BIG_BYTES[4096:5000]

    async def test_a_slow_answer_is_no_longer_slow_when_that_is_lifted(
        self, hub: TestHub, raw: aiohttp.ClientSession
    ) -> None:
        hub.inject(slow_total(1000.0))  # the whole of it would take some minutes
        async with raw.get(hub.url + RAW) as answer:
            got = await answer.content.readexactly(10)
            hub.clear()
            assert got + await answer.read() == BIG_BYTES

    async def test_stall_ends_when_the_client_leaves(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(stall(after_bytes=10))
        async with raw.get(hub.url + RAW) as answer:
            await answer.content.readexactly(10)
            answer.close()
        await _sent(hub, 10)

    async def test_long_body(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(Fault(Kind.LONG_BODY, delta=3))
        async with raw.get(hub.url + RAW, headers={"Range": "bytes=0-9"}) as answer:
            assert answer.headers["Content-Range"] == f"bytes 0-9/{BIG.size}"
            assert await answer.read() == BIG_BYTES[:13]
        async with raw.get(hub.url + RAW) as answer:
            assert await answer.read() == BIG_BYTES + b"\0\0\0"

    @pytest.mark.parametrize("delta", [-5, 5])
    async def test_wrong_length(self, hub: TestHub, raw: aiohttp.ClientSession, delta: int) -> None:
        hub.inject(Fault(Kind.WRONG_LENGTH, delta=delta))
        async with raw.head(hub.url + RAW) as answer:
            assert answer.headers["X-Linked-Size"] == str(BIG.size + delta)
        async with raw.get(hub.url + RAW) as answer:
            assert await answer.read() == (BIG_BYTES + b"\0" * 5)[: BIG.size + delta]

    async def test_wrong_bytes(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(wrong_bytes(offset=70_000, times=2), wrong_bytes(times=1))
        async with raw.get(hub.url + RAW) as answer:
            got = await answer.read()
        assert got[70_000] == BIG_BYTES[70_000] ^ 0xFF
        assert got[:70_000] == BIG_BYTES[:70_000]
        assert got[70_001:] == BIG_BYTES[70_001:]
        async with raw.get(hub.url + RAW, headers={"Range": "bytes=0-9"}) as answer:
            assert await answer.read() == BIG_BYTES[:10]
        async with raw.get(hub.url + RAW) as answer:
            assert await answer.read() == bytes(byte ^ 0xFF for byte in BIG_BYTES)

    async def test_ranges_ignored_or_misnamed(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(Fault(Kind.IGNORE_RANGE, times=1))
        headers = {"Range": "bytes=10-19"}
        async with raw.get(hub.url + RAW, headers=headers) as answer:
            assert answer.status == 200
            assert len(await answer.read()) == BIG.size
        hub.inject(Fault(Kind.WRONG_CONTENT_RANGE, delta=1))
        async with raw.get(hub.url + RAW, headers=headers) as answer:
            assert answer.headers["Content-Range"] == f"bytes 11-20/{BIG.size}"
            assert await answer.read() == BIG_BYTES[10:20]

    async def test_gzip(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(Fault(Kind.GZIP))
        async with raw.get(hub.url + RAW) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(await answer.read()) == BIG_BYTES

    async def test_captive_portal(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(Fault(Kind.CAPTIVE_PORTAL))
        for path in (RAW, "/api/models/org/name"):
            async with raw.get(hub.url + path) as answer:
                assert answer.status == 200
                assert answer.content_type == "text/html"

    async def test_redirect(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(redirect_to("http://169.254.169.254/latest"))
        async with raw.get(hub.url + RAW, allow_redirects=False) as answer:
            assert answer.status == 302
            assert answer.headers["Location"] == "http://169.254.169.254/latest"

    async def test_wrong_etag(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(Fault(Kind.WRONG_ETAG))
        right = hashlib.sha256(BIG_BYTES).hexdigest()
        async with raw.head(hub.url + RAW) as answer:
            for name in ("ETag", "X-Linked-Etag"):
                assert len(answer.headers[name]) == 66
                assert right not in answer.headers[name]

    async def test_no_content_length(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(Fault(Kind.NO_CONTENT_LENGTH))
        async with raw.head(hub.url + RAW) as answer:
            assert "Content-Length" not in answer.headers
            assert "X-Linked-Size" not in answer.headers
        async with raw.get(hub.url + RAW) as answer:
            assert "Content-Length" not in answer.headers
            assert await answer.read() == BIG_BYTES
        await _sent(hub, BIG.size)

    async def test_speed_per_connection_and_in_total(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        async def fetch() -> None:
            async with raw.get(hub.url + RAW, headers={"Range": "bytes=0-199999"}) as answer:
                assert len(await answer.read()) == 200_000

        async def seconds_for_two() -> float:
            started = asyncio.get_running_loop().time()
            await asyncio.gather(fetch(), fetch())
            return asyncio.get_running_loop().time() - started

        hub.inject(slow_per_connection(1e6))
        assert await seconds_for_two() > 0.19
        hub.clear()
        hub.inject(slow_total(1e6))
        assert await seconds_for_two() > 0.39

    async def test_delay(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(delay_first_byte(0.1, method="HEAD"))
        started = asyncio.get_running_loop().time()
        async with raw.head(hub.url + RAW):
            assert asyncio.get_running_loop().time() - started > 0.09

    async def test_api_answers_can_be_cut_too(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        hub.inject(close_early(after_bytes=10, route="api"))
        with pytest.raises(aiohttp.ClientPayloadError):
            async with raw.get(hub.url + "/api/models/org/name") as answer:
                await answer.read()
        assert hub.stats.total == 0

    async def test_a_listener_can_go_down_and_come_back(self, hub: TestHub, raw: aiohttp.ClientSession) -> None:
        url = hub.url + RAW
        await hub.go_down("hub")
        with pytest.raises(aiohttp.ClientConnectorError):
            await raw.head(url)
        await hub.come_back("hub")
        async with raw.head(url) as answer:
            assert answer.status == 200

    async def test_body_rules_wait_for_a_body(self, raw: aiohttp.ClientSession) -> None:
        async with TestHub([make_repo("org/name", FILES)]) as hub:
            hub.inject(close_early(after_bytes=3, times=1))
            async with raw.head(hub.url + RAW) as answer:
                location = answer.headers["Location"]
            async with raw.get(hub.url + RAW, allow_redirects=False) as answer:
                assert answer.status == 302
            with pytest.raises(aiohttp.ClientPayloadError):
                async with raw.get(location) as answer:
                    await answer.read()


class TestModelScope:
    """The stand-in for ModelScope."""

    @staticmethod
    def repos() -> list[HubRepo]:
        data = make_repo("org/data", many_files(5), repo_type="dataset")
        return [make_repo("org/name", FILES), data]

    async def test_listing_names_every_sha256(self, raw: aiohttp.ClientSession) -> None:
        async with TestHub(self.repos(), modelscope=True) as hub:
            api = hub.modelscope_url + "/api/v1/models/org/name"
            query = "?Revision=master&Recursive=True"
            async with raw.get(f"{api}/repo/files{query}") as answer:
                listing = (await answer.json())["Data"]
            found = {file["Path"]: file for file in listing["Files"] if file["Type"] == "blob"}
            assert found["config.json"]["Sha256"] == hashlib.sha256(b'{"a": 1}').hexdigest()
            assert found["model.safetensors"]["Size"] == BIG.size
            async with raw.get(f"{api}/repo/files?Revision=absent") as answer:
                assert answer.status == 200
                assert (await answer.json())["Data"]["Files"] is None
            async with raw.get(f"{api}/revisions") as answer:
                revisions = (await answer.json())["Data"]["RevisionMap"]
            assert [branch["Revision"] for branch in revisions["Branches"]] == ["master"]

    @pytest.mark.parametrize("expected", [200, 206])
    async def test_range_is_honoured_under_either_status(self, raw: aiohttp.ClientSession, expected: int) -> None:
        quirks = Quirks(range_status_200=expected == 200)
        async with TestHub(self.repos(), modelscope=True, quirks=quirks) as hub:
            url = hub.modelscope_url + "/api/v1/models/org/name/repo"
            query = "?Revision=master&FilePath=model.safetensors"
            async with raw.get(url + query, headers={"Range": "bytes=5-9"}) as answer:
                assert answer.status == expected
                assert answer.headers["Content-Range"] == f"bytes 5-9/{BIG.size}"
                assert await answer.read() == BIG_BYTES[5:10]
            assert hub.stats.by_route == {"modelscope": 5}

    async def test_large_files_may_be_redirected(self, raw: aiohttp.ClientSession) -> None:
        quirks = Quirks(redirect_lfs=True)
        async with TestHub([], modelscope=self.repos(), quirks=quirks) as hub:
            url = hub.modelscope_url + "/api/v1/models/org/name/repo?FilePath=model.safetensors"
            async with raw.get(url) as answer:
                assert str(answer.url).startswith(hub.cdn_url)
                assert await answer.read() == BIG_BYTES

    async def test_dataset_pages_and_numeric_id(self, raw: aiohttp.ClientSession) -> None:
        async with TestHub(self.repos(), modelscope=True) as hub:
            datasets = hub.modelscope_url + "/api/v1/datasets"
            async with raw.get(f"{datasets}/org/data") as answer:
                number = (await answer.json())["Data"]["Id"]
            query = "?Revision=master&Recursive=True&PageSize=4&PageNumber=2"
            async with raw.get(f"{datasets}/{number}/repo/tree{query}") as answer:
                page = (await answer.json())["Data"]
            assert (len(page["Files"]), page["TotalCount"]) == (2, 6)
            async with raw.get(f"{datasets}/org/absent") as answer:
                assert answer.status == 404
                assert (await answer.json())["Success"] is False


class TestProcess:
    """The hub as a process of its own."""

    async def test_serves_and_obeys(self, raw: aiohttp.ClientSession, tmp_path: Path) -> None:
        ready = tmp_path / "ready"
        arguments = ("--generate", "org/big=2x3MiB", "--modelscope", "--ready-file", str(ready))
        hub = await asyncio.to_thread(HubProcess(*arguments).__enter__)
        try:
            assert json.loads(ready.read_text())["url"] == hub.url
            url = hub.url + "/org/big/resolve/main/model-00001-of-00002.safetensors"
            async with raw.get(url) as answer:
                assert await answer.read() == read_range(Generated(1, 3 << 20), 0, 3 << 20)
            stats = await asyncio.to_thread(hub.stats)
            assert stats["total"] == 3 << 20
            await asyncio.to_thread(hub.inject, status(503, {"Retry-After": "1"}))
            async with raw.get(url) as answer:
                assert answer.status == 503
            await asyncio.to_thread(hub.clear)
            commit = await asyncio.to_thread(hub.add_commit, "org/big", {"new": b"1"})
            async with raw.get(hub.url + "/api/models/org/big") as answer:
                assert (await answer.json())["sha"] == commit
            log = await asyncio.to_thread(hub.requests)
            assert [seen["status"] for seen in log] == [302, 200, 503, 200]
        finally:
            await asyncio.to_thread(hub.stop)
        assert hub.returncode == 0


async def test_serving_never_blocks_the_loop(raw: aiohttp.ClientSession, tmp_path: Path) -> None:
    repo = make_repo("org/name", write_generated(FILES, tmp_path))
    async with TestHub([repo]) as hub:
        with blockbuster_ctx():
            for _ in range(2):
                async with raw.get(hub.url + RAW) as answer:
                    assert await answer.read() == BIG_BYTES
                hub.inject(wrong_bytes(offset=BIG.size + 1))


async def test_leaving_the_hub_cuts_whatever_still_runs(tmp_path: Path) -> None:
    big: Contents = {"model.safetensors": Generated(1, 64 << 20), "config.json": b"{}"}
    repo = make_repo("org/name", write_generated(big, tmp_path))
    loop = asyncio.get_running_loop()
    async with TestHub([repo], cdn=False) as hub:
        hub.inject(stall(0, path="config.json"), delay_first_byte(3600, route="api"))
        host, port = hub.url[7:].split(":")
        writers = []
        for path in (RAW, RAW.replace("model.safetensors", "config.json"), "/api/models/org/name"):
            _, writer = await asyncio.open_connection(host, int(port), limit=1024)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            writers.append(writer)
        async with asyncio.timeout(20):
            while len(hub.stats.requests) < 3 or hub.stats.open_bodies < 2:
                await asyncio.sleep(0)
        started = loop.time()
    assert loop.time() - started < 2
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)  # lets the aborted transports close


async def test_generated_content_is_deterministic_and_has_no_equal_pages() -> None:
    again = read_range(Generated(7, BIG.size), 0, BIG.size)
    assert again == BIG_BYTES
    pages = [again[at : at + 4096] for at in range(0, BIG.size, 4096)]
    assert len(set(pages)) == len(pages)
    assert read_range(BIG, 1_048_000, 1_049_000) == BIG_BYTES[1_048_000:1_049_000]
