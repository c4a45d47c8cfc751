"""A class-conditional DiT as research code writes it: attention in timm's layout, ``forward(x, t, y)``.

Stands for a user's own class: not of diffusers, taught to the package by one call of ``register_family``.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from ardistill.families import Family, register_family


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        rows, tokens, width = x.shape
        query, key, value = self.qkv(x).reshape(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(x.transpose(1, 2).reshape(rows, tokens, width))


def modulated(x, shift, scale):
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate[:, None] * self.attn(modulated(x, shift, scale))
        return x + mlp_gate[:, None] * self.mlp(modulated(x, mlp_shift, mlp_scale))


class FinalLayer(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):
        return self.linear(modulated(x, *self.adaLN_modulation(c).chunk(2, dim=1)))


class TimestepEmbedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        features = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


class DiT(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, sample_size=8, patch_size=2, in_channels=4, hidden_size=16, depth=3, heads=2, num_classes=5):
        super().__init__()
        self.x_embedder = nn.Conv2d(in_channels, hidden_size, patch_size, patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = nn.Embedding(num_classes + 1, hidden_size)
        self.pos_embed = nn.Parameter(torch.randn(1, (sample_size // patch_size) ** 2, hidden_size))
        self.blocks = nn.ModuleList([Block(hidden_size, heads) for _ in range(depth)])
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * 2 * in_channels)  # with a sigma

    def forward(self, x, t, y):
        patch, height, width = self.config.patch_size, x.shape[2], x.shape[3]
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer(x, c).unflatten(1, (height // patch, width // patch))
        return x.unflatten(-1, (patch, patch, -1)).permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, height, width)


def inputs(transformer, latents, timestep, condition):
    return {"x": latents, "t": timestep, "y": condition["class_labels"]}


def output(transformer, result, latents):
    return result


ROW = Family(
    block_lists=("blocks",),
    attention=("attn",),
    head=("final_layer.adaLN_modulation.1", "final_layer.linear"),
    inputs=inputs,
    output=output,
    options={},
    time_embedding="t_embedder",
    square=True,
)
register_family(DiT, ROW)
