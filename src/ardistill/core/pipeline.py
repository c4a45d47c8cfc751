"""The teacher's own diffusers pipeline class, with guidance off, fixed knots and the history's cache.

The pipeline's loop stays the teacher's. A call runs it on a view of the pipeline, a second object with the same parts,
whose scheduler answers with the student's knots and steps; the pipeline itself is not changed. The view has the
pipeline's transformer, which finds the history of the call by its thread.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ardistill.core.adoption import adopt, folders_of, unwrapped
from ardistill.core.architecture import architecture_of
from ardistill.core.attach import compile_blocks
from ardistill.core.config import StudentConfig
from ardistill.core.history import Layout, check_cached

_ENCODING = threading.RLock()
"""Tokenizers keep the padding of the current call: without the lock, two threads would get each other's."""


class _FixedKnots:
    """What the pipeline's loop asks of a scheduler: the student's times, and its step from one to the next.

    The state stays in float32. The loop gets each state in the dtype of its latents, the last one in that of the VAE,
    ``last_dtype``, which is None where the pipeline converts it.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, student: StudentConfig, config: Any, last_dtype: torch.dtype | None) -> None:
        self.student, self.config, self.last_dtype = student, config, last_dtype
        self.timesteps, self.sigmas = torch.tensor(student.knots.timesteps), torch.tensor(student.knots.sigma)
        self.layout = Layout(cache={}, guidance=float(student.guidance_scale))
        self.noise: Tensor | None = None
        self.state: Tensor | None = None
        self.given: tuple[Tensor, int] | None = None  # the state as the loop got it, and its version

    def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None, sigmas=None, mu=None) -> None:
        self.layout.step, self.layout.cache, self.noise, self.given = 0, {}, None, None
        self.timesteps = self.timesteps.to(device)

    def set_begin_index(self, index: int) -> None: ...

    @property
    def step_index(self) -> int:
        return self.layout.step

    @property
    def num_inference_steps(self) -> int:
        return self.student.knots.num_steps

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any) -> Any:
        index = self.layout.step
        check_cached((self.layout.cache or {}).values(), index + 1)
        if self.state is None or self.given is None or self.given[0] is not sample or self.given[1] != _version(sample):
            self.state = sample.float()  # the noise, or latents that a callback changed
        self.noise = self.state if self.noise is None else self.noise
        estimate = self.student.estimate(model_output, self.state, index)
        self.state = self.student.next_input(estimate, self.noise, index)
        is_last = index + 1 == self.student.knots.num_steps
        following = self.state.to((is_last and self.last_dtype) or sample.dtype)
        self.given = following, _version(following)
        self.layout.step += 1
        return SimpleNamespace(prev_sample=following) if return_dict else (following,)


def _version(tensor: Tensor) -> int:
    """Number of in-place changes of a tensor; 0 in inference mode, where torch does not count them."""
    return 0 if tensor.is_inference() else tensor._version


class ArgumentError(ValueError, TypeError):
    """A call has an argument that the pipeline does not take; also a TypeError, which the stock pipeline raises."""


class _Pixels:
    """Stands in for the VAE of a teacher that draws pixels."""

    config = SimpleNamespace(scaling_factor=1.0, shift_factor=0.0)
    dtype = torch.float32

    def decode(self, samples: Tensor, return_dict: bool = True) -> Any:
        return SimpleNamespace(sample=samples) if return_dict else (samples,)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors of a value, also in lists and tuples, in this dtype; all else is unchanged."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return type(value)(_cast(x, dtype) for x in value) if isinstance(value, (list, tuple)) else value


def _take_guidance(base: Any, student: StudentConfig, options: dict[str, Any], transformer: Any) -> float:
    """Turn the pipeline's own guidance off in the options of a call.

    Returns:
        The guidance scale that is the student's input.

    Raises:
        ValueError: The student was not distilled at the requested scale.
    """
    architecture = architecture_of(transformer)
    if base.__name__ in architecture.scale_is_input_of:
        if not architecture.embeds_guidance(transformer) and options.get("guidance_scale") in (0, 1):
            del options["guidance_scale"]  # no guidance is asked for, and the network takes none
        options.setdefault("guidance_scale", student.guidance_scale)
        student.check_guidance(options["guidance_scale"])
        return float(student.guidance_scale)
    name, off = architecture.guidance_off
    scale, told = options.pop(name, None), student.guidance_scale
    if student.takes_guidance:
        if scale is not None:
            told = scale + 1.0 - off  # of some pipelines, 0 turns guidance off
        student.check_guidance(told)
    elif scale not in (None, off, 0.0, 1.0):  # 0 also means that there is no guidance
        raise ValueError(f"the student has absorbed its teacher's guidance; leave {name} out")
    options |= {name: off} if name else {}  # none where a component guides, which exports replace
    return float(told)


def _check_options(base: Any, student: StudentConfig, options: dict[str, Any]) -> None:
    """Refuse options that a student cannot follow, and remove options that ask for nothing.

    Raises:
        ValueError: There is a negative prompt, or other times or another number of steps than the student's.
    """
    for name, value in [*options.items()]:
        if name.startswith(("negative_", "guidance_scale_")):  # the latter is a second transformer's
            asked = value if isinstance(value, (list, tuple)) else [value]
            if any(x is not None and not (isinstance(x, str) and not x.strip()) for x in asked):
                raise ValueError(f"the student has absorbed its teacher's guidance; leave {name} out")
            del options[name]
        if name in ("sigmas", "timesteps", "mu") and value is not None:
            raise ValueError(f"the student's times are fixed, its {student.knots.num_steps} steps; leave {name} out")
    if unknown := {*options} - {*inspect.signature(base.__call__).parameters}:  # some pipelines ignore others: **kwargs
        text = f"unexpected keyword argument {', '.join(map(repr, sorted(unknown)))}; leave it out"
        raise ArgumentError(f"{base.__name__}: {text}, or see the arguments in help({base.__name__})")
    if options.pop("num_inference_steps", student.knots.num_steps) != student.knots.num_steps:
        raise ValueError(f"the student draws in {student.knots.num_steps} steps; leave num_inference_steps out")


def _module_file(source: Any) -> Path:
    """The module that runs an exported pipeline: in an export this file, else that of the folder it was loaded from.

    Raises:
        ValueError: The folder is gone.
    """
    if __name__ != "ardistill.core.pipeline":
        return Path(__file__)
    found = [path for folder in folders_of(source) for path in folder.glob("pipeline_*.py")]
    if not found:
        raise ValueError(
            f"expected the pipeline's module in {source or 'the folder it was loaded from'}, found none; load the "
            "export from a folder and save again"
        )
    return found[0]


class FewStepPipeline:
    """Mixed into a diffusers pipeline class, whose loop it runs in a student's steps, by `few_step_pipeline`.

    ``_student`` describes the student, and ``_parts`` the one of each of its transformers: of its only one, or of two.
    ``_whole`` is the pipeline that a view belongs to; only a view has one.
    """

    _knots = _FixedKnots

    def __init__(
        self, *args: Any, student: dict | None = None, max_sequence_length: int | None = None, **components: Any
    ) -> None:
        if student is None:
            raise ValueError("expected the student's configuration; load an exported folder with from_pretrained")
        super().__init__(*args, **components)
        settings = {name: components[name] for name in components if name not in self.components}
        self.register_to_config(student=student, max_sequence_length=max_sequence_length, **settings)
        if self.vae is None:
            self.vae_scale_factor = 1
        config = StudentConfig.from_dict(student)
        if self.transformer is not None:
            adopt(self.transformer, config, "", self.components.values())
        self.__dict__.update(_student=config, _parts={"transformer": config})

    def __setattr__(self, name: str, value: Any) -> None:
        parts, whole = (self.__dict__.get(x) for x in ("_parts", "_whole"))
        if parts and name == "scheduler" and value is not self.scheduler:
            raise ValueError(
                "the student's times and steps are fixed, another scheduler would change nothing; keep the one it has"
            )
        if parts and name in parts and value is not None:
            adopt(value, parts[name], self.config[name][1] or "", self.components.values())
        super().__setattr__(name, value)
        if whole is not None:  # what a call notes, such as num_timesteps, the pipeline shows, as its base does
            setattr(whole, name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The class is made where it is needed, so pickle cannot find it by name."""
        return _blank_pipeline, type(self).__bases__, self.__dict__

    @torch.no_grad()
    def __call__(self, *args: Any, **options: Any) -> Any:
        """Draw: a call of the base class, with the student's number of steps, on a view of this pipeline.

        The arguments are checked, and those that turn guidance off are set. The view has the same parts as the
        pipeline, but ``_FixedKnots`` for its scheduler; ``use_layout`` gives the history of the call to the
        transformer. A call on a view (by the base class, on ``self``) starts from the pipeline that it belongs to.
        """
        base, student = type(self).__bases__[1], self._student
        names = [*inspect.signature(base.__call__).parameters][1:]
        if len(args) > len(names):
            raise TypeError(f"expected at most {len(names)} arguments, got {len(args)}")
        options |= dict(zip(names, args, strict=False))
        if any(getattr(self, name) is None for name in self._parts):
            raise ValueError("the pipeline was loaded without its transformer; load it with one to draw")
        _check_options(base, student, options)
        if self.config.max_sequence_length is not None:
            options.setdefault("max_sequence_length", self.config.max_sequence_length)
        if isinstance(options.get("latents"), Tensor):
            options["latents"] = _cast(options["latents"], self.transformer.dtype)
        whole = self.__dict__.get("_whole", self)
        vae = self.vae or _Pixels()
        keeps_float32 = architecture_of(unwrapped(self.transformer)).keeps_float32
        knots = self._knots(student, whole.scheduler.config, None if keeps_float32 else getattr(vae, "dtype", None))
        knots.layout.guidance = _take_guidance(base, student, options, unwrapped(self.transformer))
        view = object.__new__(type(self))  # not by __init__: it shares the parts, and adopts no transformer
        view.__dict__.update(whole.__dict__ | {"_whole": whole, "scheduler": knots, "vae": vae})
        with contextlib.ExitStack() as calls:
            for name in self._parts:
                calls.enter_context(unwrapped(getattr(self, name)).attachment.history.use_layout(knots.layout))
            return base.__call__(view, num_inference_steps=student.knots.num_steps, **options)

    def compile(self, **options: Any) -> None:
        """Compile each block of the transformer in place; the first calls take the time that this needs."""
        compile_blocks(unwrapped(self.transformer), **options)

    def maybe_free_model_hooks(self) -> None:
        type(self).__bases__[1].maybe_free_model_hooks(self.__dict__.get("_whole", self))  # the whole pipeline's hooks

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> None:
        """Save the pipeline as its base does, with the module that runs it: the folder loads as the export does."""
        if options.get("push_to_hub"):
            raise ValueError("push_to_hub would upload a part; save to a folder and publish it with hf upload")
        module = _module_file(self.config.get("_name_or_path"))
        super().save_pretrained(save_directory, *args, **options)
        shutil.copyfile(module, Path(save_directory) / module.name)
        path = Path(save_directory) / "model_index.json"
        index = json.loads(path.read_text()) | {"_class_name": [module.stem, "ARDPipeline"]}
        path.write_text(json.dumps(index | {"_base_class_name": type(self).__bases__[1].__name__}, indent=2))


def _blank_pipeline(kind: type, base: type) -> Any:
    return object.__new__(few_step_pipeline(base, kind))


def _shown_as(original: Any, method: Any, added: Sequence[str] = ()) -> Any:
    """A method that has the name, docstring and signature of another one, with further options."""

    @functools.wraps(original)
    def shown(self: Any, *args: Any, **options: Any) -> Any:
        return method(self, *args, **options)

    signature = inspect.signature(original)
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in added]
    shown.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore
    return shown


def _encode_prompt(base: Any) -> Any:
    """The base's ``encode_prompt``, one thread at a time, with the student's length and in the transformer's dtype."""
    takes_length = "max_sequence_length" in inspect.signature(base.encode_prompt).parameters

    def encode_prompt(self: Any, *args: Any, **options: Any) -> Any:
        if takes_length and self.config.max_sequence_length is not None:
            options.setdefault("max_sequence_length", self.config.max_sequence_length)
        with _ENCODING:
            found = base.encode_prompt(self, *args, **options)
        return found if self.transformer is None else _cast(found, self.transformer.dtype)

    return _shown_as(base.encode_prompt, encode_prompt)


@functools.cache
def few_step_pipeline(base: Any, kind: Any = FewStepPipeline) -> type:
    """A pipeline class that draws as ``base`` does, in a student's steps.

    Args:
        base: The teacher's pipeline class, one of diffusers'.
        kind: What is mixed into it.

    Returns:
        A subclass, named as ``base`` is. Its constructor takes, besides the components of ``base``, ``student``, a
        student's configuration as a dict, and ``max_sequence_length``, for calls that name none. Its call takes the
        arguments of ``base``, except for the number of steps, negative prompts, and guidance unless guidance is an
        input of the student.
    """
    needed = [x.name for x in inspect.signature(base.__init__).parameters.values() if x.default is x.empty]
    may_be_absent = [name for name in needed if name not in ("self", "transformer", "scheduler")]
    members: dict[str, Any] = {
        "_optional_components": [*getattr(base, "_optional_components", []), *may_be_absent, "vae"],
        "__init__": _shown_as(base.__init__, kind.__init__, ("student", "max_sequence_length")),
        "__call__": _shown_as(base.__call__, FewStepPipeline.__call__),
    }
    if hasattr(base, "encode_prompt"):
        members["encode_prompt"] = _encode_prompt(base)
    if hasattr(base, "interrupt"):
        members["interrupt"] = property(lambda x: x._interrupt or getattr(vars(x).get("_whole"), "_interrupt", False))
    return type(base.__name__, (kind, base), members)
