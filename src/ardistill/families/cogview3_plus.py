"""CogView3-Plus (Zheng et al. 2024, arXiv:2403.05121): joint attention, text first, a shifted noise schedule."""

from ardistill.families.cogview4 import give_sizes
from ardistill.families.encoding import encode_plain, encode_unless_empty
from ardistill.families.family import HEAD, Family

FAMILY = Family(
    block_lists=("transformer_blocks",),
    attention=("attn1",),
    head=HEAD,
    text="first",
    inputs=give_sizes,
    pipeline="CogView3PlusPipeline",
    encode=encode_plain,
    encode_negative=encode_unless_empty,
)
