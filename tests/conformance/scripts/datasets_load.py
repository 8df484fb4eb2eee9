"""Data sets: loaded whole, streamed, and refused."""

import datasets
from datasets import get_dataset_config_names, load_dataset
from steps import Steps, cache

datasets.disable_progress_bars()
step = Steps()


def whole(name, **more):
    found = load_dataset(name, **more)
    return {split: [len(found[split]), found[split][:3]] for split in found}


def streamed(name):
    rows = load_dataset(name, split="train", streaming=True)
    return list(rows.take(5))


step("version", lambda: datasets.__version__)
step("csv", lambda: whole("org/data"))
step("parquet", lambda: whole("org/rows"))
step("parquet, some columns", lambda: whole("org/rows", columns=["n"]))
step("streamed", lambda: streamed("org/rows"))
step("streamed csv", lambda: streamed("org/data"))
step("configurations", lambda: get_dataset_config_names("org/rows"))
step("no repo", lambda: whole("org/none"))
step("no revision", lambda: whole("org/data", revision="nope"))
step("cache", cache)
step.end()
