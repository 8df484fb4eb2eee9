"""The real all-MiniLM-L6-v2 with sentence-transformers: 90 MB, several folders, an answer that can be compared."""

import sentence_transformers
from sentence_transformers import SentenceTransformer
from steps import Steps, cache

step = Steps()


def encoded():
    model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2", device="cpu")
    return [round(float(value), 4) for value in model.encode("A cat sits on the mat.")[:8]]


step("version", lambda: sentence_transformers.__version__)
step("encoded", encoded)
step("again", encoded)
step("no repo", lambda: SentenceTransformer("made/none"))
step("cache", cache)
step.end()
