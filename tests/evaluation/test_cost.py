import torch
from diffusers import DiTTransformer2DModel

from ardistill.evaluation.cost import count_macs, latency_ms


def test_macs_are_the_closed_form_attention_included():
    """A block of a DiT takes 12 n d^2 + 2 n^2 d for n tokens of width d, and 6 d^2 for adaLN, besides embeddings."""
    sizes = {"num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 3, "sample_size": 16, "patch_size": 2}

    def macs(layers):
        model = DiTTransformer2DModel(**sizes, num_layers=layers, num_embeds_ada_norm=10).eval()
        return count_macs(lambda: model(torch.zeros(1, 3, 16, 16), torch.tensor([1.0]), torch.tensor([1])))

    tokens, width = 64, 64
    block = 12 * tokens * width**2 + 2 * tokens**2 * width + 6 * width**2 + 256 * width + width**2
    assert macs(3) - macs(2) == block


def test_latency_is_positive():
    assert latency_ms(lambda: torch.ones(10).sum(), repeats=3) > 0
