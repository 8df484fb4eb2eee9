"""A user's Python environment and the hook in it: which is meant, where its packages are, what of ours is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecdn.errors import BadInput
from edgecdn.plugin.bundle import MARKER, hook_source, pth_source

__all__ = ["Environment", "Installed", "examine", "find_python", "install", "installed", "remove"]

_MODULE, _PTH = "edgecdn_hook.py", "edgecdn_hook.pth"
_OLDEST = (3, 9)
_RUN_S = 30.0
"""An interpreter that does not start in this time (seconds), on a network disk too, is none."""

_TELL = """
import json, os, site, sys, sysconfig
try:
    from importlib.metadata import version
    hub = version("huggingface_hub")
except Exception:
    hub = ""
print("\\n" + json.dumps({
    "version": sys.version_info[:3], "prefix": sys.prefix, "packages": sysconfig.get_path("purelib"),
    "venv": sys.prefix != sys.base_prefix, "conda": os.path.isdir(os.path.join(sys.prefix, "conda-meta")),
    "managed": os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")),
    "user": site.getusersitepackages() if site.ENABLE_USER_SITE else "", "hub": hub}))
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python and where a module for it belongs. `kind`: venv, conda, system or user; `hub`: its huggingface_hub."""

    python: Path
    version: tuple[int, ...]
    kind: str
    packages: Path
    hub: str


@dataclass(frozen=True, slots=True)
class Installed:
    """The hook in an environment. `version` is empty where there is none; outdated: other than ours."""

    version: str
    outdated: bool


def find_python(given: str, environ: Mapping[str, str]) -> Path:
    """The interpreter that is meant: the one given (or an environment's folder), the active one, else our own.

    Raises BadInput.
    """
    origin = ""
    for name in () if given else ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if environ.get(name) and not given:
            given, origin = environ[name], name
    if not given:
        return Path(sys.executable)
    path = Path(given).expanduser().absolute()
    if path.is_dir():
        path = path / "bin" / "python"
    elif "/" not in given and not path.exists():
        path = Path(shutil.which(given) or path)
    if not os.access(path, os.X_OK):
        if origin:
            hint = f"`deactivate`, `unset {origin}` or activate another environment; or give one with --python."
            raise BadInput(f"there is no Python {path}; {origin} of this shell names {given}", hint=hint)
        raise BadInput(f"there is no Python {path}", hint="Give an interpreter or the folder of an environment.")
    return path


def examine(python: Path) -> Environment:
    """Ask the interpreter what it is. Raises BadInput where it is too old, or not ours to change."""
    told = _ask(python)
    version, user = tuple(told["version"]), told["user"]
    if version < _OLDEST:
        raise BadInput(f"{python} is Python {version[0]}.{version[1]}", hint="The hook needs 3.9 or newer.")
    own = told["venv"] or told["conda"]
    packages = Path(told["packages"])
    if own or (not told["managed"] and os.access(packages, os.W_OK)):
        kind = "venv" if told["venv"] else "conda" if told["conda"] else "system"
        return Environment(python, version, kind, packages, told["hub"])
    if not user:
        raise BadInput(
            f"{python} belongs to the system, and user packages are off",
            hint="Make an environment (`python -m venv DIR`) and give it: `edgecdn hook install --python DIR`.",
        )
    return Environment(python, version, "user", Path(user), told["hub"])


def install(environment: Environment) -> bool:
    """Put the hook in, or replace an older one; False where it was there. Raises BadInput where it cannot be."""
    module, pth = environment.packages / _MODULE, environment.packages / _PTH
    _refuse_foreign(module, pth)
    if installed(environment) == Installed(_version(hook_source()), outdated=False):
        return False
    try:
        environment.packages.mkdir(parents=True, exist_ok=True)
        _write(module, hook_source())
        _run(environment.python, "-m", "compileall", "-q", str(module))  # so that no start of it compiles
        _write(pth, pth_source())  # last: it never names what is not there
    except OSError as error:
        raise BadInput(
            f"{environment.packages} cannot be written ({error.strerror})", hint="Use an environment of your own."
        ) from error
    return True


def remove(environment: Environment) -> bool:
    """Take it out again; False where there was none. Raises BadInput for files of these names that are not ours."""
    module, pth = environment.packages / _MODULE, environment.packages / _PTH
    _refuse_foreign(module, pth)
    compiled = list((environment.packages / "__pycache__").glob("edgecdn_hook.*.pyc"))
    there = [path for path in (pth, module, *compiled) if path.exists()]
    for path in there:
        path.unlink()
    return bool(there)


def installed(environment: Environment) -> Installed:
    """What is there."""
    module, pth = _text(environment.packages / _MODULE), _text(environment.packages / _PTH)
    if not module.startswith(MARKER) or not pth.startswith(MARKER):
        return Installed("", outdated=False)
    return Installed(_version(module), outdated=(module, pth) != (hook_source(), pth_source()))


def _version(source: str) -> str:
    return source.splitlines()[0].removeprefix(MARKER).strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _write(path: Path, text: str) -> None:
    begun = path.with_name(f".{path.name}.{os.getpid():x}.tmp")
    try:
        begun.write_text(text, encoding="utf-8")
        begun.replace(path)
    finally:
        begun.unlink(missing_ok=True)


def _refuse_foreign(*paths: Path) -> None:
    for path in paths:
        if path.exists() and not _text(path).startswith(MARKER):
            raise BadInput(f"{path} is not a file of edgecdn", hint="Move it away, then run this again.")


def _ask(python: Path) -> dict[str, Any]:
    said = _run(python, "-c", _TELL)
    try:
        told = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        raise BadInput(f"{python} is no Python", hint="Give an interpreter or the folder of an environment.") from None
    assert isinstance(told, dict)
    return told


def _run(python: Path, *arguments: str) -> str:
    """As its user would run it, from a folder in which nothing lies; the hook itself is off."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter the user named
            [str(python), *arguments], env=environ | {"EDGECDN_DISABLE": "1"}, cwd="/", stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=_RUN_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"{python} does not run ({error})", hint="Give another with --python.") from error
    return done.stdout
