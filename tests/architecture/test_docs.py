"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from docs.tables import errors_page, settings_page
from edgecdn.cli.main import _COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_those_of_the_code() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()
    assert (ROOT / "docs" / "errors.md").read_text() == errors_page()


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in _COMMANDS if name not in readme] == []


def test_no_link_of_the_documentation_is_dead() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    dead = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert dead == []
