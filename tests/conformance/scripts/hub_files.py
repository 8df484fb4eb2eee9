"""Downloads: single files by every kind of revision, snapshots of every kind, cold and warm."""

import os
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import hf_hub_download, snapshot_download
from steps import Steps, below, cache, relative, seen

step = Steps()
commit = sys.argv[1]
side = Path(os.environ["HF_HOME"]).parent / "local"


def one(name, path, **more):
    def download():
        got = hf_hub_download("org/model", path, **more)
        return [relative(got), seen(got)]

    step(name, download)


def snapshot(name, repo, **more):
    def download():
        got = snapshot_download(repo, **more)
        return [relative(got), below(got)]

    step(name, download)


step("version", lambda: huggingface_hub.__version__)
one("file", "config.json")
one("file again", "config.json")
one("large", "model.safetensors")
one("sub-folder in the path", "sub/dir/deep.txt")
one("sub-folder apart", "deep.txt", subfolder="sub/dir")
one("branch", "config.json", revision="dev")
one("branch with a slash", "config.json", revision="feature/new")
one("tag", "config.json", revision="v1")
one("commit", "config.json", revision=commit)
one("pull request", "config.json", revision="refs/pr/1")
one("empty", "empty.txt")
one("odd name", "odd name+%20#é.txt")
one("into a folder", "sub/dir/deep.txt", local_dir=str(side / "one"))
step("that folder", lambda: below(side / "one"))
one("forced", "config.json", force_download=True)
snapshot("snapshot", "org/model")
snapshot("snapshot again", "org/model")
snapshot("snapshot of a branch", "org/model", revision="dev")
snapshot("some", "org/many", allow_patterns=["data/*1.txt"], ignore_patterns=["*0*"])
snapshot("many", "org/many")
snapshot("without an owner", "tiny")
snapshot("renamed", "org/old-name")
snapshot("data set", "org/data", repo_type="dataset")
snapshot("space", "org/space", repo_type="space")
snapshot("into a folder, whole", "org/model", local_dir=str(side / "whole"))
step("that folder, whole", lambda: below(side / "whole"))
step("offline", lambda: below(snapshot_download("org/model", local_files_only=True)))
step("cache", cache)
step.end()
