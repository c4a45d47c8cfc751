"""A tiny teacher of two transformers, as Wan 2.2 is published, and a script that draws with diffusers alone."""

import diffusers
from tiny import PIPELINES, TINY

PROMPTS = ["a red cat", "the moon"]
SIZE = {"height": 16, "width": 16, "num_frames": 1}
DRAW = """
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
options = {"prompt": ["a red cat"], "height": 16, "width": 16, "num_frames": 1, "output_type": "pt"}
torch.save(pipeline(**options, generator=torch.Generator().manual_seed(0)).frames, sys.argv[2])
"""


def save_two(folder):
    """Save one with a boundary that the first two of four steps are above of, and of eight the first four."""
    second = TINY["wan"].transformer()
    for parameter in second.parameters():
        parameter.data = parameter.data.flip(0)
    parts = dict(PIPELINES["wan"].make().components) | {"transformer_2": second, "boundary_ratio": 0.8}
    diffusers.WanPipeline(**parts).save_pretrained(folder)
    return folder
