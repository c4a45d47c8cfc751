"""Draws pixels from a prompt, as diffusers' ``StableDiffusion3Pipeline`` draws latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion_3.pipeline_output import StableDiffusion3PipelineOutput


class PixelSD3Pipeline(StableDiffusion3Pipeline):
    """Stable Diffusion 3 without VAE and T5: it draws pixels, from the text tokens of two small CLIP encoders."""

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any,
        tokenizer_2: Any,
        vae: Any = None,
        text_encoder_3: Any = None,
        tokenizer_3: Any = None,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        max_sequence_length: int = 0,
    ) -> None:
        clip = (text_encoder, tokenizer, text_encoder_2, tokenizer_2)
        super().__init__(transformer, scheduler, None, *clip, None, None)  # type: ignore[arg-type]
        self.register_to_config(max_sequence_length=max_sequence_length)
        self.vae_scale_factor = 1
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    def encode_prompt(self, *args: Any, **options: Any) -> Any:
        """Encode prompts like ``StableDiffusion3Pipeline``, by default with the folder's ``max_sequence_length``."""
        return super().encode_prompt(*args, **{"max_sequence_length": self.config.max_sequence_length, **options})

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        guidance_scale: float = 3.0,
        num_inference_steps: int = 25,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Draw one image per prompt; ``output_type`` is pil, np (n, h, w, c) or pt (n, c, h, w), in [0, 1].

        Other options are those of ``StableDiffusion3Pipeline``, with two other defaults: ``max_sequence_length`` is the
        folder's, 0 (the base class pads 256 tokens where T5 is missing), and ``sigmas`` are uniform from 1, without 0.
        """
        grid = [1 - i / num_inference_steps for i in range(num_inference_steps)]
        options = {"max_sequence_length": self.config.max_sequence_length, "sigmas": grid, **options}
        states = super().__call__(
            prompt,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            output_type="latent",
            return_dict=False,
            **options,
        )[0]
        images = self.image_processor.postprocess(states, output_type=output_type)
        return StableDiffusion3PipelineOutput(images) if return_dict else (images,)
