"""The systemd user unit that runs the agent while its user is there (or always, with lingering)."""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgecdn.cache.safedir import disk_errors
from edgecdn.errors import BadInput, SystemFailed

__all__ = ["UNIT", "install_unit", "is_lingering", "remove_unit", "unit_path", "unit_text"]

UNIT = "edgecdn.service"
_MARK = "# Made by `edgecdn agent install`: "
_LIMIT_S = 30.0
_PASSED_ON = ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")
"""What a shell has and a unit has not, and where the cache is. Never a token: the unit is no place for one."""

_NO_SYSTEMD = (
    "Start it where your session starts (`edgecdn agent start` in ~/.profile), or from cron: "
    "`@reboot edgecdn agent start`."
)


def unit_path(environ: Mapping[str, str]) -> Path:
    """Where the user's units are."""
    base = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser().absolute() / "systemd" / "user" / UNIT


def unit_text(command: Sequence[str], home: Path, environ: Mapping[str, str]) -> str:
    """The unit, with a first line that tells later whether somebody has changed it."""
    passed = {"EDGECDN_HOME": str(home)} | {
        name: value
        for name, value in sorted(environ.items())
        if name in _PASSED_ON or (name.startswith("EDGECDN_") and "SECRET" not in name and name != "EDGECDN_CRASH")
    }
    lines = [
        "[Unit]",
        "Description=edgecdn agent: shares verified model files with this lab",
        "",
        "[Service]",
        "Type=exec",
        "ExecStart=" + " ".join(_quoted(part).replace("$", "$$") for part in command),
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in passed.items()),
        "Restart=on-failure",
        "RestartSec=5",
        "# Settings that are wrong do not get right by trying again.",
        "RestartPreventExitStatus=2",
        "TimeoutStopSec=10",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    body = "\n".join(lines) + "\n"
    return f"{_MARK}{_digest(body)}\n{body}"


def install_unit(path: Path, text: str, *, start: bool, force: bool = False) -> Path | None:
    """Write, enable and start it; returns where a unit that somebody had changed was kept.

    Raises SystemFailed without systemctl or where that fails, BadInput for a changed unit without `force`.
    """
    systemctl = _systemctl()
    kept = None
    if _is_changed(path):
        if not force:
            raise BadInput(f"{path} was changed by somebody", hint="Add --force to replace it; a copy is kept.")
        kept = path.with_name(UNIT + ".kept")
        path.replace(kept)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    later = f"The unit is {path}. In a session with a user manager: systemctl --user enable --now {UNIT}. {_NO_SYSTEMD}"
    _run(systemctl, "daemon-reload", hint=later)
    _run(systemctl, "enable", *(["--now"] if start else []), UNIT, hint=later)
    return kept


def remove_unit(path: Path, *, force: bool = False) -> bool:
    """Stop it and take it away; False when there is none."""
    if not path.exists():
        return False
    if _is_changed(path) and not force:
        raise BadInput(f"{path} was changed by somebody", hint="Add --force to remove it all the same.")
    by_hand = f"Run it again in a session with a user manager; or by hand: `edgecdn agent stop`, then rm {path}."
    systemctl = _systemctl(by_hand)
    _run(systemctl, "disable", "--now", UNIT, hint=by_hand)
    path.unlink()
    _run(systemctl, "daemon-reload", hint=by_hand)
    return True


def is_lingering() -> bool:
    """Whether this user's units run while the user is not logged in."""
    return Path("/var/lib/systemd/linger", getpass.getuser()).exists()


def _is_changed(path: Path) -> bool:
    """Whether what is there is not as an install of ours left it."""
    try:
        first, _, body = path.read_text(encoding="utf-8").partition("\n")
    except FileNotFoundError:
        return False
    except UnicodeDecodeError:
        return True
    return first != _MARK + _digest(body)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _quoted(part: str) -> str:
    """As systemd reads it back, specifiers included."""
    return '"' + part.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n") + '"'


def _systemctl(hint: str = _NO_SYSTEMD) -> str:
    found = shutil.which("systemctl")
    if found is None:
        raise SystemFailed("there is no systemctl on this machine", hint=hint)
    return found


def _run(systemctl: str, *arguments: str, hint: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - found on the user's own PATH
            [systemctl, "--user", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            stdin=subprocess.DEVNULL,
            env=dict(os.environ),
        )
    except subprocess.TimeoutExpired as error:
        raise SystemFailed(f"systemctl --user {arguments[0]} does not end", hint=hint) from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"code {done.returncode}").splitlines()[0]
        raise SystemFailed(f"systemctl --user {arguments[0]}: {said}", hint=hint)
