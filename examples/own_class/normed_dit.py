"""A transformer of one's own: a DiT whose queries and keys are normalised, with the interface of diffusers' DiT.

The file imports torch and diffusers alone, so that it can stand beside an exported student and load without ardistill.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_q, self.norm_k = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)

    def forward(self, tokens):
        query, key, value = self.to_qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.norm_q(query), self.norm_k(key)
        found = nn.functional.scaled_dot_product_attention(query, key, value)  # what a history is bound to
        return self.to_out(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 4 * width)

    def forward(self, tokens, embedding):
        scale1, shift1, scale2, shift2 = self.modulation(embedding)[:, None].chunk(4, dim=2)
        tokens = tokens + self.attention(self.norm1(tokens) * (1 + scale1) + shift1)
        return tokens + self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)


class NormedDiT(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(
        self, sample_size=8, in_channels=3, out_channels=3, patch_size=2, width=16, heads=2, depth=4, num_classes=4
    ):
        super().__init__()
        tokens = (sample_size // patch_size) ** 2
        self.embed = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.position = nn.Parameter(torch.randn(1, tokens, width))
        self.timesteps, self.time_embedding = Timesteps(64, True, 0), TimestepEmbedding(64, width)
        self.label_embedding = nn.Embedding(num_classes + 1, width)  # the last one is of no class, for guidance
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.proj_out = nn.Linear(width, patch_size**2 * out_channels)

    def forward(self, hidden_states, timestep, class_labels, return_dict=True):
        patch, sides = self.config.patch_size, [n // self.config.patch_size for n in hidden_states.shape[2:]]
        tokens = self.embed(hidden_states).flatten(2).transpose(1, 2) + self.position
        times = self.timesteps(timestep).to(tokens.dtype)
        embedding = self.time_embedding(times) + self.label_embedding(class_labels)
        for block in self.blocks:
            tokens = block(tokens, embedding)
        patches = self.proj_out(tokens).unflatten(1, sides).unflatten(3, (-1, patch, patch))
        sample = patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # (b, c, h, w)
        return Transformer2DModelOutput(sample) if return_dict else (sample,)
