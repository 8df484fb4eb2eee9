"""The agent's log: text or JSON lines, repeats kept quiet, tokens never.

Messages are constant with key=value beside them. What the last message of a logger said again goes to
debug. Tokens are taken out of the finished line, so that no path around the filter exists.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import IO

__all__ = ["JsonLines", "RepeatsToDebug", "TextLines", "configure_logs", "redact"]

_SECRETS = re.compile(
    r"""(?ix)
    (?P<kept> \b (?:proxy-)? authorization ["']? \s* [:=] \s* ["']? (?:bearer|basic|token)? \s*
            | \b bearer \s+ ["']?
            | \b (?:api[-_]?token | access[-_]?token | hf[-_]?token) ["']? \s* [:=] \s* ["']?
            | \b m_session_id = )
    (?P<secret> [^\s"',;]{4,} )
    | \b (?: hf | api_org ) _ [A-Za-z0-9]{6,}
    | hf_ [A-Za-z0-9]{20,}
    | \b ms- [0-9a-f]{8} (?: - [0-9a-f]{4} ){3} - [0-9a-f]{12}
    """
)
"""Hugging Face and ModelScope tokens by their form, anything else by where it stands."""

_REPEATS_S = 600.0
"""A repeated message is told again after so long (seconds): it is still so."""

_QUIET = (
    "aiohttp.access", "asyncio", "zeroconf", "watchfiles", "huggingface_hub",
    "httpx", "httpcore", "httpx2", "httpcore2", "urllib3",
)  # fmt: skip
"""Libraries whose debug and info lines tell nothing of ours (some log headers)."""


def redact(text: str) -> str:
    """The text without tokens."""
    return _SECRETS.sub(lambda found: (found["kept"] or "") + "[redacted]", text)


class TextLines(logging.Formatter):
    """A line for people: time, level, logger, message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object a line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if record.exc_info:
            fields["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


class RepeatsToDebug(logging.Filter):
    """What a logger said last and says again is of level debug; shown where debug is."""

    def __init__(self, shown_level: int) -> None:
        super().__init__()
        self._shown_level = shown_level
        self._last: dict[str, tuple[str, float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        before, told_at = self._last.get(record.name, ("", 0.0))
        if said == before and record.created - told_at < _REPEATS_S:
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
            return self._shown_level <= logging.DEBUG
        self._last[record.name] = (said, record.created)
        return True


def configure_logs(log_format: str = "text", *, verbose: bool = False, stream: IO[str] | None = None) -> None:
    """Set the process's logging up: `text` or `json` to stderr, our debug lines when `verbose`."""
    level = logging.DEBUG if verbose else logging.INFO
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    handler.addFilter(RepeatsToDebug(level))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)  # never debug for all: HTTP libraries log headers there
    for ours in ("edgecdn", "edgecdn_agent"):
        logging.getLogger(ours).setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
