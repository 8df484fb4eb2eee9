"""Which files a fetch takes, on listings as real repos have them."""

from __future__ import annotations

import pytest

from edgecdn.fileset import FileSet, select
from edgecdn.names import RepoId, RepoType
from tests.unit.made import manifest_of, sized

MINILM = """
    .gitattributes 1_Pooling/config.json README.md config.json config_sentence_transformers.json data_config.json
    model.safetensors modules.json pytorch_model.bin rust_model.ot tf_model.h5 sentence_bert_config.json
    special_tokens_map.json tokenizer.json tokenizer_config.json train_script.py vocab.txt
    onnx/model.onnx onnx/model_O1.onnx onnx/model_qint8_avx512.onnx
    openvino/openvino_model.bin openvino/openvino_model.xml openvino/openvino_model_qint8_quantized.bin
"""
SDXL = """
    README.md model_index.json sd_xl_base_1.0.safetensors sd_xl_offset_example-lora_1.0.safetensors 01.png
    scheduler/scheduler_config.json tokenizer/merges.txt tokenizer/vocab.json
    text_encoder/config.json text_encoder/flax_model.msgpack text_encoder/model.fp16.safetensors
    text_encoder/model.onnx text_encoder/model.safetensors text_encoder/openvino_model.bin
    text_encoder/openvino_model.xml
    unet/config.json unet/diffusion_flax_model.msgpack unet/diffusion_pytorch_model.safetensors unet/model.onnx
    unet/model.onnx_data unet/openvino_model.bin
    vae_decoder/config.json vae_decoder/model.onnx vae_encoder/model.onnx
    safety_checker/config.json safety_checker/pytorch_model.bin
"""
LLAMA = """
    LICENSE config.json generation_config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors
    model.safetensors.index.json original/consolidated.00.pth original/params.json original/tokenizer.model
    tokenizer.json tokenizer.model
"""
BIN_ONLY = "config.json pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin pytorch_model.bin.index.json"
GGUF_ONLY = "README.md model-q4_k_m.gguf model-q8_0.gguf"
ONNX_ONLY = "config.json onnx/model.onnx onnx/model.onnx_data onnx/model_fp16.onnx"
MIXED = "a/model.safetensors a/model.bin a/deep/model.bin b/model.bin model.pt a/onnx/x.json onnx/y.onnx"
DATASET = "README.md data/train.parquet data/train.safetensors data/labels.npz original/all.bin"


def _taken(listing: str, wanted: FileSet | None = None, repo_type: RepoType = RepoType.MODEL) -> set[str]:
    files = [sized(path, n + 1) for n, path in enumerate(listing.split())]
    chosen = select(manifest_of(*files, repo=RepoId(repo_type, "org/name")), wanted or FileSet())
    names = [str(entry.path) for entry in chosen]
    assert sorted(names) == sorted(set(names))
    assert list(chosen) == sorted(chosen, key=lambda e: e.path)
    return set(names)


@pytest.mark.parametrize(
    ("listing", "left_out"),
    [
        (
            MINILM,
            """pytorch_model.bin rust_model.ot tf_model.h5 onnx/model.onnx onnx/model_O1.onnx onnx/model_qint8_avx512.onnx
            openvino/openvino_model.bin openvino/openvino_model.xml openvino/openvino_model_qint8_quantized.bin""",
        ),
        (
            SDXL,
            """text_encoder/flax_model.msgpack text_encoder/model.onnx text_encoder/openvino_model.bin
            unet/diffusion_flax_model.msgpack unet/model.onnx unet/model.onnx_data unet/openvino_model.bin""",
        ),
        (LLAMA, "original/consolidated.00.pth original/params.json original/tokenizer.model"),
        (BIN_ONLY, ""),
        (GGUF_ONLY, ""),
        (ONNX_ONLY, ""),
        (MIXED, "a/model.bin a/onnx/x.json"),
    ],
    ids=["minilm", "sdxl", "llama", "bin", "gguf", "onnx", "mixed"],
)
def test_other_copies_of_the_weights_are_left_out(listing: str, left_out: str) -> None:
    assert set(listing.split()) - _taken(listing) == set(left_out.split())


@pytest.mark.parametrize("listing", [MINILM, SDXL, LLAMA, BIN_ONLY, GGUF_ONLY, ONNX_ONLY, MIXED])
def test_all_formats_takes_all(listing: str) -> None:
    assert _taken(listing, FileSet(all_formats=True)) == set(listing.split())


@pytest.mark.parametrize("repo_type", [RepoType.DATASET, RepoType.SPACE])
def test_data_sets_and_spaces_come_whole(repo_type: RepoType) -> None:
    assert _taken(DATASET, repo_type=repo_type) == set(DATASET.split())


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        (("tf_model.h5",), (), "tf_model.h5"),  # who names a file gets it
        (("onnx/",), (), "onnx/model.onnx onnx/model_O1.onnx onnx/model_qint8_avx512.onnx"),
        (("onnx/*",), ("*_O1*", "*qint8*"), "onnx/model.onnx"),
        (("*.txt", "*.py"), (), "vocab.txt train_script.py"),
        (("model.safetensors",), ("*.safetensors",), ""),
        (("MODEL.*",), (), ""),
        (("nothing",), (), ""),
    ],
)
def test_patterns(include: tuple[str, ...], exclude: tuple[str, ...], taken: str) -> None:
    assert _taken(MINILM, FileSet(include, exclude)) == set(taken.split())


def test_exclude_alone_keeps_the_format_rule() -> None:
    taken = _taken(MINILM, FileSet(exclude=("*.json",)))
    assert "model.safetensors" in taken
    assert "pytorch_model.bin" not in taken
    assert not [name for name in taken if name.endswith(".json")]


def test_excluding_the_safetensors_does_not_bring_the_other_copies() -> None:
    """What counts is what the repo holds."""
    assert "pytorch_model.bin" not in _taken(MINILM, FileSet(exclude=("*.safetensors",)))
