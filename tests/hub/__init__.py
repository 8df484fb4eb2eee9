"""A small, fast model hub for tests, demonstrations and measurements."""

from tests.hub.content import Generated, HubFile
from tests.hub.faults import (
    Fault,
    Kind,
    close_early,
    delay_first_byte,
    dry_up,
    redirect_to,
    reset,
    slow_per_connection,
    slow_total,
    stall,
    status,
    wrong_bytes,
)
from tests.hub.modelscope import Quirks
from tests.hub.process import HubProcess
from tests.hub.repos import (
    Commit,
    HubRepo,
    make_repo,
    many_files,
    repo_from_directory,
    write_generated,
)
from tests.hub.server import TestHub
from tests.hub.state import Signer
from tests.hub.stats import Seen, Stats

__all__ = [
    "Commit",
    "Fault",
    "Generated",
    "HubFile",
    "HubProcess",
    "HubRepo",
    "Kind",
    "Quirks",
    "Seen",
    "Signer",
    "Stats",
    "TestHub",
    "close_early",
    "delay_first_byte",
    "dry_up",
    "make_repo",
    "many_files",
    "redirect_to",
    "repo_from_directory",
    "reset",
    "slow_per_connection",
    "slow_total",
    "stall",
    "status",
    "write_generated",
    "wrong_bytes",
]
