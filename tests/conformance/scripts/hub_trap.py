"""A cache in which a former direct download left a listing with Xet hashes: newer clients then skip HEAD.

Argument `before`: download all but the large file. Then `after`, in the same cache: the rest.
"""

import os
import sys
from pathlib import Path

from huggingface_hub import snapshot_download
from steps import Steps, below

step = Steps()
if sys.argv[1] == "before":
    step("some", lambda: below(snapshot_download("org/xet", allow_patterns="*.json")))
    trees = Path(os.environ["HF_HOME"], "hub", "models--org--xet", "trees")
    step("remembers Xet", lambda: any("xet_hash" in path.read_text() for path in trees.glob("*.json")))
else:
    step("rest", lambda: below(snapshot_download("org/xet")))
step.end()
