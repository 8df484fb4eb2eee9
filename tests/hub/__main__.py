"""Run the test hub as a process of its own: python -m tests.hub --help."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import tempfile
from pathlib import Path

from tests.hub.content import Generated
from tests.hub.control import Control
from tests.hub.faults import Fault, slow_per_connection, slow_total, stall
from tests.hub.repos import HubRepo, make_repo, repo_from_directory, write_generated
from tests.hub.server import TestHub
from tests.hub.sizes import parse_size
from tests.hub.state import Signer


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=__doc__)
    add = parser.add_argument
    add("--dir", action="append", default=[], metavar="ORG/NAME=PATH", help="serve a folder")
    add("--generate", action="append", default=[], metavar="ORG/NAME=3x700MiB", help="make files")
    add("--scratch", type=Path, help="folder for generated files (default: temporary)")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0)
    add("--cdn", action=argparse.BooleanOptionalAction, default=True, help="redirect large files")
    add("--cdn-host", default="127.0.0.1")
    add("--modelscope", action="store_true", help="also speak the ModelScope API")
    add("--token", action="append", help="accepted token; reads everything")
    add("--private", action="append", default=[], metavar="ORG/NAME")
    add("--gated", action="append", default=[], metavar="ORG/NAME")
    add("--page-size", type=int, default=1000)
    add("--sign-lifetime", type=float, default=3600.0, metavar="SECONDS")
    add("--slow-per-connection", type=parse_size, metavar="BYTES_PER_S")
    add("--slow-total", type=parse_size, metavar="BYTES_PER_S")
    add("--stall-after", type=parse_size, metavar="BYTES")
    add("--fault", action="append", default=[], metavar="JSON", help="any other rule")
    add("--ready-file", type=Path, help="also write the ready line here")
    return parser


def build_repos(options: argparse.Namespace, scratch: Path) -> list[HubRepo]:
    """Make the repositories the options name."""
    repos = []
    for text in options.dir:
        repo_id, _, path = text.partition("=")
        repos.append(repo_from_directory(repo_id, Path(path)))
    for text in options.generate:
        repo_id, _, amount = text.partition("=")
        count, _, size = amount.partition("x")
        repos.append(_generated(repo_id, int(count), parse_size(size), scratch))
    for repo in repos:
        repo.private, repo.gated = repo.id in options.private, repo.id in options.gated
    return repos


def _generated(repo_id: str, count: int, size: int, scratch: Path) -> HubRepo:
    names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    shards = {name: Generated(number + 1, size) for number, name in enumerate(names)}
    config = json.dumps({"model_type": "generated", "shards": count}).encode()
    return make_repo(repo_id, {"config.json": config, **write_generated(shards, scratch)})


def build_faults(options: argparse.Namespace) -> list[Fault]:
    """Make the rules the options name; they slow or stall file bytes only."""
    faults = [Fault.from_json(json.loads(text)) for text in options.fault]
    for route in ("resolve", "cdn", "modelscope"):
        if options.slow_per_connection:
            faults.append(slow_per_connection(options.slow_per_connection, route=route))
        if options.stall_after is not None:
            faults.append(stall(options.stall_after, route=route))
    if options.slow_total:
        faults.append(slow_total(options.slow_total))
    return faults


async def serve(options: argparse.Namespace, scratch: Path) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    hub = TestHub(
        await asyncio.to_thread(build_repos, options, scratch),
        tokens=options.token,
        cdn=options.cdn,
        cdn_host=options.cdn_host,
        modelscope=options.modelscope,
        page_size=options.page_size,
        signer=Signer(options.sign_lifetime),
        faults=build_faults(options),
        host=options.host,
        port=options.port,
    )
    control = Control(hub)
    async with hub:
        await control.listener.start()
        announce(hub, control, options.ready_file)
        await stopped.wait()
        await control.listener.stop()


def announce(hub: TestHub, control: Control, ready_file: Path | None) -> None:
    """Print where the listeners are."""
    urls = {
        "url": hub.url,
        "cdn_url": hub.cdn_url,
        "modelscope_url": hub.modelscope_url,
        "control_url": control.listener.url,
    }
    line = json.dumps(urls)
    if ready_file is not None:
        partial = ready_file.with_name(ready_file.name + ".partial")
        partial.write_text(line + "\n")
        partial.replace(ready_file)
    print(line, flush=True)


def main() -> None:
    """Entry point."""
    options = build_parser().parse_args()
    if options.scratch is not None:
        asyncio.run(serve(options, options.scratch))
    else:
        with tempfile.TemporaryDirectory(prefix="test-hub-") as scratch:
            asyncio.run(serve(options, Path(scratch)))


if __name__ == "__main__":
    main()
