"""Which files of a repo a fetch takes. Pure; no I/O.

A model repo often carries the same weights several times (safetensors, PyTorch pickles, TF,
Flax, ONNX, ...). When safetensors are there, the other copies are left out, folder by folder, so
that a component that exists only as `.bin` stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from edgecdn.manifest import FileEntry, Manifest
from edgecdn.names import RepoType

__all__ = ["FileSet", "harmless", "select"]

_OTHER_WEIGHTS = (
    ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".tflite",
    ".pdparams", ".gguf", ".ggml", ".mlmodel", ".nemo", ".pkl", ".pickle", ".npz",
)  # fmt: skip
"""Suffixes of weights in formats that a safetensors file beside them replaces."""

_OTHER_FOLDERS = frozenset({"original", "onnx", "openvino", "coreml", "tf", "flax", "tflite", "ggml"})
"""Folders that, by custom, hold nothing but another format of the weights above them."""


_HARMLESS = (".safetensors", ".json", ".txt", ".model", ".jinja", ".md")
"""Suffixes of files that are data and nothing else: loading them runs no code of theirs (design, section 6)."""


@dataclass(frozen=True, slots=True)
class FileSet:
    """What the user asked for: shell patterns over the whole path, and whether all formats."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    all_formats: bool = False


def select(manifest: Manifest, wanted: FileSet) -> tuple[FileEntry, ...]:
    """The entries of `manifest` that `wanted` takes, in path order.

    An include pattern overrides the format rule: who names a file gets it.
    """
    entries = [e for e in manifest.files if not _matches(str(e.path), wanted.exclude)]
    if wanted.include:
        return tuple(e for e in entries if _matches(str(e.path), wanted.include))
    if wanted.all_formats or manifest.repo.type is not RepoType.MODEL:
        return tuple(entries)
    with_safetensors = {e.path.parents for e in manifest.files if e.path.name.endswith(".safetensors")}
    return tuple(e for e in entries if not _is_other_copy(e, with_safetensors))


def harmless(entries: Sequence[FileEntry]) -> tuple[tuple[FileEntry, ...], tuple[FileEntry, ...]]:
    """Entries that cannot carry code, and the others: pickles, scripts, whatever is unknown."""
    safe = tuple(e for e in entries if e.path.name.endswith(_HARMLESS))
    return safe, tuple(e for e in entries if not e.path.name.endswith(_HARMLESS))


def _is_other_copy(entry: FileEntry, with_safetensors: set[tuple[str, ...]]) -> bool:
    if entry.path.name.endswith(_OTHER_WEIGHTS) and entry.path.parents in with_safetensors:
        return True
    for depth, folder in enumerate(entry.path.parents):
        if folder in _OTHER_FOLDERS and entry.path.parents[:depth] in with_safetensors:
            return True
    return False


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, f"{p}*" if p.endswith("/") else p) for p in patterns)
