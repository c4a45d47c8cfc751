"""DiT (Peebles & Xie 2023, arXiv:2212.09748): class labels, self-attention over image tokens alone."""

from ardistill.families.family import Family

FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn1",),
    head=("proj_out_1", "proj_out_2"),
    pipeline="DiTPipeline",
    square=True,
)
