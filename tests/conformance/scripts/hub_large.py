"""Files over the client's limit for plain HTTP, which the argument `limited` lowers from 50 GB to 1 MiB.

Old clients are told to come again until the agent has the file; so does this script, as its user would.
"""

import sys
import time

from huggingface_hub import constants, hf_hub_download, snapshot_download
from steps import Steps, below, cache, seen

if sys.argv[1] == "limited":
    constants.MAX_HTTP_DOWNLOAD_SIZE = 1 << 20

step = Steps()


def patiently(function):
    for _ in range(3):
        try:
            return function()
        except (OSError, ValueError) as error:
            last = error
            time.sleep(1)
    raise last


step("one", lambda: seen(patiently(lambda: hf_hub_download("org/model", "model.safetensors"))))
step("snapshot", lambda: below(patiently(lambda: snapshot_download("org/model", revision="v1"))))
step("again", lambda: below(snapshot_download("org/model", revision="v1")))
step("cache", cache)
step.end()
