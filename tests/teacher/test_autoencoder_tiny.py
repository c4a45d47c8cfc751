"""AutoencoderTiny encodes without a distribution."""

import diffusers
import torch

from ardistill import Teacher


def test_case_24_autoencoder_tiny_encodes(teacher):
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    vae = diffusers.AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    mine = Teacher(teacher.transformer, teacher.scheduler, companions={"vae": vae})
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = mine.encode_images(images)
    assert latents.shape == (2, 4, 8, 8) and torch.equal(latents, vae.encode(images).latents)
