"""Draws pixels with a class-conditional DiT, as diffusers' ``DiTPipeline`` draws latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class PixelDiTPipeline(DiffusionPipeline):
    """A DiT without a VAE and with any number of classes; the label after the last is the unconditional one."""

    def __init__(self, transformer: Any, scheduler: Any, id2label: dict[str, str] | None = None) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(id2label=id2label)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int],
        guidance_scale: float = 1.25,
        num_inference_steps: int = 25,
        generator: Any = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Draw one image per class label; ``output_type`` is pil, np (n, h, w, c) or pt (n, c, h, w), in [0, 1]."""
        config = self.transformer.config
        device, dtype, count = self._execution_device, self.transformer.dtype, len(class_labels)
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        state = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        labels = torch.tensor(class_labels, device=device)
        both = torch.cat([labels, torch.full_like(labels, config.num_embeds_ada_norm)])
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            prediction = self.transformer(torch.cat([state] * 2), timestep.expand(2 * count), both).sample
            conditional, unconditional = prediction.chunk(2)
            guided = unconditional + guidance_scale * (conditional - unconditional)
            state = self.scheduler.step(guided, timestep, state).prev_sample
        images = (state / 2 + 0.5).clamp(0, 1).float().cpu()
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        return ImagePipelineOutput(self.numpy_to_pil(images) if output_type == "pil" else images)
