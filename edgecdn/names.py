"""Names of repos, revisions and commits, and what a user types for them. Pure; no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from edgecdn.errors import BadInput

__all__ = ["CommitId", "ModelRef", "RepoId", "RepoType", "Revision"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,95}\Z")
"""The hub's rule for an owner and for a name: at most 96 characters, no leading `-` or `.`."""

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-+/@]{0,254}\Z")
"""Branch, tag or commit: git's ref names, narrowed to what is also a safe relative path."""

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_URL = re.compile(r"https?://[^/]+/(?P<path>.+?)(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#]+).*?)?/?(?:[?#].*)?\Z")


class RepoType(StrEnum):
    """What kind of repo; the value is the singular the user types."""

    MODEL = "model"
    DATASET = "dataset"
    SPACE = "space"

    @property
    def plural(self) -> str:
        """As in API paths and cache folder names: models, datasets, spaces."""
        return f"{self.value}s"


_PREFIXES = frozenset(t.plural for t in RepoType)


@dataclass(frozen=True, slots=True, order=True)
class RepoId:
    """A repo: type and `namespace/name` (old canonical repos have no namespace)."""

    type: RepoType
    name: str

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        prefixed = len(parts) == 2 and parts[0] in _PREFIXES  # `datasets/x` is the data set x, no model
        if len(parts) > 2 or prefixed or not all(_is_name(part) for part in parts):
            raise BadInput(f"{self.name[:120]!r} is not a repo name (OWNER/NAME, letters, digits, '-', '_', '.')")

    @classmethod
    def from_folder(cls, folder: str) -> RepoId:
        """The repo of a cache folder, `models--owner--name`; raises BadInput for any other name."""
        plural, _, rest = folder.partition("--")
        for repo_type in RepoType:
            if repo_type.plural == plural and rest:
                return cls(repo_type, rest.replace("--", "/", 1))
        raise BadInput(f"{folder[:120]!r} is not a repo folder of a hub cache")

    @property
    def folder(self) -> str:
        """Its folder in a Hugging Face cache: `models--owner--name`."""
        return "--".join((self.type.plural, *self.name.split("/")))

    @property
    def url_path(self) -> str:
        """Its path on a hub's pages: `owner/name`, `datasets/owner/name`."""
        return self.name if self.type is RepoType.MODEL else f"{self.type.plural}/{self.name}"

    def __str__(self) -> str:
        return self.url_path


@dataclass(frozen=True, slots=True)
class CommitId:
    """A git commit: 40 lower-case hex characters."""

    hex: str

    def __post_init__(self) -> None:
        if not _COMMIT.match(self.hex):
            raise BadInput(f"{self.hex[:80]!r} is not a commit id (40 lower-case hex characters)")

    def __str__(self) -> str:
        return self.hex


@dataclass(frozen=True, slots=True)
class Revision:
    """What the user typed after `@`: branch, tag or commit; safe as a relative path."""

    text: str

    def __post_init__(self) -> None:
        bad = ("..", "//", "/.", ".lock/", "@{")
        if (
            not _REVISION.match(self.text)
            or any(b in self.text for b in bad)
            or self.text.endswith(("/", ".", ".lock"))
        ):
            raise BadInput(f"{self.text[:120]!r} is not a branch, tag or commit")

    @property
    def commit(self) -> CommitId | None:
        """The commit, when the revision already is one."""
        return CommitId(self.text) if _COMMIT.match(self.text) else None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a user types to name something: `qwen-7b`, `org/name@rev`, `datasets/org/name`, a page's URL."""

    name: str
    type: RepoType | None
    revision: Revision | None

    @classmethod
    def parse(cls, text: str, type_: RepoType | None = None) -> ModelRef:
        """Parse the typed text; `type_` is what an option said (None: not said).

        Raises BadInput when it is no possible name, or when text and option contradict.
        """
        name, revision_text = _split(text.strip())
        prefixed = next((t for t in RepoType if name.startswith(f"{t.plural}/")), None)
        if prefixed:
            name = name.removeprefix(f"{prefixed.plural}/")
        if prefixed and type_ and prefixed is not type_:
            raise BadInput(f"{text!r} names a {prefixed}, the option says {type_}")
        RepoId(RepoType.MODEL, name)  # the form of a short name and of a repo name is the same
        return cls(name, prefixed or type_, Revision(revision_text) if revision_text is not None else None)

    @property
    def is_full(self) -> bool:
        """Whether it names a repo with its owner, so that no alias or search is needed."""
        return "/" in self.name

    def repo(self) -> RepoId:
        """The repo it names when taken literally."""
        return RepoId(self.type or RepoType.MODEL, self.name)


def _split(text: str) -> tuple[str, str | None]:
    match = _URL.match(text)
    if match:
        return match["path"], match["revision"]
    name, at, revision = text.partition("@")
    return name, revision if at else None


def _is_name(part: str) -> bool:
    return bool(_NAME.match(part)) and ".." not in part and "--" not in part and not part.endswith((".", "-", ".git"))
