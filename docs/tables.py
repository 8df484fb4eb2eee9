"""Writes `docs/settings.md` and `docs/errors.md` from the code: `python -m docs.tables`. A test compares them."""

from __future__ import annotations

from pathlib import Path

from edgecdn import errors
from edgecdn.settings import settings_table

__all__ = ["errors_page", "settings_page"]

_CODES = {
    1: "a finding of `doctor`, or an unexpected failure",
    2: "usage or settings",
    3: "no such repo, revision or file",
    4: "access denied (gated, private)",
    5: "integrity",
    6: "no source reachable",
    7: "no space, or the store cannot be written",
    8: "the agent is not running or not answering",
    130: "interrupted",
}


def settings_page() -> str:
    """The page of settings."""
    lines = [
        "# Settings",
        "",
        "Made by `python -m docs.tables`. Environment over `config.toml` over default; lists in the environment are",
        "comma-separated. `edgecdn config show` tells each value and where it comes from.",
        "",
        "| setting | environment | unit | what |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{s.name}` | `{s.variable}` | {s.unit} | {s.help} |" for s in settings_table()]
    lines += [
        "",
        "`EDGECDN_HOME` (default `~/.local/share/edgecdn`) is the folder of one user's configuration and state.",
    ]
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """The page of errors and exit codes."""
    lines = [
        "# Errors and exit codes",
        "",
        "Made by `python -m docs.tables`.",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | done |",
    ]
    lines += [f"| {code} | {meaning} |" for code, meaning in _CODES.items()]
    lines += ["", "| error | code | says | and what to do |", "|---|---|---|---|"]
    for name in errors.__all__:
        kind = getattr(errors, name)
        if kind is not errors.EdgecdnError:
            lines.append(f"| {name} | {kind.exit_code} | {kind.template} | {kind.hint} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "settings.md").write_text(settings_page(), encoding="utf-8")
    (here / "errors.md").write_text(errors_page(), encoding="utf-8")
