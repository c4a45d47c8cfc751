"""CogVideoX: positions for any size as its pipeline has them, and the numbers of frames that it takes."""

import pytest
import torch
from tiny import PIPELINES, TINY, save

from ardistill.families import family_of
from ardistill.teacher import Teacher


@pytest.mark.parametrize("patch_size_t", [None, 2])
@pytest.mark.parametrize("height,width", [(8, 8), (8, 12), (4, 10), (6, 4)])
def test_rotary_positions_are_the_pipelines(height, width, patch_size_t):
    pipeline = PIPELINES["cogvideox"].make()
    pipeline.transformer.register_to_config(patch_size_t=patch_size_t)
    latents, condition = torch.zeros(1, 4, 4, height, width), TINY["cogvideox"].condition(1)
    found = family_of(pipeline.transformer).inputs(pipeline.transformer, latents, torch.zeros(1), condition)
    expected = pipeline._prepare_rotary_positional_embeddings(8 * height, 8 * width, 4, torch.device("cpu"))
    for ours, theirs in zip(found["image_rotary_emb"], expected, strict=True):
        assert torch.equal(ours, theirs)


def test_patches_of_two_latent_frames_say_which_numbers_of_frames_fit(tmp_path):
    teacher = Teacher.from_pretrained(save("cogvideox", tmp_path), device="cpu")
    teacher.transformer.register_to_config(patch_size_t=2)
    assert teacher.latent_shape(32, 32, 13) == (4, 4, 4, 4)
    with pytest.raises(ValueError, match="of 5 and a multiple of 8, got 9"):
        teacher.latent_shape(32, 32, 9)
