"""Video VAEs of diffusers: their factors, how they scale latents, all frames or the first one."""

import diffusers
import pytest
import torch

from ardistill.teacher import vae as vaes
from ardistill.teacher.sizes import latent_shape, pixel_size

WAN = {
    "base_dim": 4, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False],
    "latents_mean": [0.1] * 4, "latents_std": [1.5] * 4,
}  # fmt: skip
LTX = {
    "latent_channels": 4, "block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4,
    "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5, "scaling_factor": 0.5,
}  # fmt: skip
HUNYUAN = {"latent_channels": 4, "block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4}
HUNYUAN15 = {"latent_channels": 4, "block_out_channels": (16,) * 5, "layers_per_block": 1}
COGVIDEOX = HUNYUAN | {"scaling_factor": 0.7}
VAES = {
    "wan": ("AutoencoderKLWan", WAN, 2, 1),
    "ltx": ("AutoencoderKLLTXVideo", LTX, 32, 8),
    "ltx-timed": ("AutoencoderKLLTXVideo", LTX | {"timestep_conditioning": True}, 32, 8),
    "hunyuan-video": ("AutoencoderKLHunyuanVideo", HUNYUAN, 8, 4),
    "hunyuan-video15": ("AutoencoderKLHunyuanVideo15", HUNYUAN15, 16, 4),
    "cogvideox": ("AutoencoderKLCogVideoX", COGVIDEOX, 8, 4),
}
"""Name -> class, options, pixels and frames that a latent stands for."""


def make(name):
    torch.manual_seed(0)
    kind, options = VAES[name][:2]
    found = getattr(diffusers, kind)(**options).eval().requires_grad_(False)
    if name.startswith("ltx"):
        found.latents_mean.uniform_(-1, 1)
        found.latents_std.uniform_(0.5, 2)
    if name == "hunyuan-video15":
        found.enable_slicing()  # what this package does itself, as the test of it below shows
    return found


def expected_latents(name, vae, latents):
    """What the pipeline of each class decodes, by hand."""
    if name.startswith("ltx"):
        mean, std = (x.view(1, -1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
        return latents * std / 0.5 + mean
    return latents * 1.5 + 0.1 if name == "wan" else latents / vae.config.scaling_factor


@pytest.mark.parametrize("name", VAES)
def test_latents_are_scaled_as_the_pipeline_scales_them(name):
    vae, latents = make(name), torch.randn(2, 4, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    found = vaes.unscale(vae, latents)
    assert torch.allclose(found, expected_latents(name, vae, latents), atol=1e-6)
    assert torch.allclose(vaes.scale(vae, found), latents, atol=1e-6)


@pytest.mark.parametrize("name", VAES)
def test_all_frames_of_a_video_or_the_first(name):
    vae, latents = make(name), torch.randn(2, 4, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    time = (torch.zeros(2),) if name == "ltx-timed" else ()
    expected = vae.decode(expected_latents(name, vae, latents), *time).sample.clamp(-1, 1)
    frames = vaes.decode(vae, latents, 1, frames=True)
    assert torch.allclose(frames, expected, atol=1e-5)
    assert torch.equal(vaes.decode(vae, latents, 1), frames[:, :, 0])


def test_a_class_that_takes_one_video_alone_takes_a_batch():
    vae, latents = make("hunyuan-video15"), torch.randn(2, 4, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    vae.disable_slicing()
    with pytest.raises(RuntimeError):
        vae.decode(latents)
    alone = torch.cat([vaes.decode(vae, x, 1, frames=True) for x in latents.split(1)])
    vae.disable_slicing()
    assert torch.equal(vaes.decode(vae, latents, 2, frames=True), alone)
    vae.disable_slicing()
    assert vaes.encode(vae, torch.zeros(2, 3, 32, 32)).shape == (2, 4, 1, 2, 2)


@pytest.mark.parametrize("name", [name for name in VAES if name != "wan"])
def test_factors_of_space_and_time(name):
    vae, (space, time) = make(name), VAES[name][2:]
    assert (vaes.pixels_per_latent(vae), vaes.frames_per_latent(vae)) == (space, time)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=12, in_channels=4, num_layers=1, text_dim=4
    )
    size = {"height": 2 * space, "width": 4 * space, "num_frames": 2 * time + 1}
    shape = latent_shape(transformer, vae, space, **size)
    assert shape == (4, 3, 2, 4) and pixel_size(shape, vae, space) == size
    with pytest.raises(ValueError, match=f"1 and a multiple of {time}, got {2 * time + 2}"):
        latent_shape(transformer, vae, space, **size | {"num_frames": 2 * time + 2})
    encoded = vaes.encode(vae, torch.zeros(1, 3, 2 * space, 2 * space))
    assert encoded.shape == (1, 4, 1, 2, 2)


@pytest.mark.parametrize("name", ["wan", "hunyuan-video"])
def test_out_of_memory_it_decodes_one_by_one_then_in_tiles(name):
    vae, latents = make(name), torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    expected, decode, limit = vaes.decode(vae, latents, 2, frames=True), vae.decode, 1

    def within(x):
        if len(x) > limit or (limit == 0 and not vae.use_tiling):
            raise torch.OutOfMemoryError("too large")
        return decode(x)

    vae.decode = within
    assert torch.allclose(vaes.decode(vae, latents, 2, frames=True), expected, atol=1e-5) and not vae.use_tiling
    limit = 0
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="in tiles"):
        vaes.decode(vae, latents, 1)
    assert vae.use_tiling
    vae.decode = decode
    assert torch.allclose(vaes.decode(vae, latents, 1, frames=True), expected, atol=1e-5)  # smaller than a tile


def test_sizes_that_whole_tiles_do_not_cover_are_refused():
    """Allegro's; it would leave the rest of a video blank."""
    options = {"block_out_channels": (4,) * 4, "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 128}
    vae = diffusers.AutoencoderKLAllegro(**options)
    for shape in ((4, 6, 16, 16), (4, 10, 17, 22)):
        vaes.check_tiles(vae, shape)
    for shape, wrong in (((4, 7, 16, 16), "6 latent frames"), ((4, 6, 15, 16), "rows"), ((4, 6, 16, 17), "columns")):
        with pytest.raises(ValueError, match=f"works in whole tiles: expected .*{wrong}"):
            vaes.check_tiles(vae, shape)
    with pytest.raises(ValueError, match="encodes tiles of 24 frames"):
        vaes.encode(vae, torch.zeros(1, 3, 128, 128))
