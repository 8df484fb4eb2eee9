"""The command line of the hub's client: `hf`, or `huggingface-cli` where that is all there is."""

import os
import subprocess
import sys
from pathlib import Path

from steps import Steps, below, cache

here = Path(sys.executable).parent
program = next(str(here / name) for name in ("hf", "huggingface-cli") if (here / name).exists())
home = os.environ["HF_HOME"]
step = Steps()


def said(*arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=120)
    if "DEBUG" in os.environ:
        print(arguments, done.returncode, done.stderr, file=sys.stderr)
    return [done.returncode, done.stdout.replace(str(Path(home).parent), "")]


step("download", lambda: said("download", "org/model", "--quiet"))
step("download a file", lambda: said("download", "org/model", "sub/dir/deep.txt", "--quiet"))
step("download a data set", lambda: said("download", "org/data", "--repo-type", "dataset", "--quiet"))
step("into a folder", lambda: said("download", "org/model", "--local-dir", str(Path(home).parent / "l"), "--quiet"))
step("that folder", lambda: below(Path(home).parent / "l"))
step("no repo", lambda: said("download", "org/none", "--quiet")[0])
step("verify", lambda: said("cache", "verify", "org/model"))
step("list files", lambda: said("models", "ls", "org/model", "--quiet"))
step("cache", cache)
step.end()
