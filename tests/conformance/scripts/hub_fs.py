"""The file system interface, and reading the head of a safetensors file."""

import hashlib

from huggingface_hub import HfFileSystem, get_safetensors_metadata
from steps import Steps, plain

step = Steps()
fs = HfFileSystem(use_listings_cache=False)


def part(start, length):
    with fs.open("org/model/model.safetensors", "rb", block_size=1 << 16) as file:
        file.seek(start)
        return hashlib.sha256(file.read(length)).hexdigest()


def tail(length):
    with fs.open("org/model/model.safetensors", "rb", block_size=1 << 16) as file:
        file.seek(-length, 2)
        return hashlib.sha256(file.read()).hexdigest()


step("ls", lambda: sorted(fs.ls("org/model", detail=False)))
step("ls, detailed", lambda: [[e["name"], e["size"], e["type"]] for e in fs.ls("org/model", detail=True)])
step("ls of a folder", lambda: fs.ls("org/model/sub/dir", detail=False))
step("glob", lambda: fs.glob("org/model/**/*.txt"))
step("glob at a revision", lambda: fs.glob("org/model@dev/*.json"))
step("find", lambda: fs.find("datasets/org/data"))
step(
    "info",
    lambda: plain({k: v for k, v in fs.info("org/model/model.safetensors").items() if k in ("name", "size", "type")}),
)
step("exists", lambda: [fs.exists("org/model/config.json"), fs.exists("org/model/no"), fs.exists("org/none/no")])
step("text", lambda: fs.read_text("org/model/config.json"))
step("text of a pull request", lambda: fs.read_text("org/model@refs/pr/1/config.json"))
step("whole", lambda: hashlib.sha256(fs.cat_file("org/model/model.safetensors")).hexdigest())
step("begin", lambda: part(0, 1000))
step("middle", lambda: part(1_500_000, 200_000))
step("end", lambda: tail(4096))
step("range", lambda: hashlib.sha256(fs.cat_file("org/model/model.safetensors", start=100, end=200)).hexdigest())
step("nothing", lambda: fs.read_text("org/model/not-there"))
step("no repo", lambda: fs.ls("org/none"))
step("safetensors", lambda: plain(get_safetensors_metadata("org/model")))
step.end()
