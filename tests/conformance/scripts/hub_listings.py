"""What the hub says of repos: listings, revisions, metadata."""

import sys

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from steps import Steps, plain

step = Steps()
commit = sys.argv[1]
api = HfApi()


def asked(name, function, *args, **more):
    def ask():
        found = function(*args, **more)
        return plain(list(found) if hasattr(found, "__next__") else found)

    step(name, ask)


def metadata(path, **more):
    one = get_hf_file_metadata(hf_hub_url("org/model", path, **more))
    return [one.commit_hash, one.etag, one.size]


for kind, repo in (("model", "org/model"), ("dataset", "org/data"), ("space", "org/space"), ("model", "tiny")):
    asked(f"{repo} files", api.list_repo_files, repo, repo_type=kind)
    asked(f"{repo} info", api.repo_info, repo, repo_type=kind)
    asked(f"{repo} info with files", api.repo_info, repo, repo_type=kind, files_metadata=True)
    asked(f"{repo} refs", api.list_repo_refs, repo, repo_type=kind)
asked("tree", api.list_repo_tree, "org/model")
asked("tree of a folder", api.list_repo_tree, "org/model", "sub/dir")
asked("tree of all", api.list_repo_tree, "org/model", recursive=True)
asked("tree, expanded", api.list_repo_tree, "org/model", recursive=True, expand=True)
asked("tree of a pull request", api.list_repo_tree, "org/model", recursive=True, revision="refs/pr/1")
asked("tree of a branch with a slash", api.list_repo_tree, "org/model", revision="feature/new")
asked("tree in pages", api.list_repo_tree, "org/many", recursive=True)
asked("tree in pages, expanded", api.list_repo_tree, "org/many", recursive=True, expand=True)
asked("refs with pull requests", api.list_repo_refs, "org/model", include_pull_requests=True)
asked("commits", api.list_repo_commits, "org/model")
asked("commits of a branch", api.list_repo_commits, "org/model", revision="dev")
asked("paths", api.get_paths_info, "org/model", ["config.json", "sub", "model.safetensors", "not-there"])
asked("paths, expanded", api.get_paths_info, "org/model", ["config.json"], expand=True)
asked("one path", api.get_paths_info, "org/model", "config.json", revision=commit)
asked("info of a commit", api.model_info, "org/model", revision=commit)
asked("info of a pull request", api.model_info, "org/model", revision="refs/pr/1")
asked("info, expanded", api.model_info, "org/model", expand=["sha", "siblings"])
asked("renamed", api.model_info, "org/old-name")
asked("search", api.list_models, search="mod", limit=3)
asked("search of data sets", api.list_datasets, search="dat", limit=3)
for kind, repo, path in (
    ("model", "org/model", "config.json"),
    ("model", "org/model", "not-there"),
    ("model", "org/none", "config.json"),
    ("dataset", "org/data", "README.md"),
):
    asked(f"exists {repo} {path}", api.file_exists, repo, path, repo_type=kind)
asked("exists, revision", api.revision_exists, "org/model", "dev")
asked("exists, no revision", api.revision_exists, "org/model", "nope")
asked("exists, repo", api.repo_exists, "org/model")
asked("exists, no repo", api.repo_exists, "org/none")
asked("whoami without a token", api.whoami, token=False)
step("metadata", lambda: metadata("config.json"))
step("metadata of a large file", lambda: metadata("model.safetensors"))
step("metadata at a pull request", lambda: metadata("config.json", revision="refs/pr/1"))
step("metadata of nothing", lambda: metadata("not-there"))
step.end()
