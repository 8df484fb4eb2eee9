"""RepoPath: a file's path inside a repo, parsed so that it cannot leave its base. Pure; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from edgecdn.errors import BadInput

__all__ = ["MAX_COMPONENT_BYTES", "MAX_PATH_BYTES", "RepoPath"]

MAX_PATH_BYTES = 1024
"""Longest path taken from a listing, bytes of UTF-8: far above real repos, far below PATH_MAX (4096)."""

MAX_COMPONENT_BYTES = 255
"""Longest single name, bytes of UTF-8: NAME_MAX of Linux file systems."""

_REFUSED_CHARACTERS = frozenset("\\;")
"""Separators on other systems and in URL parameters; a hub name never needs them."""


@dataclass(frozen=True, slots=True, order=True)
class RepoPath:
    """A relative path of safe components: joined to a base, it stays below that base."""

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> RepoPath:
        r"""Parse `a/b/c.json`.

        Raises BadInput for an empty, absolute or over-long path, for `.`, `..` and empty
        components (also percent-encoded ones), for control characters, `\`, `;`, and for text
        that is not encodable as UTF-8.
        """
        try:
            length = len(text.encode())
        except UnicodeEncodeError as error:
            raise BadInput(f"path {text[:80]!r} is not valid Unicode") from error
        if not 0 < length <= MAX_PATH_BYTES:
            raise BadInput(f"a path of {length} bytes is not accepted (1 to {MAX_PATH_BYTES})")
        parts = tuple(text.split("/"))
        for part in parts:
            _check_component(part, text)
        return cls(parts)

    @property
    def name(self) -> str:
        """The last component."""
        return self.parts[-1]

    @property
    def parents(self) -> tuple[str, ...]:
        """The components before the last."""
        return self.parts[:-1]

    def __str__(self) -> str:
        return "/".join(self.parts)


def _check_component(part: str, whole: str) -> None:
    if part in ("", ".", "..") or unquote(part) in ("", ".", ".."):
        raise BadInput(f"path {whole[:80]!r} has the component {part!r}")
    if len(part.encode()) > MAX_COMPONENT_BYTES:
        raise BadInput(f"path {whole[:80]!r} has a component of more than {MAX_COMPONENT_BYTES} bytes")
    if _REFUSED_CHARACTERS & set(part) or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in part):
        raise BadInput(f"path {whole[:80]!r} has a character that is not accepted in file names")
    if "/" in unquote(part) or "\0" in unquote(part):
        raise BadInput(f"path {whole[:80]!r} hides a separator by percent-encoding")
