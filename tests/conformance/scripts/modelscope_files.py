"""The ModelScope SDK: files and snapshots by every kind of revision it takes, and its command line.

1.37 and older speak https only, unless they are patched.
"""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

version = importlib.metadata.version("modelscope")
old = tuple(int(part) for part in version.split(".")[:2]) < (1, 38)
if old:
    os.environ["MODELSCOPE_DOMAIN"] = urlsplit(os.environ["MODELSCOPE_ENDPOINT"]).netloc

from modelscope import dataset_snapshot_download, model_file_download, snapshot_download  # noqa: E402

if old:
    for module in [one for name, one in sys.modules.items() if name.startswith("modelscope.hub")]:
        if hasattr(module, "MODELSCOPE_URL_SCHEME"):
            module.MODELSCOPE_URL_SCHEME = "http://"
from steps import Steps, below, seen  # noqa: E402

home = Path(os.environ["MODELSCOPE_CACHE"])
step = Steps()


def inside(path):
    return os.path.relpath(path, home)


def snapshot(name, repo, **more):
    def download():
        got = snapshot_download(repo, **more)
        return [inside(got), {k: v for k, v in below(got).items() if not k.startswith(".m")}]

    step(name, download)


def one(name, path, **more):
    def download():
        got = model_file_download("org/model", path, **more)
        return [inside(got), seen(got)]

    step(name, download)


def command():
    here = Path(sys.executable).parent
    done = subprocess.run(
        [str(here / "modelscope"), "download", "--model", "org/model", "--local_dir", str(home / "cli")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return [done.returncode, {k: v for k, v in below(home / "cli").items() if not k.startswith((".m", "._"))}]


step("version", lambda: version)
one("file", "config.json", revision="master")
one("large", "model.safetensors", revision="master")
one("of a tag", "config.json", revision="v1")
one("in a folder", "sub/dir/deep.txt", revision="master")
one("nothing", "not-there", revision="master")
one("no revision", "config.json", revision="nope")
snapshot("snapshot", "org/model")
snapshot("again", "org/model")
snapshot("some", "org/model", allow_patterns=["*.json"], local_dir=str(home / "some"))
snapshot("no repo", "org/none")
step(
    "data set",
    lambda: {k: v for k, v in below(dataset_snapshot_download("org/data")).items() if not k.startswith(".m")},
)
if not old:  # its command knows no http
    step("command", command)
step.end()
