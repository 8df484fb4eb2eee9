"""The ModelScope SDK and repos that are not for everybody: with the right token, with a wrong one, with none."""

import importlib.metadata
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

version = importlib.metadata.version("modelscope")
old = tuple(int(part) for part in version.split(".")[:2]) < (1, 38)
if old:
    os.environ["MODELSCOPE_DOMAIN"] = urlsplit(os.environ["MODELSCOPE_ENDPOINT"]).netloc

from modelscope import HubApi, model_file_download, snapshot_download  # noqa: E402

if old:
    for module in [one for name, one in sys.modules.items() if name.startswith("modelscope.hub")]:
        if hasattr(module, "MODELSCOPE_URL_SCHEME"):
            module.MODELSCOPE_URL_SCHEME = "http://"
from steps import Steps, below, seen  # noqa: E402

home = Path(os.environ["MODELSCOPE_CACHE"])
tokens = {"right": os.environ["RIGHT_TOKEN"], "wrong": "ms-wrong", "no": None}
step = Steps()


def snapshot(name, repo, token):
    def download():
        got = snapshot_download(repo, token=token, local_dir=str(home / name))
        return {path: value for path, value in below(got).items() if not path.startswith((".m", "._"))}

    step(name, download)


def one(name, repo, token):
    def download():
        return seen(model_file_download(repo, "model.safetensors", token=token, local_dir=str(home / name)))

    step(name, download)


for said, token in tokens.items():
    snapshot(f"private, {said} token", "org/private", token)
    snapshot(f"public, {said} token", "org/model", token)
    if said == "right" or not old:  # older ones ask again for half a minute when they are refused a file
        one(f"gated, {said} token", "org/gated", token)
step("login", lambda: HubApi().login(os.environ["RIGHT_TOKEN"]) is not None)
snapshot("private, logged in", "org/private", None)
step.end()
