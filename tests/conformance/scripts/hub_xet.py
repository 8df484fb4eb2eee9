"""A Xet-backed repo, with Xet left on; whether the client could speak it stands in the result."""

import importlib.util

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from steps import Steps, below, cache, plain, seen

step = Steps()
step("can speak it", lambda: importlib.util.find_spec("hf_xet") is not None)
step("small", lambda: seen(hf_hub_download("org/xet", "config.json")))
step("one", lambda: seen(hf_hub_download("org/xet", "model.safetensors")))
step("snapshot", lambda: below(snapshot_download("org/xet")))
step("tree", lambda: plain(list(HfApi().list_repo_tree("org/xet", recursive=True))))
step("cache", cache)
step.end()
