"""The teacher's own diffusers pipeline class, with guidance off, fixed knots and the history's cache.

The pipeline's loop stays the teacher's: what it asks of its scheduler is answered with the student's knots and steps,
and what it asks of its transformer with a call that sees the steps before.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ardistill.history import Layout
from ardistill.student import Student, StudentConfig

UNGUIDED = {"QwenImagePipeline": {"true_cfg_scale": 1.0}, "ZImagePipeline": {"guidance_scale": 0.0}}
"""What turns guidance off where it is not ``guidance_scale=1``."""
EMBEDDED_GUIDANCE = ("FluxPipeline", "Flux2Pipeline")
"""Their ``guidance_scale`` is an input of the network."""


class _FixedKnots:
    """What the pipeline's loop asks of a scheduler: the student's times, and its step from one to the next."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, student: Student, config: Any) -> None:
        self.student, self.config = student, config
        self.timesteps = torch.tensor(student.config.knots.timesteps)
        self.sigmas = torch.tensor(student.config.knots.sigma)
        self.noise: Tensor | None = None
        self.index = 0
        self.cache: dict = {}
        self.guidance = student.config.guidance_scale

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
    ) -> None:
        self.index, self.cache, self.noise = 0, {}, None
        self.timesteps = self.timesteps.to(device)

    def set_begin_index(self, index: int) -> None:
        pass

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any) -> Any:
        if self.noise is None:
            self.noise = sample
        estimate = self.student._estimate(model_output[:, None], sample[:, None], [self.index])[:, 0]
        following = self.student.next_input(estimate, self.noise, self.index).to(sample.dtype)
        self.index += 1
        return SimpleNamespace(prev_sample=following) if return_dict else (following,)


class _Pixels:
    """Stands in for the VAE of a teacher that draws pixels."""

    config = SimpleNamespace(scaling_factor=1.0, shift_factor=0.0)

    def decode(self, samples: Tensor, return_dict: bool = True) -> Any:
        return SimpleNamespace(sample=samples) if return_dict else (samples,)


class _Remembering(nn.Module):
    """The student's transformer, called with the history of the steps so far."""

    def __init__(self, student: Student, knots: _FixedKnots) -> None:
        super().__init__()
        self.__dict__.update(student=student, knots=knots)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["student"].transformer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "x"]
        guidance = torch.full((len(first),), self.knots.guidance, device=first[0].device)
        layout = Layout(step=self.knots.index, cache=self.knots.cache)
        arguments = {"hidden_states": first, **kwargs}
        with self.student.history.laid_out(self.student.complete(layout, arguments, guidance)):
            return self.student.transformer(*args, **kwargs)


def few_step_pipeline(base: type) -> type:
    """A pipeline class that draws as ``base`` does, in a student's steps.

    Args:
        base: The teacher's pipeline class, one of diffusers'.

    Returns:
        A subclass. Its constructor takes, besides the components of ``base``, ``student``, a student's configuration as
        a dict, and ``max_sequence_length``, for calls that name none; its call takes what ``base``'s takes, but for the
        number of steps, negative prompts, and guidance unless the student is told of it.
    """
    signature = inspect.signature(base.__init__)  # type: ignore[misc]
    needed = [x.name for x in signature.parameters.values() if x.default is x.empty]
    may_be_absent = [name for name in needed if name not in ("self", "transformer", "scheduler")]

    class ARDPipeline(base):  # type: ignore[valid-type,misc]
        _optional_components = [*getattr(base, "_optional_components", []), *may_be_absent, "vae"]  # noqa: RUF012

        def __init__(
            self,
            *args: Any,
            student: dict[str, Any] | None = None,
            max_sequence_length: int | None = None,
            **components: Any,
        ) -> None:
            if student is None:
                raise ValueError("expected the student's configuration; load an exported folder with from_pretrained")
            super().__init__(*args, **components)
            settings = {name: components[name] for name in components if name not in self.components}
            self.register_to_config(student=student, max_sequence_length=max_sequence_length, **settings)
            if self.vae is None:
                self.vae_scale_factor = 1
            transformer = self.transformer
            self.__dict__["_student"] = Student(transformer, StudentConfig.from_dict(student)).eval()
            if self._student.has_own_weights:  # which the stock transformer did not load
                folder = Path(transformer.config._name_or_path)
                transformer.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))

        @torch.no_grad()
        def __call__(self, *args: Any, **options: Any) -> Any:
            student = self._student
            signature = inspect.signature(base.__call__)
            given = options | dict(zip(list(signature.parameters)[1:], args, strict=False))
            for name, value in given.items():  # before ``base`` says that it knows none
                if name.startswith("negative_") and value is not None:
                    raise ValueError(f"the student has absorbed its teacher's guidance; leave {name} out")
            signature.bind_partial(self, *args, **options)  # as ``base`` refuses others
            options = given
            if options.pop("num_inference_steps", student.num_steps) != student.num_steps:
                raise ValueError(f"the student draws in {student.num_steps} steps; leave num_inference_steps out")
            if self.config.max_sequence_length is not None:
                options.setdefault("max_sequence_length", self.config.max_sequence_length)
            knots = _FixedKnots(student, self.scheduler.config)
            if base.__name__ in EMBEDDED_GUIDANCE:
                if not student.family.embeds_guidance(student.transformer) and options.get("guidance_scale") in (0, 1):
                    del options["guidance_scale"]  # none: its network is not told any
                options.setdefault("guidance_scale", student.config.guidance_scale)
                student.config.check_guidance(options["guidance_scale"])
            else:
                (name, off), *_ = UNGUIDED.get(base.__name__, {"guidance_scale": 1.0}).items()
                scale = options.pop(name, None)
                if student.config.is_told_guidance:
                    if scale is not None:
                        knots.guidance = scale + 1.0 - off  # some count from 0
                    student.config.check_guidance(knots.guidance)
                elif scale not in (None, off, 1.0):
                    raise ValueError(f"the student has absorbed its teacher's guidance; leave {name} out")
                options[name] = off
            kept = {name: self.__dict__.get(name) for name in ("transformer", "scheduler", "vae")}
            self.__dict__.update(transformer=_Remembering(student, knots), scheduler=knots, vae=self.vae or _Pixels())
            try:
                return super().__call__(num_inference_steps=student.num_steps, **options)
            finally:
                self.__dict__.update(kept)

        def save_pretrained(self, save_directory: Any, **options: Any) -> None:
            """Of the parts that diffusers knows of it would make a folder that does not load."""
            raise ValueError(
                "an exported student is its folder, with the pipeline's module in it: copy "
                f"{self.config.get('_name_or_path') or 'it'} to {save_directory}, or publish it with hf upload"
            )

    if "max_sequence_length" in inspect.signature(getattr(base, "encode_prompt", object)).parameters:

        def encode_prompt(self: Any, *args: Any, **options: Any) -> Any:
            if self.config.max_sequence_length is not None:
                options.setdefault("max_sequence_length", self.config.max_sequence_length)
            return base.encode_prompt(self, *args, **options)  # type: ignore[attr-defined]

        encode_prompt.__doc__ = base.encode_prompt.__doc__  # type: ignore[attr-defined]
        ARDPipeline.encode_prompt = encode_prompt  # type: ignore[attr-defined]

    parameters = [*signature.parameters.values()]
    added = ("student", "max_sequence_length")
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in added]
    ARDPipeline.__init__.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    ARDPipeline.__call__.__signature__ = inspect.signature(base.__call__)  # type: ignore[attr-defined]
    ARDPipeline.__call__.__doc__ = base.__call__.__doc__
    return ARDPipeline
