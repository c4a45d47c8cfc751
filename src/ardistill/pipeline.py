"""The teacher's own diffusers pipeline class, with guidance off, fixed knots and the history's cache."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DiTPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from ardistill.student import Student, StudentConfig


class _FixedKnots:
    """What the pipeline's loop asks of a scheduler: the student's times, and its step from one to the next."""

    order = 1

    def __init__(self, student: Student) -> None:
        self.student = student
        self.timesteps = torch.tensor(student.config.knots.timesteps)
        self.noise: Tensor | None = None
        self.index = 0
        self.cache: dict = {}

    def set_timesteps(self, num_inference_steps: int, **_: Any) -> None:
        self.index, self.cache, self.noise = 0, {}, None

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> SimpleNamespace:
        if self.noise is None:
            self.noise = sample
        estimate = self.student._estimate(model_output[:, None], sample[:, None], [self.index])[:, 0]
        following = self.student.next_input(estimate, self.noise, self.index)
        self.index += 1
        return SimpleNamespace(prev_sample=following)


class _Pixels:
    """Stands in for the VAE of a teacher that draws pixels."""

    config = SimpleNamespace(scaling_factor=1.0)

    def decode(self, samples: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=samples)


class _Cached(nn.Module):
    """Calls the student's transformer with the history of the steps so far."""

    def __init__(self, student: Student, knots: _FixedKnots) -> None:
        super().__init__()
        self.student, self.knots = student, knots
        inner = student.transformer
        self.config, self.dtype, self.device = inner.config, inner.dtype, inner.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.student.history.sequential(self.knots.index, self.knots.cache):
            return self.student.transformer(*args, **kwargs)


class ARDPipeline(DiTPipeline):
    """Draw images from a distilled DiT, as ``DiTPipeline`` does; guidance is absorbed and the steps are fixed."""

    _optional_components = ["vae"]  # noqa: RUF012

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        scheduler: Any,
        id2label: dict[str, str] | None = None,
        student: dict[str, Any] | None = None,
    ) -> None:
        if student is None:
            raise ValueError("expected the student's configuration; load an exported folder with from_pretrained")
        super().__init__(transformer, vae, scheduler, id2label)
        self.register_to_config(id2label=id2label, student=student)
        self.__dict__["_student"] = Student(transformer, StudentConfig.from_dict(student)).eval()
        if student["output"] == "direct":  # the later heads are not part of the stock transformer
            folder = Path(transformer.config._name_or_path)
            transformer.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))

    @torch.no_grad()
    def __call__(self, class_labels: list[int], generator: Any = None, output_type: str = "pil", **options: Any) -> Any:
        """Args as ``DiTPipeline``, without guidance_scale and num_inference_steps, which are the student's.

        Raises:
            ValueError: guidance_scale or num_inference_steps is given and is not what the student was distilled for.
        """
        if options.pop("guidance_scale", 1.0) != 1.0:
            raise ValueError("the student has absorbed its teacher's guidance; leave guidance_scale out")
        if options.pop("num_inference_steps", self._student.num_steps) != self._student.num_steps:
            raise ValueError(f"the student draws in {self._student.num_steps} steps; leave num_inference_steps out")
        knots = _FixedKnots(self._student)
        kept = {name: self.__dict__.get(name) for name in ("transformer", "scheduler", "vae")}
        self.__dict__.update(transformer=_Cached(self._student, knots), scheduler=knots, vae=self.vae or _Pixels())
        try:
            return super().__call__(
                class_labels,
                guidance_scale=1.0,
                generator=generator,
                num_inference_steps=self._student.num_steps,
                output_type=output_type,
                **options,
            )
        finally:
            self.__dict__.update(kept)
