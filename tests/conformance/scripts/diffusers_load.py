"""A pipeline of diffusers, and one of its parts."""

import hashlib

import diffusers
import torch
from steps import Steps, cache

step = Steps()


def weights(model):
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


def picture():
    pipe = diffusers.DDPMPipeline.from_pretrained("made/ddpm")
    pipe.set_progress_bar_config(disable=True)
    made = pipe(batch_size=1, num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
    return [weights(pipe.unet), hashlib.sha256(made.round(3).tobytes()).hexdigest()]


step("version", lambda: diffusers.__version__)
step("pipeline", picture)
step("by its own class", lambda: type(diffusers.DiffusionPipeline.from_pretrained("made/ddpm")).__name__)
step("part", lambda: weights(diffusers.UNet2DModel.from_pretrained("made/ddpm", subfolder="unet")))
step("no repo", lambda: diffusers.DiffusionPipeline.from_pretrained("made/none"))
step("cache", cache)
step.end()
