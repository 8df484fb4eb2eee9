"""Everything that can go wrong, as users see it: one sentence what, one what to do, an exit code.

Every error edgecdn raises on purpose derives from `EdgecdnError`. A class carries its message
template, its hint and its exit code; the CLI prints them, the docs' table is made from them, and
a test audits that none is missing. Where Python has a familiar type for the same condition, the
class inherits it too, so that an `except FileNotFoundError` written before edgecdn still works.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AccessDenied",
    "AgentHangs",
    "AgentNotRunning",
    "AgentRunning",
    "AmbiguousName",
    "BadInput",
    "CacheRefused",
    "EdgecdnError",
    "FileMissing",
    "GatedRepo",
    "GoesOn",
    "HomeFull",
    "HomeReadOnly",
    "IntegrityFailure",
    "Interrupted",
    "ManifestRefused",
    "NoSpace",
    "NothingMatched",
    "Pinned",
    "ReadOnlyStore",
    "RepoMissing",
    "RevisionMissing",
    "SettingsInvalid",
    "SystemFailed",
    "Unreachable",
]


class EdgecdnError(Exception):
    """Root of all errors; `exit_code` is what the command line returns for it."""

    template: ClassVar[str] = "{detail}"
    hint: ClassVar[str] = "Run the command again with --verbose and read the log."
    exit_code: ClassVar[int] = 1

    def __init__(self, detail: str = "", *, hint: str | None = None, **fields: object) -> None:
        self.fields = {"detail": detail, **fields}
        self.message = self.template.format_map(self.fields)
        self.remedy = self.hint.format_map(self.fields) if hint is None else hint
        super().__init__(self.message)


class BadInput(EdgecdnError, ValueError):
    """Text from outside that is not what it should be: a name, a path, a digest, a number."""

    template = "{detail}."
    hint = "See `edgecdn COMMAND --help` for the accepted forms."
    exit_code = 2


class SettingsInvalid(EdgecdnError, ValueError):
    """One or more settings are wrong; all of them are listed at once."""

    template = "{detail}"
    hint = "Correct them with `edgecdn config set NAME VALUE` or in the environment; `edgecdn config show` lists all."
    exit_code = 2


class AmbiguousName(EdgecdnError, LookupError):
    """A short name that stands for several repos."""

    template = "'{name}' could be any of: {candidates}."
    hint = "Type one of them in full, or set your own: `edgecdn config set aliases.{name} OWNER/NAME`."
    exit_code = 2


class Pinned(EdgecdnError):
    """The user pinned what they now want removed."""

    template = "{name} is pinned."
    hint = "Run `edgecdn unpin {name}` first."
    exit_code = 2


class RepoMissing(EdgecdnError, LookupError):
    """No hub knows the repo (or the token may not see it: hubs answer both alike)."""

    template = "There is no {type} '{name}' on {where}.{nearest}"
    hint = "Check the spelling; if the repo is private, log in with `hf auth login` first."
    exit_code = 3


class RevisionMissing(EdgecdnError, LookupError):
    """The repo exists, the branch, tag or commit does not."""

    template = "{name} has no branch, tag or commit '{revision}'.{nearest}"
    hint = "Leave `@{revision}` out for the default branch, or pick one that exists."
    exit_code = 3


class FileMissing(EdgecdnError, FileNotFoundError):
    """A repo is not in the local cache."""

    template = "{detail}"
    hint = "`edgecdn ls` lists what is here; `edgecdn fetch MODEL` brings more."
    exit_code = 3


class NothingMatched(EdgecdnError, FileNotFoundError):
    """The patterns leave no file of the repo."""

    template = "No file of {name} matches {patterns}.{nearest}"
    hint = "Quote the pattern ('*.json'), or leave it out; `--all-formats` takes every file."
    exit_code = 3


class AccessDenied(EdgecdnError, PermissionError):
    """The hub knows the repo and refuses this user."""

    template = "{where} refuses access to {name}{reason}."
    hint = "Log in with `hf auth login` (or set HF_TOKEN) as a user who may read it."
    exit_code = 4


class GatedRepo(AccessDenied):
    """The repo's licence must be accepted on its page first."""

    template = "{name} is gated: its licence must be accepted before files can be fetched."
    hint = "Accept it at {page} while logged in, then `hf auth login` here and fetch again."


class IntegrityFailure(EdgecdnError):
    """No source gave the right bytes; nothing of the file was published."""

    template = "{path} could not be verified: {detail}."
    hint = (
        "Nothing wrong was published. Try again later or name another hub: `edgecdn config set hub.endpoints URL,URL`."
    )
    exit_code = 5


class ManifestRefused(EdgecdnError, ValueError):
    """A hub's listing is hostile or broken: paths that escape, duplicates, impossible sizes."""

    template = "The listing of {name} from {where} is refused: {detail}."
    hint = "Report it to the hub; `edgecdn mirrors` shows whether another endpoint answers better."
    exit_code = 5


class Unreachable(EdgecdnError, ConnectionError):
    """No source answers."""

    template = "No source is reachable: {detail}."
    hint = "Check the network (`edgecdn doctor`), then run the same command again: it goes on where it stopped."
    exit_code = 6


class NoSpace(EdgecdnError, OSError):
    """The disk cannot take what is asked for."""

    template = "Not enough space in {where}: {detail}."
    hint = (
        "Free some (`edgecdn gc`, `edgecdn ls`), or use another disk (`edgecdn config set cache.dir DIR`), "
        "then run the same command again."
    )
    exit_code = 7


class HomeFull(NoSpace):
    """The disk of the home is full: nothing can be remembered, no fetch be begun."""

    template = "Not enough space in edgecdn's home, {where}: {detail}."
    hint = "Free some on its disk, or put the home on another: EDGECDN_HOME=DIR."


class ReadOnlyStore(EdgecdnError, OSError):
    """The cache cannot be written: read-only file system or missing rights."""

    template = "The cache at {where} cannot be written: {detail}."
    hint = (
        "What is there already can still be read. Make it writable, or use another: `edgecdn config set cache.dir DIR`."
    )
    exit_code = 7


class HomeReadOnly(ReadOnlyStore):
    """The home cannot be written: settings, catalog, journals and the agent's own files are kept there."""

    template = "edgecdn's home, {where}, cannot be written: {detail}."
    hint = "Make it writable for this user, or use another home: EDGECDN_HOME=DIR."


class CacheRefused(EdgecdnError, OSError):
    """Something in the cache would lead a write or a read outside of it."""

    template = "{where} is refused: {detail}."
    hint = "Somebody or something placed it there; look at it, move it away, and run the command again."
    exit_code = 5


class SystemFailed(EdgecdnError, OSError):
    """The operating system refused something for a reason that has no error of its own here."""

    template = "The system refused: {detail}."
    hint = "`edgecdn doctor` looks at disk, limits and cache."
    exit_code = 1


class AgentNotRunning(EdgecdnError, ConnectionError):
    """A command needs the agent and it does not answer."""

    template = "The agent is not running or does not answer{detail}."
    hint = "Start it with `edgecdn agent start`."
    exit_code = 8


class AgentHangs(AgentNotRunning):
    """An agent is there, by the lock it holds, and says nothing."""

    template = "The agent (process {pid}) hangs{detail}."
    hint = "End it: `edgecdn agent stop`, and if that fails: kill -9 {pid}. Then `edgecdn agent start`."


class AgentRunning(EdgecdnError):
    """One home is served by one agent, and it has one."""

    template = "Another agent already serves {where} (process {pid})."
    hint = "Use that one, stop it with `edgecdn agent stop`, or give this one its own home: EDGECDN_HOME=DIR."
    exit_code = 1


class Interrupted(EdgecdnError):
    """The user stopped the command."""

    template = "Stopped.{detail}"
    hint = "Run the same command again: it goes on where it stopped."
    exit_code = 130


class GoesOn(Interrupted):
    """The user stopped the command, but not the fetch: the agent was told to keep it, or others wait for it."""

    template = "Not waiting any more.{detail} The agent goes on with the fetch."
    hint = "`edgecdn top` shows it; the same command waits for it again, `edgecdn cancel MODEL` stops it."
