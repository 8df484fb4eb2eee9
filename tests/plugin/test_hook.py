"""The hook in a real client: downloads find their files placed; faults of the agent cost nothing but a line."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.hub import TestHub, make_repo
from tests.plugin.clients import User
from tests.plugin.standin import StandIn, stand_in

MODEL = "org/model"
FILES = {"config.json": b"{}", "sub/vocab.txt": b"words\n" * 10, "model.safetensors": os.urandom(3 << 20)}
DOWNLOAD = f"tell(snapshot_download({MODEL!r}))"
TOKENED = f"tell(hf_hub_download({MODEL!r}, 'config.json', token='hf_secret'))"


@pytest.fixture
async def hub() -> AsyncIterator[TestHub]:
    async with TestHub([make_repo(MODEL, FILES, xet=True)], cdn=False) as made:
        yield made


@pytest.fixture
async def agent(hub: TestHub, tmp_path: Path) -> AsyncIterator[StandIn]:
    async with stand_in(hub, tmp_path / "home") as made:
        yield made


@pytest.fixture
def python() -> Path:
    """Whose huggingface_hub it is; the conformance suite has others here."""
    return Path(sys.executable)


@pytest.fixture
def user(hub: TestHub, tmp_path: Path, python: Path) -> User:
    return User(tmp_path / "user", hub.url, tmp_path / "home", python=python)


def files_of(hub: TestHub) -> list[str]:
    return [seen.path for seen in hub.stats.requests if "/resolve/" in seen.path]


def whole(folder: str) -> None:
    assert {name: Path(folder, name).read_bytes() for name in FILES} == FILES


async def test_a_download_finds_its_files_placed(hub: TestHub, agent: StandIn, user: User) -> None:
    ran = await user.run(DOWNLOAD)
    whole(ran.told[0])
    assert agent.gets == []
    assert files_of(hub) == []
    assert sorted(message["path"] for message in agent.ensured) == sorted(FILES)
    assert {message["cache_dir"] for message in agent.ensured} == {str(user.cache)}
    assert ran.warnings == []


async def test_a_warm_cache_asks_the_agent_for_nothing_but_the_commit(agent: StandIn, user: User) -> None:
    await user.run(f"tell(hf_hub_download({MODEL!r}, 'config.json'))")
    agent.asked.clear()
    await user.run(f"tell(hf_hub_download({MODEL!r}, 'config.json'))")
    assert agent.asked == [f"HEAD /{MODEL}/resolve/main/config.json"]


async def test_the_callers_token_reaches_the_agent(agent: StandIn, user: User) -> None:
    await user.run(TOKENED)
    assert agent.ensured[0]["token"] == "hf_secret"
    assert agent.tokens == {"Bearer hf_secret"}


async def test_who_only_looks_starts_nothing(agent: StandIn, user: User) -> None:
    code = f"""
tell(file_exists({MODEL!r}, 'model.safetensors'), file_exists({MODEL!r}, 'none'))
tell(get_hf_file_metadata(hf_hub_url({MODEL!r}, 'model.safetensors')).size)
if huggingface_hub.__version__ >= "1":
    hf_hub_download({MODEL!r}, 'model.safetensors', dry_run=True)
    snapshot_download({MODEL!r}, dry_run=True)
"""
    ran = await user.run(code)
    assert ran.told == [[True, False], 3 << 20]
    assert agent.ensured == []
    assert agent.gets == []


async def test_a_moved_branch_brings_the_new_file(hub: TestHub, agent: StandIn, user: User) -> None:
    await user.run(DOWNLOAD)
    hub.state.repos["model", MODEL].add_commit({"config.json": b"{2}"})
    agent.ensured.clear()
    ran = await user.run(f"tell(open(hf_hub_download({MODEL!r}, 'config.json')).read())")
    assert ran.told == ["{2}"]
    assert [message["path"] for message in agent.ensured] == ["config.json"]
    assert agent.gets == []


async def test_a_folder_outside_the_cache_is_filled_through_the_socket(agent: StandIn, user: User) -> None:
    ran = await user.run(f"tell(snapshot_download({MODEL!r}, local_dir='here'))")
    whole(ran.told[0])
    assert len(agent.gets) == len(FILES)
    assert agent.ensured == []


async def test_a_cache_folder_of_the_call_is_the_one_that_is_filled(agent: StandIn, user: User) -> None:
    ran = await user.run(f"tell(snapshot_download({MODEL!r}, cache_dir=os.path.abspath('other')))")
    whole(ran.told[0])
    assert agent.gets == []
    assert {message["cache_dir"] for message in agent.ensured} == {str(user.base / "other")}


async def test_missing_files_and_repos_are_what_the_hub_says(agent: StandIn, user: User) -> None:
    code = """
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
for kind, name in ((EntryNotFoundError, "org/model"), (RepositoryNotFoundError, "org/none")):
    try: hf_hub_download(name, "nothing.bin")
    except kind: tell("right")
"""
    assert (await user.run(code)).told == ["right", "right"]


async def test_what_writes_or_is_none_of_ours_goes_to_the_hub(hub: TestHub, agent: StandIn, user: User) -> None:
    code = f"""
from huggingface_hub import get_session, constants
s = get_session()
tell([s.request(m, constants.ENDPOINT + p).status_code for m, p in (
    ("DELETE", "/api/repos/delete"), ("GET", "/api/whoami-v2"), ("GET", "/api/models/{MODEL}/xet-write-token/main"))])
"""
    await user.run(code)
    assert agent.asked == []
    assert len([seen for seen in hub.stats.requests if "harness" not in seen.path]) == 3


async def test_xet_is_off_while_the_agent_answers_and_back_when_it_is_not(agent: StandIn, user: User) -> None:
    code = f"""
hf_hub_download({MODEL!r}, 'config.json'); tell(getattr(constants, "HF_HUB_DISABLE_XET", True))
sys.modules["huggingface_hub.utils._http"].edgecdn.fall_open(OSError("test"))
tell(getattr(constants, "HF_HUB_DISABLE_XET", os.environ.get("HF_HUB_DISABLE_XET") == "1"))  # 0.30.0 knows no Xet
"""
    assert (await user.run(code)).told == [True, False]
    assert (await user.run(code, HF_HUB_DISABLE_XET="1")).told == [True, True]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["silent", "broken", "old", "gone"])
async def test_an_agent_of_no_use_costs_a_line(hub: TestHub, agent: StandIn, user: User, mode: str) -> None:
    agent.mode = mode
    hub.state.repos["model", MODEL].xet = False
    ran = await user.run(f"""
import time
began = time.monotonic()
tell(snapshot_download({MODEL!r}))
tell(time.monotonic() - began)
""")
    whole(ran.told[0])
    assert len(ran.warnings) == 1, ran.err
    assert ran.told[1] < 20
    assert len(agent.asked) <= 20


async def test_a_hung_agent_costs_its_second_once(hub: TestHub, agent: StandIn, user: User) -> None:
    agent.mode = "silent"
    hub.state.repos["model", MODEL].xet = False
    ran = await user.run(f"""
hf_hub_download({MODEL!r}, 'config.json')
sys.modules["huggingface_hub.utils._http"].edgecdn._down_until = 0.0  # half a minute later
sys.modules["huggingface_hub.utils._http"].edgecdn._look_at = 0.0
tell(hf_hub_download({MODEL!r}, 'sub/vocab.txt'))
""")
    assert Path(ran.told[0]).read_bytes() == FILES["sub/vocab.txt"]
    assert agent.asked == ["POST /edgecdn/v1/ensure", "GET /healthz"]


async def test_an_absent_agent_is_not_missed(hub: TestHub, agent: StandIn, user: User) -> None:
    agent.vanish()
    hub.state.repos["model", MODEL].xet = False
    ran = await user.run(DOWNLOAD)
    whole(ran.told[0])
    assert ran.err == ""
    assert agent.asked == []


async def test_an_agent_of_another_hub_is_left_alone(hub: TestHub, agent: StandIn, user: User) -> None:
    agent.announce(hub_endpoints=["https://elsewhere.example"])
    hub.state.repos["model", MODEL].xet = False
    ran = await user.run(DOWNLOAD)
    whole(ran.told[0])
    assert agent.asked == []
    (warning,) = ran.warnings
    assert f"config set hub.endpoints {hub.url} https://elsewhere.example" in warning
    assert "unset HF_ENDPOINT" in warning


async def test_what_goes_by_the_gateway_anyway_is_not_warned_of(hub: TestHub, agent: StandIn, user: User) -> None:
    agent.announce(hub_endpoints=["https://elsewhere.example"])
    gateway = f"http://{agent.address}"
    ran = await user.run(f"tell(hf_hub_download({MODEL!r}, 'config.json'))", HF_ENDPOINT=gateway)
    assert Path(ran.told[0]).read_bytes() == FILES["config.json"]
    assert ran.warnings == []


async def test_what_the_agent_could_not_bring_is_told_once(hub: TestHub, agent: StandIn, user: User) -> None:
    agent.mode = "full"
    hub.state.repos["model", MODEL].xet = False
    ran = await user.run(DOWNLOAD)
    whole(ran.told[0])
    (warning,) = ran.warnings
    assert "Not enough space in /x. Free some." in warning


@pytest.mark.parametrize("mode", ["gone", "later"])
async def test_an_agent_that_comes_back_goes_on(hub: TestHub, agent: StandIn, user: User, mode: str) -> None:
    agent.mode, agent.late_polls = "late", 10**6
    patient = "import edgecdn_hook; edgecdn_hook.AWAY_S = 60\n"  # this machine may be slow
    process = await user.start(patient + DOWNLOAD)
    async with asyncio.timeout(60):
        while len(agent.ensured) < 6:
            await asyncio.sleep(0.02)
    agent.mode = mode
    agent.vanish()
    async with stand_in(hub, agent.home) as other:
        ran = await user.finish(process)
        whole(ran.told[0])
        assert other.ensured
        assert other.gets == []
    assert ran.warnings == []
    assert files_of(hub) == []


async def test_one_that_only_says_that_it_stops_is_left(hub: TestHub, agent: StandIn, user: User) -> None:
    agent.mode = "later"
    hub.state.repos["model", MODEL].xet = False
    ran = await user.run(DOWNLOAD)
    whole(ran.told[0])
    assert len(ran.warnings) == 1


async def test_one_that_dies_in_the_middle_is_replaced_by_the_hub(hub: TestHub, agent: StandIn, user: User) -> None:
    agent.mode, agent.late_polls = "late", 10**6
    hub.state.repos["model", MODEL].xet = False
    process = await user.start(DOWNLOAD)
    async with asyncio.timeout(60):
        while len(agent.ensured) < 6:
            await asyncio.sleep(0.02)
    agent.mode = "gone"
    agent.vanish()
    ran = await user.finish(process)
    whole(ran.told[0])
    assert len(ran.warnings) == 1


async def test_a_body_that_ends_early_is_gone_on_with(hub: TestHub, agent: StandIn, user: User) -> None:
    agent.mode = "cut"
    code = f"""
for attempt in range(3):  # 0.x resumes with the next call, later ones by themselves
    try: tell(snapshot_download({MODEL!r}, local_dir='here')); break
    except Exception: pass
"""
    process = await user.start(code)
    async with asyncio.timeout(60):
        while not any("model.safetensors" in line for line in agent.gets):
            await asyncio.sleep(0.02)
    agent.mode = "ok"
    whole((await user.finish(process)).told[0])


async def test_wrong_bytes_stop_the_load(hub: TestHub, agent: StandIn, user: User) -> None:
    agent.mode = "bad"
    ran = await user.tried(f"hf_hub_download({MODEL!r}, 'config.json')")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].endswith("IntegrityError: x is wrong. Do this.")
    assert files_of(hub) == []


async def test_what_the_agent_lets_pass_comes_from_the_hub(hub: TestHub, agent: StandIn, user: User) -> None:
    agent.mode = "pass"
    hub.state.repos["model", MODEL].xet = False
    ran = await user.run(DOWNLOAD)
    whole(ran.told[0])
    assert ran.warnings == []
    assert agent.gets == []


async def test_progress_is_shown_as_the_library_shows_it(agent: StandIn, user: User) -> None:
    agent.mode, agent.late_polls = "late", 12
    shown = await user.run(
        f"hf_hub_download({MODEL!r}, 'sub/vocab.txt')", HF_HUB_DISABLE_PROGRESS_BARS="0", TQDM_POSITION="-1"
    )
    assert "sub/vocab.txt:" in shown.err
    agent.late_polls = 12
    quiet = await user.run(f"hf_hub_download({MODEL!r}, 'config.json')")
    assert quiet.err == ""


async def test_a_factory_of_the_users_own_wins(hub: TestHub, agent: StandIn, user: User) -> None:
    code = """
if hasattr(huggingface_hub, "configure_http_backend"):
    import requests
    huggingface_hub.configure_http_backend(requests.Session)
else:
    try: import httpx2 as httpx
    except ImportError: import httpx
    huggingface_hub.set_client_factory(lambda: httpx.Client(follow_redirects=True))
"""
    hub.state.repos["model", MODEL].xet = False
    ran = await user.run(code + DOWNLOAD)
    whole(ran.told[0])
    assert agent.asked == []


async def test_it_can_be_switched_off(hub: TestHub, agent: StandIn, user: User) -> None:
    hub.state.repos["model", MODEL].xet = False
    whole((await user.run(DOWNLOAD, EDGECDN_DISABLE="1")).told[0])
    assert agent.asked == []


async def test_the_async_client_asks_too(hub: TestHub, agent: StandIn, user: User) -> None:
    code = f"""
import asyncio
async def main():
    async with huggingface_hub.get_async_session() as client:
        got = await client.get(constants.ENDPOINT + "/api/models/{MODEL}")
        tell(got.json()["id"])
        async with client.stream("GET", constants.ENDPOINT + "/{MODEL}/resolve/main/model.safetensors") as got:
            tell(sum([len(chunk) async for chunk in got.aiter_bytes()]))
from huggingface_hub import constants
asyncio.run(main())
"""
    assert (await user.run(code)).told == [MODEL, 3 << 20]
    assert len(agent.gets) == 1
    agent.mode = "broken"
    hub.state.repos["model", MODEL].xet = False
    assert (await user.run(code)).told == [MODEL, 3 << 20]


async def test_paths_and_pages_come_by_the_agent(agent: StandIn, hub: TestHub, user: User) -> None:
    hub.state.page_size = 2
    code = f"""
api = HfApi()
tell([p.path for p in api.get_paths_info({MODEL!r}, ["config.json", "none"])])
tell(sorted(api.list_repo_files({MODEL!r})))
tell(api.list_repo_refs({MODEL!r}).branches[0].name)
"""
    ran = await user.run(code)
    assert ran.told == [["config.json"], sorted(FILES), "main"]
    assert sum("/tree/" in line for line in agent.asked) == 2


async def test_two_processes_want_the_same(agent: StandIn, user: User) -> None:
    started = [await user.start(DOWNLOAD) for _ in range(2)]
    for process in started:
        whole((await user.finish(process)).told[0])
    assert agent.gets == []


async def test_offline_the_lab_gives_a_model_where_that_is_allowed(hub: TestHub, agent: StandIn, user: User) -> None:
    agent.announce(offline_lan=True)
    one = f"tell(hf_hub_download({MODEL!r}, 'config.json'))"
    local = f"tell(hf_hub_download({MODEL!r}, 'sub/vocab.txt', local_files_only=True))"
    whole((await user.run(DOWNLOAD, HF_HUB_OFFLINE="1")).told[0])
    assert [message["path"] for message in agent.ensured] == [""]
    for number, code in enumerate((one, local)):
        other = User(user.base / str(number), hub.url, agent.home)
        ran = await other.run(code, HF_HUB_OFFLINE="1")
        assert Path(ran.told[0]).is_file()
    assert not hub.stats.requests


async def test_offline_is_offline_where_it_is_not(hub: TestHub, agent: StandIn, user: User) -> None:
    ran = await user.tried(DOWNLOAD, HF_HUB_OFFLINE="1")
    assert ran.code == 1
    assert agent.asked == []
    assert not hub.stats.requests


async def test_enabled_for_one_script(hub: TestHub, agent: StandIn, tmp_path: Path) -> None:
    user = User(tmp_path / "bare", hub.url, agent.home, hook=False)
    for first in ("", "import huggingface_hub.file_download\n"):
        agent.asked.clear()
        root = Path(__file__).resolve().parents[2]
        ran = await user.run(
            f"sys.path.insert(0, {str(root)!r})\n{first}import edgecdn.plugin\nassert edgecdn.plugin.enable()\n"
            f"tell(snapshot_download({MODEL!r}, cache_dir='c{len(first)}'))"
        )
        whole(ran.told[0])
        assert agent.ensured
        assert agent.gets == []
