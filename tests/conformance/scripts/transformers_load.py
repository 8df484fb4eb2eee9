"""`from_pretrained` of every kind of repo; a model's weights and its answer tell whether it is the right one."""

import hashlib

import torch
import transformers
from steps import Steps, cache
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

step = Steps()


def weights(model):
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


def loaded(repo, **more):
    model = AutoModelForMaskedLM.from_pretrained(repo, **more)
    tokens = AutoTokenizer.from_pretrained(repo, **more)("hello world", return_tensors="pt")
    with torch.no_grad():
        answer = model(**tokens).logits
    return [weights(model), tokens["input_ids"].tolist(), [round(float(x), 4) for x in answer[0, 0, :4]]]


step("version", lambda: transformers.__version__)
step("config", lambda: AutoConfig.from_pretrained("made/bert").to_dict()["hidden_size"])
step("model", lambda: loaded("made/bert"))
step("again", lambda: loaded("made/bert"))
step("shards", lambda: loaded("made/sharded"))
step("pickled", lambda: loaded("made/pickled"))
step("pipeline", lambda: pipeline("fill-mask", model="made/bert")("hello [MASK]")[0]["token_str"])
step("no repo", lambda: AutoModel.from_pretrained("made/none"))
step("no weights", lambda: AutoModel.from_pretrained("org/data"))
step("no revision", lambda: AutoConfig.from_pretrained("made/bert", revision="nope"))
step("gated", lambda: AutoConfig.from_pretrained("org/gated"))
step("cache", cache)
step.end()
