"""Rows 6, 40 to 45: peers that lie, rot or ask for what is not theirs; real agents, a process each, and real swarms."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from edgecdn.digest import Digest
from edgecdn.events import BytesDiscarded
from edgecdn.lan_wire import MOST_DIGESTS, BlobState, encode_have_answer
from edgecdn.piecetree import piece_bytes
from edgecdn_agent.swarm.session import Swarm
from tests.agent.agents import Agent, AgentLab, eventually, lab
from tests.agent.cache_machine import flip, tree_of
from tests.agent.hand_made import hand_made, lying_swarm, pretended_taker
from tests.agent.speaking_peer import until
from tests.faults.machine import contents, files_in
from tests.hub import Generated, HubRepo, TestHub, make_repo, status
from tests.hub.content import chunks_of

pytestmark = pytest.mark.timeout(180)

MIB = 1 << 20
SIZE = 12 * MIB
PIECE = piece_bytes(SIZE)
BIG = "m.safetensors"
BYTES = b"".join(chunks_of(Generated(41, SIZE)))
OTHERS = b"".join(chunks_of(Generated(42, SIZE)))


def _repo(name: str = "org/name") -> tuple[HubRepo, Digest]:
    repo = make_repo(name, {"config.json": b"{}", BIG: BYTES})
    return repo, Digest.parse(repo.commits[repo.main].files[BIG].sha256)


async def _holder(made: AgentLab, name: str, digest: Digest, **settings: str) -> Agent:
    """An agent that has the repo and gives it."""
    agent = await made.agent(name, **settings)
    await agent.fetch_here("org/name")
    await agent.gives(digest.hex)
    return agent


def _make_liar(agent: Agent, digest: Digest) -> Path:
    """Have a machine believe that another file's bytes, and tree, are those of `digest`. Its agent does not run."""
    path = agent.repo_dir() / "blobs" / digest.hex
    with path.open("r+b") as file:
        file.write(OTHERS)
    seen = path.stat()
    with sqlite3.connect(agent.home / "catalog.sqlite") as db:
        db.execute(
            "UPDATE verified SET mtime_ns = ?, inode = ? WHERE path = ?", (seen.st_mtime_ns, seen.st_ino, str(path))
        )
        db.execute("UPDATE trees SET layer = ? WHERE digest = ?", (tree_of(OTHERS).layer, digest.hex))
    db.close()
    return path


@pytest.mark.parametrize("rescuer", ["the hub", "another peer"])
async def test_40_a_false_tree_is_found_out_and_who_claimed_it_is_banned(tmp_path: Path, rescuer: str) -> None:
    """Every piece is right by the claimed tree: only the digest of the whole tells."""
    repo, digest = _repo()
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        liars = [await _holder(made, f"liar{n}", digest) for n in range(1 if rescuer == "the hub" else 2)]
        lying = []
        for liar in liars:
            await liar.stop_agent()
            lying.append(_make_liar(liar, digest))
        for liar in liars:
            await made.start(liar)
            await liar.gives(digest.hex)
            state = await liar.state(digest.hex)
            assert state is not None
            assert state.root == tree_of(OTHERS).root.hex()
        if rescuer != "the hub":
            await _holder(made, "honest", digest)
            hub.inject(status(503, route="cdn"))
        hub.stats.reset()
        taker = await made.agent("taker")
        await taker.knows(len(made.agents) - 1)
        fetched = await taker.fetch_here("org/name")
        assert files_in(fetched.path) == contents(repo)
        assert "false piece tree" in taker.log
        assert await taker.knows(len(made.agents) - 1 - len(liars)) < 5
        assert len(await taker.get("/edgecdn/v1/peers")) == len(made.agents) - 1 - len(liars), "banned"
        assert hub.stats.total <= (1.2 * SIZE if rescuer == "the hub" else 4000)
        for path in lying:
            path.write_bytes(BYTES)  # the oracle is for the honest


async def test_41_one_rotten_piece_of_the_only_holder(tmp_path: Path) -> None:
    repo, digest = _repo()
    tree = tree_of(BYTES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made, pretended_taker(made.others, digest, tree):
        holder = await _holder(made, "holder", digest)
        blob = holder.repo_dir() / "blobs" / digest.hex
        flip(blob, SIZE - 5 * PIECE)
        rotten = blob.read_bytes()
        taker = await made.agent("taker")
        await taker.knows(2)
        await _takes_from_a_rotten_one(taker, hub, repo)

        async def is_set_aside() -> bool:
            return not blob.exists() and any((holder.home / "quarantine").glob("*"))

        await eventually(is_set_aside, what="the rotten copy is set aside")
        assert [path.read_bytes() for path in (holder.home / "quarantine").iterdir()] == [rotten]
        assert await holder.state(digest.hex) is None
        assert "is withdrawn: a piece was wrong" in holder.log
        # and the holder gets it back from the one it gave it to
        await taker.gives(digest.hex)
        hub.stats.reset()
        again = await holder.fetch_here("org/name")
        assert files_in(again.path) == contents(repo)
        assert hub.stats.total == 0


async def test_41_one_rotten_piece_that_is_given_to_a_lone_taker(tmp_path: Path) -> None:
    """By HTTP: the piece is seen to be wrong before it is written, and the hub gives it."""
    repo, digest = _repo()
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        holder = await _holder(made, "holder", digest)
        flip(holder.repo_dir() / "blobs" / digest.hex, SIZE - 5 * PIECE)
        taker = await made.agent("taker")
        await taker.knows(1)
        await _takes_from_a_rotten_one(taker, hub, repo)
        (holder.repo_dir() / "blobs" / digest.hex).write_bytes(BYTES)  # the oracle is for sound disks


async def _takes_from_a_rotten_one(taker: Agent, hub: TestHub, repo: HubRepo) -> None:
    """All is right in the end, and next to nothing came twice."""
    hub.stats.reset()
    fetched = await taker.fetch_here("org/name")
    assert files_in(fetched.path) == contents(repo)
    assert fetched.bytes_by_source["lan"] + fetched.bytes_by_source["origin"] <= SIZE + MIB
    assert sum(e.count for e in taker.events if isinstance(e, BytesDiscarded)) <= MIB


async def test_42_one_that_gives_wrong_pieces_among_good_ones(tmp_path: Path) -> None:
    repo, digest = _repo()
    tree = tree_of(BYTES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made, pretended_taker(made.others, digest, tree):
        good = [made.machine(f"good{n}", limits_upload="2MB/s") for n in range(5)]
        for agent in good:
            await agent.fetch("org/name", hub)
        await asyncio.gather(*(agent.start_agent(peers=tuple(made.others)) for agent in good))
        await asyncio.gather(*(agent.gives(digest.hex) for agent in good))
        hub.stats.reset()
        async with (
            lying_swarm(digest, BYTES, OTHERS, tree, tmp_path / "lying") as port,
            hand_made(name="liar", fields={"swarm_port": port}) as liar,
        ):
            liar.states = {digest: BlobState(SIZE, root=tree.root.hex())}
            liar.trees = {digest: tree.layer}
            made.others.append(liar.address)
            taker = await made.agent("taker")
            await taker.knows(7)
            fetched = await taker.fetch_here("org/name")
        assert files_in(fetched.path) == contents(repo)
        assert hub.stats.total == 0
        assert fetched.bytes_by_source["lan"] == SIZE + 2
        assert "a peer gave wrong pieces" in taker.log
        assert "gave wrong pieces" in taker.said


async def test_42_one_that_gives_a_lone_taker_wrong_bytes(tmp_path: Path) -> None:
    """By HTTP, for a tree that is right: it is told apart by its first piece, and used no more."""
    repo, digest = _repo()
    tree = tree_of(BYTES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        await _holder(made, "good", digest)
        hub.stats.reset()
        async with hand_made(name="liar", fields={"swarm_port": 0}) as liar:
            liar.states = {digest: BlobState(SIZE, root=tree.root.hex())}
            liar.trees = {digest: tree.layer}
            liar.blobs = {digest: OTHERS}
            made.others.append(liar.address)
            taker = await made.agent("taker")
            await taker.knows(2)
            fetched = await taker.fetch_here("org/name")
        assert files_in(fetched.path) == contents(repo)
        assert "blob" in liar.requests
        assert hub.stats.total == 0
        assert fetched.bytes_by_source["lan"] == SIZE + 2
        assert "peer liar, m.safetensors: gave a piece" in taker.log


async def test_43_one_that_claims_all_and_gives_nothing(tmp_path: Path) -> None:
    repo, digest = _repo()
    tree = tree_of(BYTES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        server = await asyncio.start_server(_say_nothing, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, hand_made(name="silent", fields={"swarm_port": port}) as silent:
            silent.states = {digest: BlobState(SIZE, root=tree.root.hex())}
            silent.trees = {digest: tree.layer}
            taker = made.machine("taker")
            await taker.start_agent(peers=(silent.address,))
            await taker.knows(1)
            async with asyncio.timeout(30):
                fetched = await taker.fetch_here("org/name")
        assert files_in(fetched.path) == contents(repo)
        assert fetched.bytes_by_source["origin"] == SIZE + 2


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take what comes until the other side has enough."""
    with suppress(ConnectionError):
        while await reader.read(1 << 16):
            pass
    writer.close()


@pytest.mark.parametrize("why", ["private on the hub", "denied by its user"])
async def test_44_what_is_not_shared_is_as_if_it_were_not_there(tmp_path: Path, why: str) -> None:
    repo, digest = _repo()
    tree = tree_of(BYTES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made:
        agent = made.machine("holder")
        await agent.fetch("org/name", hub)
        repo.private = why == "private on the hub"
        await agent.start_agent(share_deny="" if repo.private else "org/*")
        await eventually(lambda: _asked(hub), what="the rule is known")
        absent = Digest.parse("ab" * 32)
        commit = "cd" * 20
        for path in ("/blobs/{}", "/trees/{}"):
            for method in ("GET", "HEAD"):
                assert await agent.ask(method, path.format(digest)) == await agent.ask(method, path.format(absent))
        assert await agent.ask("GET", f"/manifests/model/org/name/{repo.main}") == await agent.ask(
            "GET", f"/manifests/model/org/none/{commit}"
        )
        assert await agent.ask("GET", "/refs/model/org/name/main") == await agent.ask(
            "GET", "/refs/model/org/none/main"
        )
        assert await agent.state(digest.hex) is None
        # Who knows digest and tree from elsewhere gets nothing of the swarm either
        swarm = Swarm()
        await swarm.start("127.0.0.1", 0)
        partial = tmp_path / "partial"
        partial.write_bytes(bytes(SIZE))
        taking = swarm.download(digest, tree, partial, [False] * tree.pieces, lambda _: None, lambda _: None)
        taking.connect("127.0.0.1", int(agent.listener("swarm").rpartition(":")[2]))
        with pytest.raises(TimeoutError):
            await until(lambda: taking.have, 1.5)
        await swarm.close()


async def _asked(hub: TestHub) -> bool:
    """Whether the hub was asked, as a stranger would, who may have the repo."""
    return any(seen.path == "/api/models/org/name" and seen.authorization is None for seen in hub.stats.requests)


def _junk(digest: Digest) -> dict[str, bytes]:
    tree = tree_of(BYTES)
    many = {Digest.parse(f"{n:064x}"): BlobState(SIZE, root="ab" * 32) for n in range(MOST_DIGESTS + 1)}
    return {
        "no message": b"{" * 1000,
        "more blobs than anybody asked for": encode_have_answer(many),
        "nested": b"[" * 100_000,
        "a size that cannot be": encode_have_answer({digest: BlobState(1 << 60, root=tree.root.hex())}),
        "another size": encode_have_answer({digest: BlobState(SIZE + 1, root=tree.root.hex())}),
    }


@pytest.mark.parametrize("how", [*_junk(Digest.parse("ab" * 32)), "a layer too short", "a layer of others", "endless"])
async def test_6_and_45_what_cannot_be_meant_is_refused(tmp_path: Path, how: str) -> None:
    """Malformed claims and trees cost nothing but the asking; the hub gives all."""
    repo, digest = _repo()
    tree = tree_of(BYTES)
    async with TestHub([repo]) as hub, lab(tmp_path, hub) as made, hand_made(name="strange") as strange:
        strange.states = {digest: BlobState(SIZE, root=tree.root.hex())}
        strange.have_answer = _junk(digest).get(how)
        layers = {"a layer too short": tree.layer[:-32], "a layer of others": tree_of(OTHERS).layer}
        strange.trees = {digest: layers.get(how, tree.layer)}
        strange.endless_trees = how == "endless"
        taker = made.machine("taker")
        await taker.start_agent(peers=(strange.address,))
        await taker.knows(1)
        before = psutil.Process(taker.pid).memory_info().rss
        fetched = await taker.fetch_here("org/name")
        grown = psutil.Process(taker.pid).memory_info().rss - before
        assert files_in(fetched.path) == contents(repo)
        assert fetched.bytes_by_source["origin"] == SIZE + 2
        assert "Traceback" not in taker.log
        assert strange.sent_bytes <= 80 * MIB
        assert grown < (200 if how == "endless" else 80) * MIB
        assert "have" in strange.requests
