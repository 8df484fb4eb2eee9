"""What every script of the suite does: named steps, each with a result or an error's classes, one JSON line at the end.

Runs in the client's environment (Python 3.9 and newer), so it imports nothing but the standard library.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

_FOREIGN = ("builtins", "requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2")


class Steps:
    """`steps("name", function)` keeps what the function returns, or the classes of what it raises."""

    def __init__(self):
        self.results = {}

    def __call__(self, name, function):
        try:
            self.results[name] = function()
        except Exception as error:
            if "DEBUG" in os.environ:
                print(f"{name}: {error!r}", file=sys.stderr)
            self.results[name] = {"raised": classes(error)}

    def end(self):
        """Print all results."""
        print("\n" + json.dumps(self.results, default=str, sort_keys=True))


def classes(error):
    """The names that an `except` could have caught, but for those of the HTTP library."""
    return [one.__name__ for one in type(error).__mro__ if one.__module__.partition(".")[0] not in _FOREIGN[1:]]


def seen(path):
    """A file: its size and hash."""
    data = Path(path).read_bytes()
    return [len(data), hashlib.sha256(data).hexdigest()]


def below(folder):
    """A folder: every file by its relative path; links are followed, as readers do it."""
    base = Path(folder)
    found = {p.relative_to(base).as_posix(): seen(p) for p in base.rglob("*") if p.is_file()}
    return {name: value for name, value in found.items() if not name.startswith(".cache/")}


def cache():
    """The whole hub cache: links by target, files by content; without locks, and the tag that not all versions write."""
    base = Path(os.environ["HF_HOME"], "hub")
    found = {}
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base).as_posix()
        if name.startswith(".locks") or name == "CACHEDIR.TAG" or path.is_dir():
            continue
        if path.is_symlink():
            found[name] = ["link", str(path.readlink())]
        elif "/trees/" in name:
            found[name] = _tree(json.loads(path.read_text()))
        else:
            found[name] = seen(path)
    return found


def _tree(tree):
    """Without the Xet hashes: the gateway leaves them out on purpose."""
    for entry in tree.get("files", {}).values():
        entry.pop("xet_hash", None)
    return tree


def plain(value):
    """A client's object as JSON: its fields, without private ones and without Xet's."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if not str(key).startswith("xet")}
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if hasattr(value, "__dict__"):
        return plain({key: item for key, item in vars(value).items() if not key.startswith("_")})
    return str(value)


def relative(path):
    """A path below HF_HOME, as it would be on any machine."""
    return os.path.relpath(path, os.environ["HF_HOME"])
