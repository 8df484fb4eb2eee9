"""What is refused: missing, gated, private, disabled; and with a token, what is not."""

import os

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from steps import Steps, below, cache, plain, seen

step = Steps()
api = HfApi(token=False)
TOKEN, WRONG = os.environ["RIGHT_TOKEN"], "hf_WrongWrongWrongWrongWrongWrong"

for repo in ("org/none", "org/model", "org/gated", "org/private", "org/disabled", "org/big/too-long"):
    step(f"{repo} file", lambda repo=repo: seen(hf_hub_download(repo, "config.json", token=False)))
    step(f"{repo} no file", lambda repo=repo: seen(hf_hub_download(repo, "not-there.bin", token=False)))
    step(
        f"{repo} no revision", lambda repo=repo: seen(hf_hub_download(repo, "config.json", revision="no", token=False))
    )
    step(f"{repo} snapshot", lambda repo=repo: below(snapshot_download(repo, token=False)))
    step(f"{repo} snapshot of no revision", lambda repo=repo: snapshot_download(repo, revision="no", token=False))
    step(f"{repo} info", lambda repo=repo: plain(api.model_info(repo)))
    step(f"{repo} info of no revision", lambda repo=repo: plain(api.model_info(repo, revision="no")))
    step(f"{repo} files", lambda repo=repo: api.list_repo_files(repo))
    step(f"{repo} tree of no folder", lambda repo=repo: plain(list(api.list_repo_tree(repo, "nowhere"))))
    step(f"{repo} refs", lambda repo=repo: plain(api.list_repo_refs(repo)))
    step(f"{repo} auth", lambda repo=repo: api.auth_check(repo))
for token in (WRONG, TOKEN):
    for repo in ("org/gated", "org/private", "org/model"):
        name = f"{repo} with a {'right' if token == TOKEN else 'wrong'} token"
        step(name, lambda repo=repo, token=token: seen(hf_hub_download(repo, "config.json", token=token)))
        step(
            f"{name}, large",
            lambda repo=repo, token=token: seen(hf_hub_download(repo, "model.safetensors", token=token)),
        )
        step(f"{name}, snapshot", lambda repo=repo, token=token: below(snapshot_download(repo, token=token)))
        step(f"{name}, info", lambda repo=repo, token=token: plain(api.model_info(repo, token=token)))
        step(f"{name}, auth", lambda repo=repo, token=token: api.auth_check(repo, token=token))
    step(f"whoami {token == TOKEN}", lambda token=token: plain(api.whoami(token=token)))
step(
    "afterwards without one",
    lambda: seen(hf_hub_download("org/gated", "config.json", token=False, force_download=True)),
)
step("data set that is a model", lambda: hf_hub_download("org/model", "config.json", repo_type="dataset", token=False))
step("write", lambda: api.create_repo("org/new", token=TOKEN) and None)
step("cache", cache)
step.end()
