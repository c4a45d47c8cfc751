"""Wan 2.1 (Wan Team 2025, arXiv:2503.20314): video, text by cross-attention, flow matching."""

from ardistill.families.encoding import encode_plain
from ardistill.families.family import Family
from ardistill.families.grids import scheduler_grid

FAMILY = Family(
    block_lists=("blocks",),
    attention=("attn1",),
    head=("proj_out",),
    time_embedding="time_embedder",
    pipeline="WanPipeline",
    encode=encode_plain,
    grid=scheduler_grid,
    default_size=60,
    video=True,
    left_out=("transformer_2", "boundary_ratio"),
)
