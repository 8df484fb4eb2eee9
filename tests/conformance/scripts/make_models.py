"""Tiny models with random weights in the folder named by the argument, as their libraries save them."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

base = Path(sys.argv[1])
torch.manual_seed(0)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "hello", "world"]
vocabulary = base / "vocab.txt"
vocabulary.write_text("\n".join(words) + "\n")

config = BertConfig(
    vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=16384,  # 2 MiB: more than the tail that is withheld
)  # fmt: skip
model = BertForMaskedLM(config)
tokenizer = BertTokenizer(str(vocabulary))
for name, more in (("bert", {}), ("sharded", {"max_shard_size": "1MB"})):
    model.save_pretrained(base / name, **more)
    tokenizer.save_pretrained(base / name)
    (base / name / "vocab.txt").write_bytes(vocabulary.read_bytes())  # for the oldest
(base / "pickled").mkdir()
for path in (base / "bert").iterdir():
    if path.suffix != ".safetensors":
        (base / "pickled" / path.name).write_bytes(path.read_bytes())
torch.save(model.state_dict(), base / "pickled" / "pytorch_model.bin")

unet = UNet2DModel(
    sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10)).save_pretrained(base / "ddpm")

rows = pa.table({"n": list(range(1000)), "text": [f"row {n}" for n in range(1000)]})
(base / "rows" / "data").mkdir(parents=True)
pq.write_table(rows, base / "rows" / "data" / "train-00000-of-00001.parquet")
print("made")
